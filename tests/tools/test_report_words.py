"""What the report says in words: figures as read, and a headline that follows its numbers in both directions."""

from __future__ import annotations

from typing import Any

import pytest
import report_runs as runs

from tools.report import words
from tools.report.view import Scheme, read_schemes


def schemes(**changes: dict[str, Any]) -> dict[str, Scheme]:
    """One-by-one 100 J and loss 2.4; all-in-one 40 J and 2.55; MAS 46 J and 2.31; `changes` by scheme."""
    base = {"state": "deployed", "energy_state": "estimated"}
    made = {
        "one-by-one": {**base, "energy_j": 100.0, "total_loss": 2.4, "train_s": 50.0},
        "all-in-one": {**base, "energy_j": 40.0, "total_loss": 2.55, "train_s": 20.0},
        "mas": {**base, "energy_j": 46.0, "total_loss": 2.31, "train_s": 25.0},
    }
    for name, change in changes.items():
        made[name.replace("_", "-")] |= change
    return read_schemes(made, {})


def headline(**changes: dict[str, Any]) -> str:
    return str(words.headline(schemes(**changes)).striptags())


def test_the_usual_outcome() -> None:
    assert headline() == (
        "MAS used 0.46 of one-by-one’s estimated joules. "
        "Its total loss on held-out pictures is 2.310: lower than one-by-one’s 2.400 and all-in-one’s 2.550."
    )


def test_a_worse_loss_is_called_higher() -> None:
    said = headline(mas={"total_loss": 2.5})
    assert "is 2.500: lower than all-in-one’s 2.550, higher than one-by-one’s 2.400." in said
    assert "higher than one-by-one’s 2.400 and all-in-one’s 2.550." in headline(mas={"total_loss": 3.0})


def test_losses_that_print_alike_are_called_the_same() -> None:
    assert "the same as one-by-one’s 2.400" in headline(mas={"total_loss": 2.4004})


def test_a_dearer_run_is_not_sold_as_a_saving() -> None:
    assert headline(mas={"energy_j": 130.0}).startswith("MAS used 1.30 times one-by-one’s estimated joules.")


def test_states_that_differ_are_both_named() -> None:
    said = headline(mas={"energy_state": "measured"})
    assert said.startswith(
        "MAS used 0.46 of one-by-one’s joules, though MAS’s are measured and one-by-one’s estimated."
    )


def test_incomplete_sums_are_bounds() -> None:
    assert headline(mas={"energy_state": "partial"}).startswith(
        "MAS used at least 0.46 of one-by-one’s joules, though MAS’s are incomplete and one-by-one’s estimated."
    )
    assert "at most 0.46 of" in headline(one_by_one={"energy_state": "partial"})
    both = schemes(mas={"energy_state": "partial"}, one_by_one={"energy_state": "partial"})
    assert words.relative_text(both["mas"], both["one-by-one"]) == "≈ 0.46"
    assert words.relative_text(both["all-in-one"], both["one-by-one"]) == "≤ 0.40 (estimated against incomplete)"
    assert words.relative_text(both["one-by-one"], both["one-by-one"]) == "1.00"


def test_joules_of_unlike_scopes_are_not_divided() -> None:
    said = schemes(mas={"energy_scope": "module"}, one_by_one={"energy_scope": "wall"})
    assert words.relative(said["mas"], said["one-by-one"]) is None
    assert words.relative_text(said["mas"], said["one-by-one"]) == "– (module against wall)"
    assert headline(mas={"energy_scope": "module"}, one_by_one={"energy_scope": "wall"}).startswith(
        "MAS’s joules and one-by-one’s do not compare: they cover module against wall."
    )
    alike = schemes(mas={"energy_scope": "wall"}, one_by_one={"energy_scope": "wall"})
    assert words.relative_text(alike["mas"], alike["one-by-one"]) == "0.46"


