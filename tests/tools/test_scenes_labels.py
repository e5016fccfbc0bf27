"""Image-only labels against pictures whose answer is known."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tools import labels


def blob(size: int, width: float, height: float = 1.0) -> np.ndarray:
    axis = np.arange(size) - size // 2
    return height * np.exp(-(axis[:, None] ** 2 + axis[None, :] ** 2) / (2 * width**2))


def test_a_step_edge_has_the_slope_of_its_gaussian() -> None:
    grey = np.zeros((64, 64))
    grey[:, 32:] = 0.5
    strength = labels.edge_strength(grey)
    # Blurred, the step climbs by the Gaussian's samples; the central difference at column 31 spans two of them.
    density = [math.exp(-0.5 * k * k) / math.sqrt(2 * math.pi) for k in (0, 1)]
    secant = 0.5 * sum(density) / 2
    assert strength[32, 31] == pytest.approx(secant, rel=1e-3)
    assert strength[32, 32] == pytest.approx(strength[32, 31])
    assert strength[:, :20].max() < 1e-9
    assert strength[:, 44:].max() < 1e-9


def test_edges_do_not_depend_on_the_picture_being_enlarged() -> None:
    small = blob(64, 8.0)
    large = np.kron(small, np.ones((4, 4)))
    assert labels.edge_strength(large).max() == pytest.approx(labels.edge_strength(small).max(), rel=0.05)


def test_hessian_of_a_blob_is_the_closed_form() -> None:
    width, sigma = 4.0, 2.0
    response = labels.hessian_response(blob(65, width), sigma)
    expected = width**4 * sigma**4 / (width**2 + sigma**2) ** 4
    assert response[32, 32] == pytest.approx(expected, rel=0.03)
    assert response.argmax() == 32 * 65 + 32


def test_keypoints_are_blobs_not_edges_and_not_saddles() -> None:
    edge = np.zeros((64, 64))
    edge[:, 32:] = 1.0
    assert labels.keypoint_strength(edge).max() < 1e-9
    x, y = np.meshgrid(np.linspace(-1, 1, 64), np.linspace(-1, 1, 64))
    saddle = labels.hessian_response(x * y, 1.5)
    assert saddle[20:44, 20:44].max() < 1e-9
    assert labels.keypoint_strength(blob(64, 2.0)).max() > 0.05


@pytest.mark.parametrize("angle_deg", [0, 30, 45, 90, 120])
def test_orientation_of_a_grating_is_its_angle_doubled(angle_deg: float) -> None:
    x, y = np.meshgrid(np.arange(64), np.arange(64))
    angle = math.radians(angle_deg)
    grey = 0.5 + 0.5 * np.sin(0.35 * (x * math.cos(angle) + y * math.sin(angle)))
    field = labels.orientation_field(grey)[:, 16:48, 16:48]
    assert field[0].mean() == pytest.approx(math.cos(2 * angle), abs=0.03)
    assert field[1].mean() == pytest.approx(math.sin(2 * angle), abs=0.03)


def test_mirroring_negates_only_the_second_orientation_channel() -> None:
    rng = np.random.default_rng(1)
    grey = labels.smooth(rng.random((64, 64)), 2.0)
    field, mirrored = labels.orientation_field(grey), labels.orientation_field(grey[:, ::-1])
    np.testing.assert_allclose(mirrored[0], field[0][:, ::-1], atol=1e-12)
    np.testing.assert_allclose(mirrored[1], -field[1][:, ::-1], atol=1e-12)


def test_saliency_finds_the_odd_one_out() -> None:
    grey = 0.5 + 0.3 * labels.smooth(np.random.default_rng(0).standard_normal((64, 64)), 1.5)
    grey[40:46, 20:26] = 1.5
    found = np.unravel_index(labels.saliency(grey).argmax(), (64, 64))
    assert abs(found[0] - 43) <= 4
    assert abs(found[1] - 23) <= 4


def test_a_flat_picture_has_empty_labels() -> None:
    flat = np.full((32, 32, 3), 77, np.uint8)
    assert labels.edge_label(flat).max() == 0
    assert labels.keypoint_label(flat).max() == 0
    assert labels.saliency_label(flat).max() == 0
    assert (labels.orientation_label(flat) == 127).all()


def test_stored_types_and_ranges() -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (48, 48, 3), dtype=np.uint8)
    for stored in (labels.edge_label(rgb), labels.keypoint_label(rgb), labels.saliency_label(rgb)):
        assert stored.dtype == np.uint16
        assert stored.shape == (48, 48)
        assert stored.max() > 0
    assert labels.saliency_label(rgb).max() == 65535
    edges = labels.edge_label(rgb)
    assert not (edges % labels.EDGE_STEP).any()
    np.testing.assert_allclose(
        edges, labels.edge_strength(labels.luminance(rgb)) * labels.EDGE_GAIN, atol=labels.EDGE_STEP / 2 + 1e-6
    )
    turned = labels.orientation_label(rgb)
    assert turned.dtype == np.uint8
    assert (turned[..., 2] == 127).all()
    assert turned[..., :2].max() <= 254
