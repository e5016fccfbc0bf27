"""Schemes are found by looking, and each says what it trains."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from lab import SPEC

import aggregator.schemes as package
from aggregator.affinity import AffinityTotal, empty_affinity
from aggregator.schemes import find_scheme, schemes
from aggregator.schemes.base import Results


def test_a_new_file_is_a_new_scheme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "nothing.py").write_text(
        "class Nothing:\n"
        "    name = 'nothing'\n"
        "    def faults(self, spec): return ['it does nothing']\n"
        "SCHEME = Nothing()\n"
    )
    monkeypatch.setattr(package, "__path__", [*package.__path__, str(tmp_path)])
    try:
        assert sorted(schemes()) == ["all-in-one", "mas", "nothing", "one-by-one"]
        assert find_scheme("nothing").faults(SPEC) == ["it does nothing"]
    finally:
        sys.modules.pop("aggregator.schemes.nothing", None)


def test_an_unknown_scheme_names_the_known_ones() -> None:
    with pytest.raises(ValueError, match="'tag'; known are all-in-one, mas, one-by-one"):
        find_scheme("tag")


def test_one_by_one_names_its_splits_by_letter() -> None:
    stage = find_scheme("one-by-one").first(SPEC, ())
    assert [(plan.split, plan.tasks, plan.first_round, plan.last_round) for plan in stage.splits] == [
        ("s", ("segment_semantic",), 0, 3), ("d", ("depth_zbuffer",), 0, 3), ("n", ("normal",), 0, 3)
    ]  # fmt: skip


def test_mas_continues_from_the_merged_model_in_the_best_groups() -> None:
    # 0 and 1 help each other, 2 is harmed by both.
    sums = ((0.0, 2.0, -2.0), (2.0, 0.0, -2.0), (0.0, 0.0, 0.0))
    stage = find_scheme("mas").following(SPEC, (), 0, Results(AffinityTotal(SPEC.tasks, sums, batches=2, rounds=(0,))))
    assert stage is not None
    assert [(plan.split, plan.tasks, plan.parent, plan.first_round) for plan in stage.splits] == [
        ("split-0", SPEC.tasks[:2], "merged", 2), ("split-1", SPEC.tasks[2:], "merged", 2)
    ]  # fmt: skip
    assert stage.decision is not None
    # Means over 2 batches: (1 + 1 + (-1 - 1 + 0 + 0) / 4) / 3.
    assert stage.decision.score == pytest.approx(0.5)
    assert find_scheme("mas").following(SPEC, (), 1, Results()) is None


def test_mas_does_not_guess() -> None:
    for affinity in (None, empty_affinity(SPEC.tasks)):
        with pytest.raises(ValueError, match="no "):
            find_scheme("mas").following(SPEC, (), 0, Results(affinity))
