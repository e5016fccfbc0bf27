"""Which points of a building are kept for validation: a rule on names alone, which needs no picture and no numpy."""

from __future__ import annotations

import hashlib

from edge_agent.datasets.layout import Sample

#: Share of the points kept for validation.
VALIDATION_SHARE = 0.15


def point_share(sample: Sample) -> float:
    """Where a point falls in 0..1, from the SHA-256 of its building and number: the same for all its views."""
    digest = hashlib.sha256(f"{sample.building}/{sample.point}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64
