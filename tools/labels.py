"""Labels that a picture gives by itself: edges, keypoints, local orientation, saliency.

Every function takes a grey picture, float `[height, width]` in 0..1 (see `luminance`), and returns float maps of
the same size; the `*_label` functions turn an 8-bit RGB picture into the stored encoding. The scene renderer and the
photograph cutter share them, so a model trained on one can be tried on the other.

Filter widths grow with the picture, so a 64-pixel and a 256-pixel version of one view have alike maps.
Sources: Canny, PAMI 1986 (gradient of a smoothed picture, here without suppression or thresholds); Bay et al.,
CVIU 2008 (SURF: determinant of the Hessian over scales); Bigun and Granlund, ICCV 1987 (structure tensor);
Hou and Zhang, CVPR 2007 (spectral residual).
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

FloatMap = npt.NDArray[np.float64]
RgbImage = npt.NDArray[np.uint8]

#: Stored value of a unit gradient / unit Hessian response, chosen so that rendered rooms have about the mean and
#: spread that the published normalisation expects (edges 718 +- 1070, keypoints 50 +- 100).
EDGE_GAIN = 24_000.0
KEYPOINT_GAIN = 95_000.0
#: Edge maps are stored in steps of this: an eightieth of their spread, and a fifth off the size of the files.
EDGE_STEP = 16
_REFERENCE_SIZE = 64
_KEYPOINT_SIGMAS = (1.2, 1.8, 2.7)


def luminance(rgb: RgbImage) -> FloatMap:
    """8-bit RGB `[H, W, 3]` -> Rec. 601 luma `[H, W]` in 0..1."""
    weights = np.array([0.299, 0.587, 0.114])
    return np.asarray(rgb[..., :3].astype(np.float64) @ weights / 255.0)


def smooth(grey: FloatMap, sigma_px: float) -> FloatMap:
    """Gaussian blur with mirrored borders; `sigma_px` 0 returns the map unchanged."""
    if sigma_px <= 0:
        return grey
    radius = max(1, math.ceil(3.5 * sigma_px))
    taps = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma_px) ** 2)
    taps /= taps.sum()
    return _along(_along(grey, np.asarray(taps), 0), np.asarray(taps), 1)


def gradient(grey: FloatMap) -> tuple[FloatMap, FloatMap]:
    """Central differences per pixel `(d/dx right, d/dy down)`, mirrored borders."""
    padded: FloatMap = np.pad(grey, 1, mode="symmetric")
    return (padded[1:-1, 2:] - padded[1:-1, :-2]) / 2, (padded[2:, 1:-1] - padded[:-2, 1:-1]) / 2


def edge_strength(grey: FloatMap) -> FloatMap:
    """Magnitude of the smoothed gradient, in grey levels per 1/64 of the picture's height."""
    unit = unit_px(grey)
    dx, dy = gradient(smooth(grey, unit))
    return np.asarray(np.hypot(dx, dy) * unit)


def keypoint_strength(grey: FloatMap) -> FloatMap:
    """Largest scale-normalised Hessian determinant over three scales; saddles (negative) count as zero."""
    unit = unit_px(grey)
    return np.asarray(np.max([hessian_response(grey, sigma * unit) for sigma in _KEYPOINT_SIGMAS], axis=0))


def hessian_response(grey: FloatMap, sigma_px: float) -> FloatMap:
    """`sigma^4 * max(0, Lxx Lyy - Lxy^2)` at one scale."""
    level = smooth(grey, sigma_px)
    padded = np.pad(level, 1, mode="symmetric")
    core = padded[1:-1, 1:-1]
    xx = padded[1:-1, 2:] - 2 * core + padded[1:-1, :-2]
    yy = padded[2:, 1:-1] - 2 * core + padded[:-2, 1:-1]
    xy = (padded[2:, 2:] - padded[2:, :-2] - padded[:-2, 2:] + padded[:-2, :-2]) / 4
    return np.asarray(np.maximum(xx * yy - xy * xy, 0.0) * sigma_px**4)


