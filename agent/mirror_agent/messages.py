"""Floor 0: MESSAGE_ID of every line of the journal that a person must act on; `journalctl -x` explains them.

The explanations are in packaging/mirror-agent.catalog, one for each, and for nothing else (a test compares them).
"""

from __future__ import annotations

RENEWAL_FAILED = "5f2b0c6d1a7e4a0f9c3d8e41b7a60c21"
CERTIFICATE_REPAIRED = "0c9e4b7fd2a84d51a6f3b0e97c15d832"
AUTHORITY_PREPARED = "7d3a9e52c84b4f6fb0a1d25e68f7c413"
AUTHORITY_SWITCHED = "e46c1b08f39d4a7c95d07b3ea812f56c"
AUTHORITY_DROPPED = "29f8d7c0b5164e03a4be61f92d8c7a05"
CERTIFICATE_ROLLED_BACK = "b81d6f0a35c94e27871e4fa2c90d53b6"
