"""Runs of a grid that go at once share one machine's memory."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools.experiment.run import Wanted, prepare
from tools.experiment.simulated import worker_settings
from tools.simulate.memory import PICTURES_SHARE, host_bytes

SPEC = """
name = "tiny"
data = "demo-pack"
train = ["alder", "birch"]
test = ["maple"]
seeds = [0]
jobs = 2
[job]
tasks = "kt"
size = 32
rounds = 1
clients_per_round = 2
train.batch_size = 8
[[row]]
name = "all"
scheme = "all-in-one"
"""


@pytest.mark.parametrize(("asked", "slots"), [(0, 2), (8, 8)])
def test_a_run_keeps_pictures_in_its_share_of_the_memory(tmp_path: Path, asked: int, slots: int) -> None:
    path = tmp_path / "tiny.toml"
    path.write_text(SPEC)
    (plan,) = prepare(Wanted(path, out=tmp_path / "out", jobs=asked), make=False).plans
    assert slots * worker_settings(plan).cache_bytes == pytest.approx(PICTURES_SHARE * host_bytes(), rel=1e-6)