def orientation_field(grey: FloatMap) -> FloatMap:
    """Structure tensor's `coherence * (cos 2a, sin 2a)`, `[2, H, W]` in -1..1; `a` is the gradient's angle.

    A vertical edge gives (1, 0), a horizontal one (-1, 0); flat or isotropic places give (0, 0). Mirroring the
    picture left-right changes the sign of the second channel only.
    """
    unit = unit_px(grey)
    dx, dy = gradient(smooth(grey, 0.7 * unit))
    xx, yy, xy = (smooth(product, 1.5 * unit) for product in (dx * dx, dy * dy, dx * dy))
    # The floor keeps quantisation noise of flat areas from looking like strong texture.
    energy = xx + yy + (1e-3 / unit) ** 2
    return np.stack([(xx - yy) / energy, 2 * xy / energy])


def saliency(grey: FloatMap) -> FloatMap:
    """Spectral residual, smoothed and scaled to a maximum of 1; all zero for a constant picture."""
    if np.ptp(grey) < 1e-9:
        return np.zeros_like(grey)
    spectrum = np.fft.fft2(grey)
    log_amplitude = np.log(np.abs(spectrum) + 1e-9)
    taps = np.full(3, 1 / 3)
    residual = log_amplitude - _along(_along(log_amplitude, taps, 0), taps, 1)
    back = np.fft.ifft2(np.exp(residual + 1j * np.angle(spectrum)))
    energy = smooth(np.abs(back) ** 2, 2.5 * unit_px(grey))
    return np.asarray(energy / energy.max())


def edge_label(rgb: RgbImage) -> npt.NDArray[np.uint16]:
    """Stored `edge_texture` map of a picture, 16 bit `[H, W]`."""
    steps = np.rint(np.minimum(edge_strength(luminance(rgb)) * EDGE_GAIN, 65_535 - EDGE_STEP) / EDGE_STEP)
    return _to_16bit(steps * EDGE_STEP)


def keypoint_label(rgb: RgbImage) -> npt.NDArray[np.uint16]:
    """Stored `keypoints2d` map of a picture, 16 bit `[H, W]`."""
    return _to_16bit(keypoint_strength(luminance(rgb)) * KEYPOINT_GAIN)


def saliency_label(rgb: RgbImage) -> npt.NDArray[np.uint16]:
    """Stored `saliency` map of a picture, 16 bit `[H, W]`, 65535 = the most salient place."""
    return _to_16bit(saliency(luminance(rgb)) * 65535)


def orientation_label(rgb: RgbImage) -> RgbImage:
    """Stored `orientation` map, 8-bit RGB centred on 127; the third channel is always 127."""
    field = orientation_field(luminance(rgb))
    stored = np.full((*field.shape[1:], 3), 127, np.uint8)
    stored[..., :2] = np.rint(127 + 127 * np.moveaxis(field, 0, -1)).astype(np.uint8)
    return stored


def _along(values: FloatMap, taps: FloatMap, axis: int) -> FloatMap:
    radius = len(taps) // 2
    pad = [(0, 0), (0, 0)]
    pad[axis] = (radius, radius)
    padded = np.pad(values, pad, mode="symmetric")
    length = values.shape[axis]
    total = np.zeros_like(values)
    for offset, tap in enumerate(taps):
        total += tap * (padded[offset : offset + length] if axis == 0 else padded[:, offset : offset + length])
    return total


def unit_px(grey: FloatMap) -> float:
    """Pixels in one 64th of a picture's height, at least 1: the unit in which filter widths are given."""
    return max(1.0, float(grey.shape[0]) / _REFERENCE_SIZE)


def _to_16bit(values: FloatMap) -> npt.NDArray[np.uint16]:
    return np.rint(np.clip(values, 0, 65535)).astype(np.uint16)
