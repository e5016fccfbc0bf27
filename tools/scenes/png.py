"""A small PNG encoder whose bytes depend on nothing but the pixels and zlib.

The committed pack and the promise "same seed, same bytes" should not hang on the image library of the day; trying
a few filters and zlib strategies also makes small pictures noticeably smaller.
"""

from __future__ import annotations

import struct
import zlib

import numpy as np
import numpy.typing as npt

#: Up to this many bytes several filters are tried; above, the usual one is good enough and much faster.
_THOROUGH_BYTES = 64 * 64 * 3
_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def encode(pixels: npt.NDArray[np.generic], *, thorough: bool = True) -> bytes:
    """PNG of `[H, W]` uint8 or uint16 (grey) or `[H, W, 3]` uint8 (RGB); ValueError for anything else.

    `thorough`: small pictures are packed in five ways, of which the smallest is taken.
    """
    if pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] == 3:
        depth, colour = 8, 2
    elif pixels.ndim == 2 and pixels.dtype in (np.uint8, np.uint16):
        depth, colour = 8 * pixels.dtype.itemsize, 0
    else:
        raise ValueError(f"cannot store {pixels.dtype} of shape {pixels.shape} as PNG")
    height, width = pixels.shape[:2]
    big_endian = pixels.astype(">u2") if depth == 16 else pixels
    rows = np.frombuffer(np.ascontiguousarray(big_endian).tobytes(), np.uint8).reshape(height, -1)
    pixel_bytes = rows.shape[1] // width
    filtered = _filters(rows, pixel_bytes)
    adaptive = _adaptive(filtered)
    if not thorough or rows.size > _THOROUGH_BYTES:
        packed = [_deflate(adaptive, 6, zlib.Z_FILTERED)]
    else:
        # Pictures and depth do best by the adaptive choice, flat labels unfiltered, heat maps by one of the two others.
        strategies = (zlib.Z_DEFAULT_STRATEGY, zlib.Z_FILTERED)
        packed = [_deflate(data, 9, way) for data in (adaptive, _uniform(filtered, 0)) for way in strategies]
        packed.append(_deflate(_uniform(filtered, 4), 9, zlib.Z_FILTERED))
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"".join([_SIGNATURE, _chunk(b"IHDR", header), _chunk(b"IDAT", min(packed, key=len)), _chunk(b"IEND", b"")])


def _filters(rows: npt.NDArray[np.uint8], pixel_bytes: int) -> npt.NDArray[np.uint8]:
    """All five filtered versions, `[5, H, bytes]` (PNG specification, section 9)."""
    now = rows.astype(np.int16)
    left = np.zeros_like(now)
    left[:, pixel_bytes:] = now[:, :-pixel_bytes]
    above = np.zeros_like(now)
    above[1:] = now[:-1]
    corner = np.zeros_like(now)
    corner[1:, pixel_bytes:] = now[:-1, :-pixel_bytes]
    estimate = left + above - corner
    to_left, to_above, to_corner = abs(estimate - left), abs(estimate - above), abs(estimate - corner)
    paeth = np.where(
        (to_left <= to_above) & (to_left <= to_corner), left, np.where(to_above <= to_corner, above, corner)
    )
    predicted = np.stack([np.zeros_like(now), left, above, (left + above) // 2, paeth])
    return np.asarray((now - predicted) & 255).astype(np.uint8)


def _adaptive(filtered: npt.NDArray[np.uint8]) -> bytes:
    """Per row the filter with the smallest sum of absolute (signed) residuals."""
    cost = np.abs(filtered.view(np.int8).astype(np.int32)).sum(axis=2)
    best = cost.argmin(axis=0)
    rows = filtered[best, np.arange(filtered.shape[1])]
    return np.hstack([best[:, None].astype(np.uint8), rows]).tobytes()


def _uniform(filtered: npt.NDArray[np.uint8], kind: int) -> bytes:
    height = filtered.shape[1]
    return np.hstack([np.full((height, 1), kind, np.uint8), filtered[kind]]).tobytes()


def _deflate(data: bytes, level: int, strategy: int) -> bytes:
    packer = zlib.compressobj(level, zlib.DEFLATED, 15, 9, strategy)
    return packer.compress(data) + packer.flush()


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
