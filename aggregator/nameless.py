"""Files without a name: they go with the process, however that ends."""

from __future__ import annotations

import os
import tempfile
import weakref
from pathlib import Path


def nameless_file(owner: object, folder: Path | None) -> int:
    """The descriptor of a new, empty file in `folder` (None: where temporary files are), which is closed when `owner`
    is no more. Raises OSError.
    """
    file, name = tempfile.mkstemp(prefix="mas-", dir=folder)
    weakref.finalize(owner, os.close, file)
    os.unlink(name)
    return file
