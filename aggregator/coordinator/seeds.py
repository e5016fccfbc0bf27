"""All chance in a job, derived from its seed by SHA-256, so that no run depends on Python's or numpy's generators."""

from __future__ import annotations

import hashlib

from models.wire.job import JobSpec


def digest(*parts: object) -> bytes:
    """SHA-256 over the parts, kept apart by a byte that no identifier holds."""
    return hashlib.sha256("\x1f".join(str(part) for part in parts).encode()).digest()


def order_seed(spec: JobSpec, split: str, round_index: int, agent: str) -> int:
    """Seed of one agent's local training, 0 .. 2**31-1; a further attempt by the same agent repeats it."""
    return int.from_bytes(digest("order", spec.seed, split, round_index, agent)[:4], "big") & 0x7FFF_FFFF


def selection_rank(spec: JobSpec, split: str, round_index: int, attempt: int, agent: str) -> bytes:
    """Where an agent stands in the draw of one attempt: the smallest ranks are chosen.

    Each agent draws its own lot, so who else is online changes nobody's rank.
    """
    return digest("select", spec.seed, split, round_index, attempt, agent)


def learning_rate(spec: JobSpec, round_index: int, lr_from: int = 0) -> float:
    """lr of a round by the polynomial schedule over the rounds `lr_from .. spec.rounds - 1`."""
    passed = (round_index - lr_from) / (spec.rounds - lr_from)
    return float(spec.train.lr * (1.0 - passed) ** spec.lr_power)
