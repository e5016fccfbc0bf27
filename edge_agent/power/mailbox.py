"""Asking a Raspberry Pi's firmware without a process: the request that `vcgencmd` itself puts to the device /dev/vcio.

A process for each of ten samples a second would cost more than a hundredth of a core; this costs a system call. What
the buffer holds is the firmware's mailbox property interface, as vcgencmd of raspberrypi/utils uses it.
"""

from __future__ import annotations

import fcntl
import os
import struct
from collections.abc import Callable
from pathlib import Path

#: A device's ioctl: file, request, buffer that is both question and answer.
Ioctl = Callable[[int, int, bytearray], object]

_TEXT_BYTES = 1024
#: size, request, tag, room for text, length, error; then the text, then the tag that ends the list.
_HEAD = struct.Struct("=6I")
_END = struct.Struct("=I")
_GET_GENCMD_RESULT = 0x00030080
#: Read and write a pointer, by the device whose number is 100.
_REQUEST = 3 << 30 | struct.calcsize("P") << 16 | 100 << 8


class Mailbox:
    """The device at `path`; the kernel itself gives up after a second when the firmware does not answer."""

    def __init__(self, path: Path, ioctl: Ioctl = fcntl.ioctl) -> None:
        self._path, self._ioctl = path, ioctl

    def ask(self, question: str) -> tuple[int, str]:
        """The firmware's status and its answer; raises OSError, ETIMEDOUT among them."""
        size = _HEAD.size + _TEXT_BYTES + _END.size
        text = question.encode().ljust(_TEXT_BYTES, b"\0")
        head = _HEAD.pack(size, 0, _GET_GENCMD_RESULT, _TEXT_BYTES, 0, 0)
        buffer = bytearray(head + text + _END.pack(0))
        device = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            self._ioctl(device, _REQUEST, buffer)
        finally:
            os.close(device)
        status = _HEAD.unpack_from(buffer)[5]
        said = bytes(buffer[_HEAD.size : -_END.size]).split(b"\0", 1)[0]
        return int(status), said.decode(errors="replace").strip()
