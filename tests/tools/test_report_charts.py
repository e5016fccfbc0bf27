"""The report's curves, affinity and splits against values worked by hand, and its drawing pieces."""

from __future__ import annotations

import re
from itertools import pairwise
from typing import Any

import pytest
import report_runs as runs
from hypothesis import given
from hypothesis import strategies as st

from tools.report.affinity import grouped_order, heatmap, helped
from tools.report.charts import loss_chart
from tools.report.splitting import alternatives, reason, strands, task_css
from tools.report.svg import Scale, el, number, spread, ticks
from tools.report.view import energy_curve, read_schemes, spent_by_round, task_curve, total_curve


def tiny_record() -> dict[str, Any]:
    """Two tasks, one merged round, then one round each; joules 6 merged, 2 and 4 after."""

    def split(name: str, tasks: str, at: int, losses: dict[str, float], parent: str | None) -> dict[str, Any]:
        done = {"round": at, "attempt": 0, "test_losses": losses, "wall_s": 1.0, "dropped": []}
        return {
            "split": name,
            "tasks": list(tasks),
            "parent": parent,
            "first_round": at,
            "last_round": at,
            "rounds": [done],
        }

    def joules(name: str, energy_j: float | None) -> dict[str, Any]:
        state = "missing" if energy_j is None else "measured"
        return {
            "split": name, "phase": "train", "energy_j": energy_j, "state": state, "duration_s": 1.0, "cpu_s": 1.0,
            "source": "ina3221", "scope": "board", "reason": "",
        }  # fmt: skip

    return {
        "splits": [
            split("merged", "ab", 0, {"a": 3.0, "b": 2.0}, None),
            split("split-0", "a", 1, {"a": 1.0}, "merged"),
            split("split-1", "b", 1, {"b": 0.5}, "merged"),
        ],
        "energy": [joules("merged", 6.0), joules("split-0", 2.0), joules("split-1", 4.0)],
    }


def test_curves_follow_a_task_through_its_splits() -> None:
    scheme = read_schemes({"mas": tiny_record()}, {})["mas"]
    assert task_curve(scheme, "a") == ((1, 3.0), (2, 1.0))
    assert total_curve(scheme, "ab") == ((1, 5.0), (2, 1.5))
    assert spent_by_round(scheme) == {1: 6.0, 2: 12.0}
    assert energy_curve(scheme, "ab") == ((6.0, 5.0), (12.0, 1.5))
    assert scheme.split_round == 1


def test_a_total_needs_every_task() -> None:
    record = tiny_record()
    record["splits"][2]["rounds"][0]["test_losses"] = {}
    assert total_curve(read_schemes({"mas": record}, {})["mas"], "ab") == ((1, 5.0),)


def test_unknown_joules_draw_no_curve() -> None:
    record = tiny_record()
    record["energy"][1] |= {"energy_j": None, "state": "missing"}
    scheme = read_schemes({"mas": record}, {})["mas"]
    assert spent_by_round(scheme) is None
    assert energy_curve(scheme, "ab") == ()


def test_joules_spent_end_at_the_total() -> None:
    for scheme in read_schemes(runs.records(), {}).values():
        spent = spent_by_round(scheme)
        assert spent is not None
        assert max(spent) == runs.ROUNDS
        assert spent[runs.ROUNDS] == pytest.approx(scheme.energy.energy_j)


def test_shares_by_hand() -> None:
    affinity = {"tasks": ["a", "b", "c"], "matrix": [[9.0, 0.2, 0.1], [0.4, 9.0, 0.3], [-0.1, 0.5, 9.0]]}
    shares = helped(affinity, [("a", "b"), ("c",)])
    assert shares == pytest.approx({"a": 0.4, "b": 0.2, "c": (0.1 + 0.3 - 0.1 + 0.5) / 4})


def test_shares_average_to_the_score_of_the_decision() -> None:
    record = runs.record("mas")
    shares = helped(record["affinity"], record["decision"]["splits"])
    assert sum(shares.values()) / len(shares) == pytest.approx(record["decision"]["score"])


def test_an_incomplete_share_is_left_out() -> None:
    affinity = {"tasks": ["a", "b"], "matrix": [[1.0, None], [0.4, 1.0]]}
    assert helped(affinity, [("a", "b")]) == {"a": 0.4}


