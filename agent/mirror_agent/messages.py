"""Floor 0: MESSAGE_ID of every line of the journal that a person must act on; `journalctl -x` explains them.

The explanations are in packaging/mirror-agent.catalog, one for each, and for nothing else (a test compares them).
"""

from __future__ import annotations

SETTINGS_BROKEN = "8c1f0d2e9b3647a5b7e04c6a1d92f358"
DEFINITION_BROKEN = "a4d7e6108f2b4c93a15c7b0e3f86d29a"
FALLEN_BACK = "61b9f3c27d0e48d5934a2c8e7f10b6d4"
STATE_UNUSABLE = "d3508a7b6ce14f29b8210f5d94a7c3e6"
HOST_SILENT = "1e7c94b05da8437fa6c3d2f8b0596e1d"
PARENT_UNFIT = "97a2d8e3f4514b60bd7c09e15a36f8c2"
ADDRESS_TAKEN = "4f60e1b9c8d7425ea93b5d0c2e81f7a6"
IMAGE_MISSING = "ce5d2f7a904b4813b6f1e8a70d3c9254"
START_FAILED = "320f8b6ed1c949a7854e7d1b9c0fa6e3"
PROOF_FAILED = "b07e5c4d38f1429e9d6a1f82c3e7b950"
TARGET_FAILED = "58d4c0f7b2e94a61ac3e7f9d10b865a2"
DISK_FULL = "f2c6b1a85e3d47909be17d4c0a8f52d7"
RENEWAL_FAILED = "5f2b0c6d1a7e4a0f9c3d8e41b7a60c21"
CERTIFICATE_REPAIRED = "0c9e4b7fd2a84d51a6f3b0e97c15d832"
AUTHORITY_PREPARED = "7d3a9e52c84b4f6fb0a1d25e68f7c413"
AUTHORITY_SWITCHED = "e46c1b08f39d4a7c95d07b3ea812f56c"
AUTHORITY_DROPPED = "29f8d7c0b5164e03a4be61f92d8c7a05"
CERTIFICATE_ROLLED_BACK = "b81d6f0a35c94e27871e4fa2c90d53b6"
