"""An experiment's file: what it expands to, and that everything wrong with it is said at once, before any training."""

from __future__ import annotations

from pathlib import Path

import pytest

from models.config import ConfigError
from tools.demo.plan import PACK
from tools.experiment.run import Wanted, prepare
from tools.experiment.spec import load_experiment

HEAD = """
name = "small"
data = "demo-pack"
seeds = [0, 1]
clients = 4
[job]
tasks = "kt"
size = 32
rounds = 4
merge_rounds = 2
clients_per_round = 2
train.lr = 0.05
"""
PROTOCOLS = Path(__file__).parents[2] / "docs" / "results"


def written(tmp_path: Path, rows: str, head: str = HEAD) -> Path:
    path = tmp_path / "spec.toml"
    path.write_text(head + rows)
    return path


def test_a_sweep_makes_a_row_for_every_combination_with_its_own_name(tmp_path: Path) -> None:
    rows = '[[row]]\nname = "mas-{max_splits}"\nscheme = "mas"\nquestions = ["Q5"]\nset.train.momentum = 0.5\n'
    rows += "sweep.max_splits = [1, 2]\nsweep.train.lr = [0.1, 0.2]\n"
    experiment, faults = load_experiment(written(tmp_path, rows))
    assert not faults
    assert [row.name for row in experiment.rows] == ["mas-1-lr-0.1", "mas-1-lr-0.2", "mas-2-lr-0.1", "mas-2-lr-0.2"]
    last = experiment.rows[-1]
    assert (last.job.max_splits, last.job.train.lr, last.job.train.momentum, last.job.rounds) == (2, 0.2, 0.5, 4)
    assert last.job.tasks == ("keypoints2d", "edge_texture")
    assert last.settings == {"train.momentum": 0.5, "max_splits": 2, "train.lr": 0.2}
    assert (last.questions, last.seeds, last.mode) == (("Q5",), (0, 1), "simulate")


def test_rows_have_seeds_and_tasks_and_options_of_their_own(tmp_path: Path) -> None:
    rows = (
        '[[row]]\nname = "g"\nscheme = "given-split"\nseeds = [7]\nset.tasks = "sd"\nset.options.groups = ["s", "d"]\n'
    )
    experiment, _ = load_experiment(written(tmp_path, rows))
    (row,) = experiment.rows
    assert row.seeds == (7,)
    assert row.job.tasks == ("segment_semantic", "depth_zbuffer")
    assert row.job.options == {"groups": ["s", "d"]}


def test_every_fault_of_file_rows_data_and_disk_is_named_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = """
[[row]]
name = "typo"
scheme = "masss"
[[row]]
name = "Bad Name"
scheme = "mas"
set.train.learning_rate = 1
[[row]]
name = "late"
scheme = "mas"
set.merge_rounds = 4
[[row]]
name = "twice"
scheme = "all-in-one"
set.rounds = -1
[[row]]
name = "no-such-task"
scheme = "mas"
set.tasks = "kx"
[[row]]
name = "swept"
scheme = "mas"
questions = ["Q9"]
[[row]]
name = "big"
scheme = "mas"
set.train.batch_size = 500
[[row]]
name = "late"
scheme = "all-in-one"
"""
    monkeypatch.setattr("tools.experiment.folder.SPARE_BYTES", 2**62)
    with pytest.raises(ConfigError) as caught:
        prepare(Wanted(written(tmp_path, rows), out=tmp_path / "out"), make=True)
    text = str(caught.value)
    for expected in (
        "row 'typo': unknown scheme 'masss'",
        "row 'Bad Name': unknown key train.learning_rate",
        "row 'Bad Name': name = 'Bad Name'",
        "row 'late': merge_rounds is 4, but must be below rounds, 4",
        "row 'twice': rounds = -1",
        "row 'no-such-task': unknown task 'kx'",
        "row 'swept': questions = ['Q9']",
        "fewer than a batch of 500",
        "row 'late' is given 2 times",
        "free some space",
    ):
        assert expected in text
    assert not (tmp_path / "out").exists(), "nothing is begun"


@pytest.mark.parametrize(
    "head, said",
    [
        (HEAD + 'colour = "red"\n', "unknown key colour"),
        (HEAD.replace("seeds = [0, 1]", "seeds = []"), "seeds"),
        (HEAD.replace("[job]", "[job]\nseed = 3"), "job.seed is given by the rows"),
        (HEAD.replace("clients = 4", "clients = 99"), "clients = 99"),
        (HEAD.replace("demo-pack", "nowhere"), "nowhere has no mas-dataset.json"),
        (HEAD.replace('data = "demo-pack"', ""), "give --data"),
        (
            HEAD.replace("clients = 4", 'train = ["alder", "oak"]\ntest = ["oak"]'),
            "oak are for training and for testing",
        ),
    ],
)
def test_faults_of_the_file_itself(tmp_path: Path, head: str, said: str) -> None:
    head = head if "colour" not in head else 'colour = "red"\n' + HEAD
    with pytest.raises(ConfigError, match=said):
        prepare(Wanted(written(tmp_path, '[[row]]\nname = "a"\nscheme = "all-in-one"\n', head)), make=True)


def test_a_row_that_is_not_there_cannot_be_chosen(tmp_path: Path) -> None:
    path = written(tmp_path, '[[row]]\nname = "a"\nscheme = "all-in-one"\n')
    with pytest.raises(ConfigError, match="no row is called b; there are a"):
        prepare(Wanted(path, only=("b",)), make=True)


def test_runs_are_planned_seed_by_seed_with_a_command_and_a_cost_each(tmp_path: Path) -> None:
    rows = '[[row]]\nname = "a"\nscheme = "all-in-one"\n[[row]]\nname = "o"\nscheme = "one-by-one"\n'
    path = written(tmp_path, rows)
    prepared = prepare(Wanted(path, out=tmp_path / "out", data=PACK), make=True)
    assert [(plan.row, plan.seed, plan.spec.seed) for plan in prepared.plans] == [
        ("a", 0, 0),
        ("o", 0, 0),
        ("a", 1, 1),
        ("o", 1, 1),
    ]
    assert prepared.plans[1].command == (
        f"mas experiment run {path} --data {PACK} --only o --seed 0 --out repeat-o-seed0"
    )
    assert all(plan.predicted is not None and plan.predicted.flops.total > 0 for plan in prepared.plans)


@pytest.mark.parametrize("name", ["protocol.toml", "protocol-quick.toml"])
def test_the_committed_protocols_are_without_fault_and_ask_all_eight_questions(name: str) -> None:
    experiment, faults = load_experiment(PROTOCOLS / name)
    assert not faults
    assert {question for row in experiment.rows for question in row.questions} == {f"Q{n}" for n in range(1, 9)}
    schemes = {row.job.scheme for row in experiment.rows}
    assert {"one-by-one", "all-in-one", "gradnorm", "fedprox", "mas", "tag", "hoa", "standalone"} <= schemes
    assert {"split-from-scratch", "random-split", "all-in-one-restart", "every-group"} <= schemes
    assert {"mas-2", "mas-3", "tag-2", "hoa-2"} <= {row.name for row in experiment.rows}