def test_tasks_are_ordered_by_split() -> None:
    assert grouped_order(["a", "b", "c", "d"], [("c", "a"), ("d", "x")]) == (["c", "a", "d", "b"], [2, 1, 1])


def test_heatmap_cells() -> None:
    drawn = str(heatmap({"tasks": ["depth_zbuffer", "normal"], "matrix": [[0.05, -0.02], [0.04, 0.06]]}, []))
    assert "depth → normals: −2.0 %" in drawn
    assert "normals → depth: +4.0 %" in drawn
    assert drawn.count("(a task&#39;s effect on itself is not used)") == 2
    assert re.search(r'class="cell hurts" fill-opacity="0.44"', drawn)  # 0.08 + 0.72 * (0.02 / 0.04)
    assert re.search(r'class="cell helps" fill-opacity="0.8"', drawn)  # the largest off the diagonal


def test_runners_up_are_ranked_and_the_chosen_is_listed_once() -> None:
    decision = {
        "splits": [["a", "b"], ["c"]], "score": 0.02, "max_splits": 2,
        "alternatives": [
            {"splits": [["a"], ["b", "c"]], "score": -0.01},
            {"splits": [["c"], ["b", "a"]], "score": 0.02},
            {"splits": [["a", "b", "c"]], "score": 0.015},
        ],
    }  # fmt: skip
    ranked = alternatives(decision)
    assert [(entry.score, entry.chosen) for entry in ranked] == [(0.02, True), (0.015, False), (-0.01, False)]
    assert [entry.width for entry in ranked] == pytest.approx([1.0, 0.75, 0.5])
    assert "The runner-up, a + b + c, scored +1.50 %: a lead of 0.50 points." in reason(decision)


def test_only_a_scheme_that_split_has_strands() -> None:
    schemes = read_schemes(runs.records(), {})
    assert strands(schemes["all-in-one"], runs.TASKS, {}) is None
    drawn = strands(schemes["mas"], runs.TASKS, {})
    assert drawn is not None
    assert drawn.count('class="strand') == len(runs.TASKS)


def test_a_chart_names_its_lines_and_marks_the_split() -> None:
    schemes = list(read_schemes(runs.records(), {}).values())
    drawn = str(loss_chart(schemes, runs.TASKS, "normal"))
    assert drawn.count("<polyline") == 3
    assert all(f'class="label">{name}</tspan>' in drawn for name in runs.SCHEMES)
    assert "MAS splits" in drawn
    assert "mas, after 30 rounds: normals loss" in drawn


def test_one_point_makes_a_chart() -> None:
    record = tiny_record()
    record["splits"] = record["splits"][:1]
    assert "<circle" in str(loss_chart(list(read_schemes({"mas": record}, {}).values()), "ab", None))


def test_unknown_tasks_get_colours_of_their_own() -> None:
    assert task_css("depth_zbuffer", []) == "t-d"
    assert len({task_css(task, "xyz") for task in "xyz"}) == 3


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_coordinates_must_be_finite(value: float) -> None:
    with pytest.raises(ValueError, match="leave the point out"):
        number(value)


def test_elements_escape() -> None:
    assert el("text", "<b>&", class_='"x') == '<text class="&#34;x">&lt;b&gt;&amp;</text>'


@given(st.floats(-1e3, 1e3), st.floats(1e-3, 1e6), st.integers(1, 9))
def test_ticks_are_round_and_inside(low: float, span: float, count: int) -> None:
    high = low + span
    values = ticks(low, high, count)
    assert all(low - span * 1e-6 <= value <= high + span * 1e-6 for value in values)
    steps = [after - before for before, after in pairwise(values)]
    assert all(step == pytest.approx(steps[0], rel=1e-3) for step in steps)
    assert len(values) <= count + 1


@given(st.lists(st.floats(0, 200), min_size=1, max_size=6))
def test_labels_keep_their_distance_and_order(wanted: list[float]) -> None:
    placed = spread(wanted, 15.0, 0.0, 200.0)
    assert all(0 <= position <= 200 for position in placed)
    ordered = [placed[index] for index in sorted(range(len(wanted)), key=lambda index: wanted[index])]
    assert all(after - before >= 15.0 - 1e-9 for before, after in pairwise(ordered))


def test_a_flat_range_maps_to_the_middle() -> None:
    assert Scale(2.0, 2.0, 0.0, 10.0)(2.0) == 5.0
