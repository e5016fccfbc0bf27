from __future__ import annotations

import numpy as np
import pytest
import safetensors.numpy
import zstandard

from models.wire.tensors import TensorsError, decode_tensors, encode_tensors


def tensors() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(3)
    return {
        "heads.normal.out.weight": rng.normal(size=(3, 2, 1, 1)).astype(np.float32),
        "encoder.scale": np.float32(2.5).reshape(()),
        "encoder.transposed": rng.normal(size=(4, 3)).astype(np.float32).T,
        "encoder.strided": rng.normal(size=(8, 2)).astype(np.float32)[::2],
        "encoder.none": np.zeros((0, 3), np.float32),
    }


def frame(raw: bytes, **settings: bool) -> bytes:
    return zstandard.ZstdCompressor(**settings).compress(raw)


def test_round_trip_keeps_every_bit() -> None:
    given = tensors()
    back = decode_tensors(encode_tensors(given))
    assert set(back) == set(given)
    for name, array in given.items():
        assert back[name].dtype == np.float32
        np.testing.assert_array_equal(back[name], array, strict=True)


def test_half_precision_is_half_as_large_and_rounds() -> None:
    values = np.random.default_rng(4).normal(size=(100, 100)).astype(np.float32)
    half = encode_tensors({"a": values}, "fp16")
    assert len(half) < 0.55 * len(encode_tensors({"a": values}))
    back = decode_tensors(half)["a"]
    assert back.dtype == np.float32
    np.testing.assert_array_equal(back, values.astype(np.float16).astype(np.float32))


def test_bytes_do_not_depend_on_order_or_layout() -> None:
    given = tensors()
    shuffled = {name: np.ascontiguousarray(given[name]).reshape(given[name].shape) for name in reversed(given)}
    assert encode_tensors(given) == encode_tensors(shuffled)


def test_every_array_that_cannot_be_sent_is_named() -> None:
    with pytest.raises(TensorsError, match=r"a is float64.*b is int64"):
        encode_tensors({"a": np.zeros(1), "b": np.zeros(1, np.int64), "c": np.zeros(1, np.float32)})
    with pytest.raises(TensorsError, match="big does not fit in fp16"):
        encode_tensors({"ok": np.float32([1, 65504]), "big": np.float32([1, -1e6])}, "fp16")


def test_values_that_are_no_numbers_pass_and_are_judged_later() -> None:
    for dtype in ("fp32", "fp16"):
        back = decode_tensors(encode_tensors({"a": np.float32([np.nan, np.inf, 1])}, dtype))["a"]
        np.testing.assert_array_equal(back, np.float32([np.nan, np.inf, 1]))


def test_more_than_allowed_is_refused_before_it_is_unpacked() -> None:
    data = encode_tensors({"a": np.zeros((512, 1024), np.float32)})
    assert len(data) < 4096
    with pytest.raises(TensorsError, match="at most 1000000 are allowed"):
        decode_tensors(data, max_bytes=1_000_000)
    assert decode_tensors(data, max_bytes=3_000_000)["a"].shape == (512, 1024)


def test_a_frame_that_claims_no_size() -> None:
    raw = safetensors.numpy.save({"a": np.zeros(4, np.float32)})
    with pytest.raises(TensorsError, match="does not state its size"):
        decode_tensors(frame(raw, write_content_size=False))


def test_a_frame_that_lies_about_its_size() -> None:
    raw = bytes(5000)
    honest = frame(raw)
    claim = (5000 - 256).to_bytes(2, "little")
    assert honest.count(claim) == 1
    small = honest.replace(claim, (300 - 256).to_bytes(2, "little"))
    assert zstandard.get_frame_parameters(small).content_size == 300
    with pytest.raises(TensorsError):
        decode_tensors(small)
    large = honest.replace(claim, (60000 - 256).to_bytes(2, "little"))
    with pytest.raises(TensorsError):
        decode_tensors(large)


def test_what_is_no_frame_or_more_than_one() -> None:
    good = encode_tensors({"a": np.zeros(100, np.float32)})
    for bad in (b"", b"hello", good[:3], good[:-1], good + good, good + b"\x00"):
        with pytest.raises(TensorsError):
            decode_tensors(bad)


def test_every_prefix_fails() -> None:
    good = encode_tensors({"a": np.arange(7, dtype=np.float32)})
    for length in range(len(good)):
        with pytest.raises(TensorsError):
            decode_tensors(good[:length])


@pytest.mark.parametrize("inside", [b"", b"\x80\x04", b"\xff" * 64, b"\x08" + bytes(7) + b'{"a":1} ', b"{}"])
def test_a_frame_without_tensors(inside: bytes) -> None:
    with pytest.raises(TensorsError):
        decode_tensors(frame(inside))


def test_only_floats_are_carried() -> None:
    with pytest.raises(TensorsError, match="a is int64"):
        decode_tensors(frame(safetensors.numpy.save({"a": np.zeros(2, np.int64), "b": np.zeros(2, np.float32)})))
