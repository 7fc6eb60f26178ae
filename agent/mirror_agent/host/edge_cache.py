"""What the edge remembers of manifests, beside the registry's store: taking it out when their image is evicted.

Otherwise the edge would go on answering with a manifest that the registry does not have any more: the image's blobs
would be fetched again as blobs of no image, which eviction takes first.  nginx asks its upstream for an entry whose
file is gone (ngx_http_file_cache_open: ENOENT is a miss).
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

from mirror_agent.model import ImageName

_HEAD = 4096  # bytes; a binary header, the key, and the registry's answer begin every file
_KEY = re.compile(rb"\nKEY: (?:digest |tag /v2/)([a-z0-9._/-]+?)(?: |/manifests/)")  # quadlets/nginx.conf
_TOLD = re.compile(rb"\r\ndocker-content-digest: (sha\d+:[0-9a-f]+)\r\n", re.IGNORECASE)


def forget(folder: Path, images: Collection[ImageName]) -> int:
    """Remove the entries of these images below the cache folder `folder`; how many there were.

    Raises OSError for a file that cannot be removed.
    """
    gone = 0
    for place, _, names in os.walk(folder):
        for name in names:
            path = Path(place, name)
            if _image(path) in images:
                path.unlink(missing_ok=True)
                gone += 1
    return gone


def _image(path: Path) -> ImageName | None:
    with suppress(OSError):  # gone meanwhile
        with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            head = file.read(_HEAD)
        key, told = _KEY.search(head), _TOLD.search(head)
        if key and told:
            return key[1].decode(), told[1].decode()
    return None