def test_a_figure_says_how_far_to_trust_it() -> None:
    said = schemes(
        mas={
            "energy_scope": "module",
            "energy_coverage": 0.975,
            "energy_uncertainty_j": 1.5,
            "energy_state": "measured",
        }
    )
    assert words.trust(said["mas"].energy) == "± 1.50 J, module, 98 % covered"
    assert words.trust(said["one-by-one"].energy) == ""


def test_unknown_joules_fall_back_to_time() -> None:
    said = headline(one_by_one={"energy_state": "missing", "energy_j": None})
    assert said.startswith("No joules are known for one-by-one; MAS took 0.50 of one-by-one’s training time.")
    none = headline(one_by_one={"energy_state": "missing", "energy_j": None, "train_s": None})
    assert none.startswith("No joules are known for one-by-one. Its total loss on held-out pictures is 2.310")


def test_what_did_not_finish_is_not_compared() -> None:
    said = headline(one_by_one={"state": "failed"})
    assert said == (
        "MAS used 46.0 J (estimated). Its total loss on held-out pictures is 2.310: lower than all-in-one’s 2.550. "
        "Not compared, because it did not finish: one-by-one."
    )


def test_mas_alone_compares_with_nothing() -> None:
    alone = {"mas": schemes()["mas"]}
    assert str(words.headline(alone).striptags()) == (
        "MAS used 46.0 J (estimated). Its total loss on held-out pictures is 2.310."
    )


def test_an_unknown_loss_is_said() -> None:
    assert headline(mas={"total_loss": None}).endswith("Its total loss on held-out pictures is not known.")


@pytest.mark.parametrize(
    "shown, expected",
    [
        (words.joules(None), "–"),
        (words.joules(0.0), "0 J"),
        (words.joules(0.01234), "0.0123 J"),
        (words.joules(999.4), "999 J"),
        (words.joules(999.7), "1.00 kJ"),
        (words.joules(2_345_678.0), "2.35 MJ"),
        (words.size(812), "812 B"),
        (words.size(61_000_000), "61.0 MB"),
        (words.duration(7.25), "7.25 s"),
        (words.duration(59.97), "1 min 00 s"),
        (words.elapsed(None), words.DASH),
        (words.elapsed(7.25), "7 s"),
        (words.elapsed(59.6), "1 min 00 s"),
        (words.duration(3_725.0), "1 h 02 min"),
        (words.loss(2.31), "2.310"),
        (words.percent(0.0123, 1), "+1.2 %"),
        (words.percent(-0.0123, 2), "−1.23 %"),
        (words.percent(-0.00001, 1), "0.0 %"),
        (words.tiny(2.4e-6), "2.4e-06"),
        (words.milliseconds(7.3), "7.30 ms"),
        (words.groups([("depth_zbuffer", "normal"), ("rgb",)]), "depth + normals | picture"),
    ],
)
def test_figures_as_read(shown: str, expected: str) -> None:
    assert shown == expected


@pytest.mark.parametrize(
    "largest, decimals", [(0.5, 0), (0.05, 1), (0.0123, 1), (0.005, 2), (0.0004, 3), (1e-9, 4), (0.0, 1)]
)
def test_percentages_keep_two_digits_of_the_largest(largest: float, decimals: int) -> None:
    assert words.percent_decimals([-largest, largest / 3]) == decimals


def test_settings_that_jobs_share_are_said_once() -> None:
    specs = {name: record["spec"] for name, record in runs.records().items()}
    specs["mas"]["max_splits"] = 3
    specs["mas"]["train"]["lr"] = 0.05
    (nobody, shared), *own = words.settings(specs)
    assert nobody == ""
    assert "tasks segment_semantic+depth_zbuffer+normal+keypoints2d+edge_texture" in shared
    assert "momentum 0.9" in shared
    assert "max_splits" not in shared
    assert own == [
        ("one-by-one", "max_splits 2, lr 0.1"),
        ("all-in-one", "max_splits 2, lr 0.1"),
        ("mas", "max_splits 3, lr 0.05"),
    ]
