"""Schemes are found by looking, each says what it trains, and faults of their settings are all named at once."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path

import msgspec
import pytest
from lab import SPEC, Lab

import aggregator.schemes as package
from aggregator.affinity import AffinityTotal, empty_affinity
from aggregator.coordinator import spec_faults
from aggregator.schemes import find_scheme, schemes
from aggregator.schemes.base import Results, SplitPlan, Stage
from aggregator.schemes.random_split import partition_of, stirling
from models.tasks import letters
from models.wire.job import JobSpec, TrainSettings

ALL = [
    "all-in-one", "all-in-one-restart", "every-group", "fedprox", "given-split", "gradnorm", "hoa", "mas",
    "one-by-one", "random-split", "split-from-scratch", "standalone", "tag",
]  # fmt: skip
AGENTS = ("a0", "a1", "a2")
# s and d help each other, n is harmed by both; two batches.
HELP = AffinityTotal(SPEC.tasks, ((0.0, 2.0, -2.0), (2.0, 0.0, -2.0), (0.0, 0.0, 0.0)), batches=2, rounds=(0,))
MEASURED = Results(HELP)


def spec(scheme: str, **changes: object) -> JobSpec:
    return msgspec.structs.replace(SPEC, scheme=scheme, **changes)


def first(scheme: str, **changes: object) -> Stage:
    return find_scheme(scheme).first(spec(scheme, **changes), AGENTS)


def following(scheme: str, results: Results = MEASURED, **changes: object) -> Stage:
    found = find_scheme(scheme).following(spec(scheme, **changes), AGENTS, 0, results)
    assert found is not None
    return found


def rounds_of(stage: Stage) -> dict[str, tuple[int, int, str | None]]:
    return {plan.split: (plan.first_round, plan.last_round, plan.parent) for plan in stage.splits}


def served(stage: Stage) -> dict[str, str]:
    return {plan.split: letters(plan.tasks if plan.serves is None else plan.serves) for plan in stage.splits}


def test_a_new_file_is_a_new_scheme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "nothing.py").write_text(
        "class Nothing:\n"
        "    name = 'nothing'\n"
        "    def faults(self, spec): return ['it does nothing']\n"
        "SCHEME = Nothing()\n"
    )
    monkeypatch.setattr(package, "__path__", [*package.__path__, str(tmp_path)])
    try:
        assert sorted(schemes()) == sorted([*ALL, "nothing"])
        assert find_scheme("nothing").faults(SPEC) == ["it does nothing"]
    finally:
        sys.modules.pop("aggregator.schemes.nothing", None)


def test_an_unknown_scheme_names_the_known_ones() -> None:
    with pytest.raises(ValueError, match=f"'mass'; known are {', '.join(ALL)}"):
        find_scheme("mass")


def test_one_by_one_names_its_splits_by_letter() -> None:
    assert rounds_of(first("one-by-one")) == {"s": (0, 3, None), "d": (0, 3, None), "n": (0, 3, None)}


def test_mas_continues_from_the_merged_model_in_the_best_groups() -> None:
    assert [plan.probe_rounds for plan in first("mas").splits] == [1]
    stage = following("mas")
    assert rounds_of(stage) == {"sd": (2, 3, "merged"), "n": (2, 3, "merged")}
    assert {plan.lr_from for plan in stage.splits} == {0}
    assert stage.decision is not None
    # Means over 2 batches: (1 + 1 + (-1 - 1 + 0 + 0) / 4) / 3.
    assert stage.decision.score == pytest.approx(0.5)
    assert find_scheme("mas").following(SPEC, AGENTS, 1, Results()) is None
    assert {plan.lr_from for plan in following("mas", lr_restarts=True).splits} == {2}


@pytest.mark.parametrize("scheme", ["mas", "tag", "split-from-scratch", "random-split", "every-group"])
def test_what_was_not_measured_is_not_guessed(scheme: str) -> None:
    for affinity in (None, empty_affinity(SPEC.tasks)):
        with pytest.raises(ValueError, match="no "):
            following(scheme, Results(affinity))


def test_tag_measures_throughout_and_trains_its_groups_from_new_weights() -> None:
    measuring = first("tag")
    assert rounds_of(measuring) == {"merged": (0, 3, None)}
    assert [(plan.probe_rounds, plan.serves) for plan in measuring.splits] == [(4, ())]
    # n gains -1 from either and 0 alone, so that it stays alone.
    stage = following("tag")
    assert rounds_of(stage) == {"sd": (0, 3, None), "n": (0, 3, None)}
    assert stage.decision is not None
    assert stage.decision.score == pytest.approx(2 / 3)


def test_tag_lets_groups_overlap() -> None:
    # d helps everyone; s and n harm each other, and harm d: d is best alone, the others best with d and nobody else.
    sums = ((0.0, -1.0, -9.0), (5.0, 0.0, 5.0), (-9.0, -1.0, 0.0))
    stage = following("tag", Results(AffinityTotal(SPEC.tasks, sums, batches=1, rounds=(0,))), max_splits=3)
    assert served(stage) == {"sd": "s", "d": "d", "dn": "n"}


def test_hoa_serves_singles_and_pairs_as_they_are_and_trains_larger_groups() -> None:
    begun = first("hoa")
    assert [plan.split for plan in begun.splits] == ["s", "d", "n", "sd", "sn", "dn"]
    assert all(plan.validate and plan.serves == () and plan.parent is None for plan in begun.splits)
    pairs = {"sd": (1.0, 1.0), "sn": (3.0, 3.0), "dn": (3.0, 3.0)}
    losses = {name: dict(zip(_tasks(name), both, strict=True)) for name, both in pairs.items()}
    losses |= {letter: {_tasks(letter)[0]: 2.0} for letter in "sdn"}
    stage = following("hoa", Results(None, losses))
    assert stage.splits == ()
    assert {split: letters(tasks) for split, tasks in stage.also_serve.items()} == {"sd": "sd", "n": "n"}
    assert stage.decision is not None
    assert stage.decision.score == pytest.approx(-4 / 3)
    losses |= {letter: {_tasks(letter)[0]: 9.0} for letter in "sdn"}
    stage = following("hoa", Results(None, losses), max_splits=1)
    assert rounds_of(stage) == {"sdn": (0, 3, None)}
    assert stage.also_serve == {}


def test_hoa_says_which_losses_it_lacks() -> None:
    with pytest.raises(ValueError, match=r"no validation loss of segment_semantic in split s, .* in split dn"):
        following("hoa", Results())


def _tasks(name: str) -> tuple[str, ...]:
    return tuple({"s": SPEC.tasks[0], "d": SPEC.tasks[1], "n": SPEC.tasks[2]}[letter] for letter in name)


def test_gradnorm_and_fedprox_change_how_devices_train_and_nothing_else() -> None:
    weighted, pulled, plain = (first(name).splits[0] for name in ("gradnorm", "fedprox", "all-in-one"))
    assert weighted.train == msgspec.structs.replace(SPEC.train, loss_weighting="gradnorm")
    assert pulled.train == msgspec.structs.replace(SPEC.train, prox_mu=0.01)
    assert msgspec.structs.replace(weighted, train=None) == msgspec.structs.replace(pulled, train=None) == plain
    other = first("gradnorm", options={"alpha": 0.5, "lr": 1}).splits[0].train
    assert other is not None
    assert (other.gradnorm_alpha, other.gradnorm_lr) == (0.5, 1.0)


def test_standalone_has_a_split_for_each_device_once_there_are_enough() -> None:
    assert [(plan.split, plan.agents) for plan in first("standalone").splits] == [(name, (name,)) for name in AGENTS]
    assert first("standalone", clients_per_round=4).splits == ()


def test_split_from_scratch_takes_the_split_of_mas_without_its_weights() -> None:
    assert rounds_of(following("split-from-scratch")) == {"sd": (2, 3, None), "n": (2, 3, None)}
    whole = following("split-from-scratch", options={"rounds": "all"})
    assert rounds_of(whole) == {"sd": (0, 3, None), "n": (0, 3, None)}
    assert whole.decision == following("mas").decision


def test_a_random_split_has_as_many_groups_as_that_of_mas() -> None:
    drawn = Counter(tuple(rounds_of(following("random-split", seed=seed))) for seed in range(60))
    assert set(drawn) == {("sd", "n"), ("sn", "d"), ("s", "dn")}
    assert min(drawn.values()) > 10
    other = {tuple(rounds_of(following("random-split", options={"draw": draw}))) for draw in range(20)}
    assert other == set(drawn)
    asked = following("random-split", Results(), options={"groups": 3})
    assert len(asked.splits) == 3
    assert asked.splits[0].parent == "merged"
    assert [plan.probe_rounds for plan in first("random-split", options={"groups": 3}).splits] == [0]


def test_every_lot_is_another_partition() -> None:
    found = {tuple(sorted(map(tuple, partition_of(5, 3, ticket)))) for ticket in range(stirling(5, 3))}
    assert len(found) == 25 == stirling(5, 3)
    assert all(sorted(sum(each, ())) == [0, 1, 2, 3, 4] for each in found)


def test_a_given_split_is_written_in_letters_or_names() -> None:
    groups = {"groups": ["ns", "depth_zbuffer"]}
    assert rounds_of(first("given-split", options=groups)) == {"merged": (0, 1, None)}
    assert rounds_of(following("given-split", options=groups)) == {"sn": (2, 3, "merged"), "d": (2, 3, "merged")}
    scratch = {**groups, "start": "scratch"}
    assert rounds_of(first("given-split", options=scratch)) == {"sn": (0, 3, None), "d": (0, 3, None)}
    assert find_scheme("given-split").following(spec("given-split", options=scratch), AGENTS, 0, Results()) is None


def test_the_restart_control_is_one_group_with_a_new_schedule() -> None:
    stage = following("all-in-one-restart", Results())
    assert stage.splits == (SplitPlan("sdn", SPEC.tasks, 2, 3, parent="merged", lr_from=2),)


def test_every_group_continues_all_proper_groups_and_serves_none() -> None:
    stage = following("every-group")
    expected = {letters(group) for size in (1, 2) for group in combinations(SPEC.tasks, size)}
    assert served(stage) == dict.fromkeys(expected, "")
    assert stage.decision == following("mas").decision


@pytest.mark.parametrize(
    "scheme, changes, faults",
    [
        ("mass", {}, [f"unknown scheme 'mass'; known are {', '.join(ALL)}"]),
        ("mas", {"options": {"k": 3}}, ["scheme mas has no option 'k'; it has exactly, affinity"]),
        (
            "mas",
            {"options": {"k": 3}, "merge_rounds": 4, "max_splits": 4},
            [
                "scheme mas has no option 'k'; it has exactly, affinity",
                "merge_rounds is 4, but must be below rounds, 4",
                "max_splits is 4, but there are only 3 tasks to split",
            ],
        ),
        (
            "gradnorm",
            {"options": {"alpha": "much", "lr": -1.0}, "tasks": SPEC.tasks[:1], "lr_restarts": True},
            [
                "option 'alpha' is 'much': Expected `float`, got `str`",
                "option 'lr' is -1.0: Expected `float` >= 0.0",
                "lr_restarts is set, but scheme gradnorm has no split from merged weights to restart at",
                "one task has nothing to be weighted against; give gradnorm at least two",
            ],
        ),
        (
            "fedprox",
            {"train": TrainSettings(prox_mu=0.1)},
            ["train.prox_mu is set, but scheme fedprox takes its option 'mu'"],
        ),
        (
            "gradnorm",
            {"train": TrainSettings(gradnorm_alpha=0.5, gradnorm_lr=0.1)},
            [
                "train.gradnorm_alpha is set, but scheme gradnorm takes its option 'alpha'",
                "train.gradnorm_lr is set, but scheme gradnorm takes its option 'lr'",
            ],
        ),
        ("given-split", {}, ["scheme given-split needs the option 'groups'"]),
        (
            "given-split",
            {"options": {"groups": ["sx", "nk", "ss", ""], "start": "warm"}},
            ["option 'start' is 'warm': Invalid enum value 'warm'"],
        ),
        (
            "given-split",
            {"options": {"groups": ["nk", "sn"]}, "merge_rounds": 9},
            [
                "merge_rounds is 9, but must be below rounds, 4",
                "group 'nk': the job has no task keypoints2d",
                "task normal is in 2 groups",
                "task depth_zbuffer is in none of the groups",
            ],
        ),
        ("random-split", {"options": {"groups": 4}}, ["option 'groups' is 4, but there are only 3 tasks to split"]),
        ("tag", {"tasks": SPEC.tasks[:1]}, ["one task cannot be split; give scheme tag more, or take all-in-one"]),
    ],
)
def test_faults_of_the_settings_are_all_named(scheme: str, changes: dict[str, object], faults: list[str]) -> None:
    found = spec_faults(spec(scheme, **changes))
    assert [fault for fault in faults if fault not in found] == []


@pytest.mark.parametrize("scheme", ALL)
def test_no_scheme_stumbles_over_a_spec_that_is_wrong_all_over(scheme: str) -> None:
    found = spec_faults(spec(scheme, tasks=("nonsense", "normal", "normal"), options={"groups": ["?"], "mu": "x"}))
    assert any("nonsense" in fault for fault in found)
    assert len(found) >= 3
    assert spec_faults(spec(scheme, tasks=()))[0] == "no task is given"


def _install(folder: Path, entries: str, module: str) -> None:
    info = folder / "rivals-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: rivals\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[mas_edge.schemes]\n{entries}")
    (folder / "rivals_of_a_test.py").write_text(module)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that packages are found in; the schemes are looked for anew."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(package, "__path__", [*package.__path__, str(tmp_path / "none")])
    yield tmp_path
    sys.modules.pop("rivals_of_a_test", None)


def test_a_scheme_of_another_package_is_one_of_ours(site: Path) -> None:
    _install(
        site,
        "twice = rivals_of_a_test:TWICE\n",
        "import msgspec\n"
        "from aggregator.schemes.base import SplitPlan, Stage\n"
        "class Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True):\n"
        "    times: int = 2\n"
        "class Twice:\n"
        "    name, options = 'twice', Options\n"
        "    def faults(self, spec): return []\n"
        "    def first(self, spec, agents): return Stage('training', (SplitPlan('a', spec.tasks, 0, 3),))\n"
        "    def following(self, spec, agents, stage, results): return None\n"
        "TWICE = Twice()\n",
    )
    assert sorted(schemes()) == sorted([*ALL, "twice"])
    assert spec_faults(spec("twice", options={"times": 3})) == []
    assert spec_faults(spec("twice", options={"time": 3})) == ["scheme twice has no option 'time'; it has times"]
    assert Lab().fleet(2).submit(scheme="twice").run().record().state == "deployed"


def test_what_is_no_scheme_is_said_with_its_package(site: Path) -> None:
    entries = "mas = rivals_of_a_test:MAS\nnumber = rivals_of_a_test:NUMBER\nother = rivals_of_a_test:MAS\n"
    _install(site, entries, "from aggregator.schemes.mas import SCHEME as MAS\nNUMBER = 5\n")
    (fault,) = spec_faults(spec("mas"))
    for part in (
        "rivals 1.0, entry point mas = rivals_of_a_test:MAS of mas_edge.schemes: name mas is taken by mas-edge itself",
        "number = rivals_of_a_test:NUMBER of mas_edge.schemes: fails with TypeError: it must load to a scheme",
        "the scheme's name is 'mas', but the entry point is called other",
    ):
        assert part in fault
