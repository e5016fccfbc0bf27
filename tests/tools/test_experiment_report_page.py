"""The report as files: its JSON's schema, the same figures in all three, unfinished grids, and hostile text."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import experiment_runs as made
import msgspec
import pytest
from markupsafe import escape

from tools.experiment.report import write_report
from tools.experiment.report.costs import COUNTED, JOULES, ratio_to_one_by_one
from tools.experiment.report.document import NothingToReportError, document, read_document
from tools.experiment.report.facts import headline
from tools.experiment.report.markdown import code, markdown
from tools.experiment.report.markdown import escape as plain_text
from tools.experiment.report.page import render
from tools.experiment.report.plots import cost_plot, published_points
from tools.experiment.report.published import PUBLISHED, hours_ratio, loss_ratio, published
from tools.experiment.report.rows import benches, final_groups
from tools.experiment.report.strips import drawn
from tools.experiment.run_record import Run, RunRecordError

ROW_KEYS = {"scheme", "mode", "splits", "seed", "total_loss", "losses", "energy_j", "energy_state", "flops", "wall_s"}
VERDICTS = {"holds", "does not hold", "mixed", "not enough data"}
VOID = {"meta", "br", "hr", "link", "img"}
HOSTILE = '<script>alert(1)</script> & "x" | `y` _z_'


class Page(HTMLParser):
    """Collects names, attributes and text; fails on elements that do not close in order."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str, str]] = []
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole grid with one diverged and one failed run, and its report."""
    runs = made.grid()
    plans = {plan.row: plan for plan in made.plans()}
    runs += [
        made.stopped(plans["tag-4"], 7, "diverged", "NaN in round 3"),
        made.stopped(plans["hoa-2"], 7, "failed", HOSTILE),
    ]
    where = made.write(tmp_path_factory.mktemp("grid"), runs)
    write_report(where)
    return where


@pytest.fixture(scope="module")
def told(folder: Path) -> dict[str, Any]:
    """The report's JSON."""
    return dict(json.loads((folder / "report.json").read_text()))


def test_the_json_has_every_run_with_the_keys_that_were_promised(told: dict[str, Any]) -> None:
    assert all(set(row) >= ROW_KEYS for row in told["rows"])
    assert len(told["rows"]) == 3 * len(made.plans()) + 2
    mas = next(row for row in told["rows"] if row["row"] == "mas-2" and row["seed"] == 1)
    run = made.run(next(plan for plan in made.plans() if plan.row == "mas-2"), 1)
    assert run.record is not None
    assert mas["splits"] == [list(group) for group in final_groups(run)]
    assert mas["total_loss"] == pytest.approx(run.record.total_loss)
    assert mas["flops"] == pytest.approx(run.flops.train + run.flops.affinity)
    assert (mas["mode"], mas["energy_state"]) == ("simulate", "estimated")


def test_the_json_answers_every_question(told: dict[str, Any]) -> None:
    assert list(told["questions"]) == [f"Q{number}" for number in range(1, 9)]
    for answer in told["questions"].values():
        assert answer["verdict"] in VERDICTS
        assert answer["rule"]
        assert answer["figures"]["claims"]
    assert told["questions"]["Q2"]["verdict"] == "holds"


def test_the_json_lists_all_fifty_partitions_by_loss(told: dict[str, Any]) -> None:
    found = told["sections"][0]["partitions"]
    assert len(found) == 50
    means = [sum(entry["losses"].values()) for entry in found]
    assert means == sorted(means)


def test_runs_that_stopped_enter_no_mean_and_are_shown(folder: Path, told: dict[str, Any]) -> None:
    stopped = [row for row in told["rows"] if row["state"] != "done"]
    assert [(row["state"], row["total_loss"], row["losses"]) for row in stopped] == [
        ("diverged", None, {}), ("failed", None, {}),
    ]  # fmt: skip
    page = (folder / "report.html").read_text()
    assert "NaN in round 3" in page
    assert "NaN in round 3" in (folder / "report.md").read_text()
    assert "3 of 4" in page


def test_the_page_is_complete_in_itself(folder: Path) -> None:
    page = (folder / "report.html").read_text()
    parsed = Page(page)
    assert "script" not in parsed.tags
    assert not [entry for entry in parsed.attributes if entry[1] in {"src", "srcset"}]
    assert all(value.startswith("#") for _, name, value in parsed.attributes if name == "href")
    assert "url(" not in page
    assert "@import" not in page


def test_text_of_a_run_is_text_on_the_page(folder: Path) -> None:
    page = (folder / "report.html").read_text()
    assert str(escape(HOSTILE)) in page
    assert "<script" not in page
    assert r"\<script\>alert(1)\</script\>" in (folder / "report.md").read_text()


def test_every_figure_of_the_table_is_in_page_and_markdown(folder: Path) -> None:
    found = read_document(folder)
    page, text = (folder / "report.html").read_text(), (folder / "report.md").read_text()
    for line in found.sections[0].lines:
        if line.loss is not None:
            assert f"{line.loss.mean:.3f}" in page
            assert f"| {line.loss.mean:.3f} ± {line.loss.half:.3f} |" in text
        assert str(escape(line.command)) in page
        assert f"`{line.command}`" in text


def test_every_verdict_and_rule_stands_on_the_page(folder: Path, told: dict[str, Any]) -> None:
    page = (folder / "report.html").read_text()
    for name, answer in told["questions"].items():
        assert f'id="{name}"' in page
        assert str(escape(answer["rule"])) in page
        assert str(escape(answer["reason"])) in page
    counts = {verdict: sum(a["verdict"] == verdict for a in told["questions"].values()) for verdict in VERDICTS}
    for verdict, count in counts.items():
        assert page.count(f'<span class="verdict">{verdict}</span>') == count


def test_markdown_tables_have_as_many_cells_in_every_row(folder: Path) -> None:
    blocks = re.findall(r"(?:^\|.*\n)+", (folder / "report.md").read_text(), re.M)
    assert len(blocks) > 10
    for block in blocks:
        counts = {len(re.findall(r"(?<!\\)\|", row)) for row in block.splitlines()}
        assert len(counts) == 1, block


@pytest.mark.parametrize("rows", [["mas-3"], ["one-by-one"], ["every-group"], ["tag-2", "all-in-one"]])
@pytest.mark.parametrize("seeds", [(0,), (0, 1)])
def test_a_grid_that_has_hardly_begun_has_a_report(rows: list[str], seeds: tuple[int, ...], tmp_path: Path) -> None:
    chosen = [plan for plan in made.plans() if plan.row in rows]
    files = write_report(made.write(tmp_path, made.grid(seeds, chosen)))
    Page(files.html.read_text())
    told = json.loads(files.json.read_text())
    assert any("published methods without a row here" in gap for gap in told["missing"])
    assert told["questions"]["Q1"]["verdict"] == "not enough data"
    assert files.markdown.read_text()


def test_what_the_plan_asks_for_and_has_not_run_is_named(tmp_path: Path) -> None:
    plans = [plan for plan in made.plans() if plan.row in {"mas-2", "one-by-one"}]
    made.write(tmp_path, [made.run(plans[0], 0), made.run(plans[0], 1), made.run(plans[1], 0)])
    (tmp_path / "experiment.toml").write_text(
        'name = "made-up"\nseeds = [0, 1]\n[job]\ntasks = "sdnkt"\n'
        '[[row]]\nname = "one-by-one"\nscheme = "one-by-one"\n[[row]]\nname = "mas-2"\nscheme = "mas"\n'
    )
    missing = read_document(tmp_path).missing
    assert missing[0] == "mas-2: seed 1 of 2 seeds has not run"
    assert not any(gap.startswith("one-by-one:") for gap in missing)


def test_without_a_run_there_is_nothing_to_report(tmp_path: Path) -> None:
    with pytest.raises(NothingToReportError, match="mas experiment run"):
        write_report(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_record_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    made.write(tmp_path, [made.run(made.plans()[0], 0)])
    broken = tmp_path / "runs" / "other-seed0" / "run.json"
    broken.parent.mkdir()
    broken.write_text("{}")
    with pytest.raises(RunRecordError, match="other-seed0"):
        write_report(tmp_path)


def test_other_tasks_are_another_section_and_never_compared() -> None:
    runs = made.grid((0, 1), made.plans()[:3])
    apart = [
        msgspec.structs.replace(run, spec=msgspec.structs.replace(run.spec, tasks=made.TASKS[:3]), row=f"{run.row}-sdn")
        for run in made.grid((0,), made.plans()[:2])
    ]
    found = document([*runs, *apart])
    assert [len(section.bench.tasks) for section in found.sections] == [5, 3]
    assert {run.seed for row in found.sections[1].bench.rows for run in row.runs} == {0}
    page = render(found)
    Page(page)
    assert page.count("Rows of another set-up are never compared with these.") == 2
    assert markdown(found).count("## Every scheme beside the published figures") == 2


def test_departures_name_a_row() -> None:
    labels = {row.name: row.label for row in benches(made.grid())[0].rows}
    assert labels["mas-2-r0-15"] == "MAS-2, R0 = 15"
    assert labels["mas-2-k-5"] == "MAS-2, K = 5"
    assert labels["mas-3"] == "MAS-3"


def test_options_that_count_groups_are_told_by_the_number_and_scaled_affinities_stand_apart() -> None:
    def grown(run: Run, **options: Any) -> Run:
        return msgspec.structs.replace(run, spec=msgspec.structs.replace(run.spec, options=options))

    runs = [
        grown(made.simple("mas", 0, 2.0, 1e12, k=3, row="mas-3"), exactly=True),
        grown(made.simple("mas", 0, 2.5, 1e12, k=3, row="mas-3-self"), exactly=True, affinity="self"),
        grown(made.simple("random-split", 0, 2.2, 1e12, k=2, row="random"), groups=4, draw=1),
        grown(made.simple("given-split", 0, 2.3, 1e12, k=2, row="given"), groups=["sdn", "kt"]),
    ]
    bench = benches(runs)[0]
    labels = {row.name: row.label for row in bench.rows}
    assert labels["mas-3"] == "MAS-3"
    assert labels["mas-3-self"] == "MAS-3, affinity = self"
    assert labels["random"] == "random split-4, draw 1"
    assert labels["given"] == "given-split, groups sdn|kt"
    # What the questions are asked of is the published affinity's row.
    asked = bench.row("mas", 3)
    assert asked is not None
    assert asked.name == "mas-3"


def test_the_published_figures_are_those_of_the_plot() -> None:
    assert len(PUBLISHED) == 12
    three = published("mas", 3)
    assert three is not None
    assert hours_ratio(three) == pytest.approx(0.576, abs=1e-3)
    assert loss_ratio(three) == pytest.approx(0.9204, abs=1e-4)
    assert published("mas", 5) is None


def test_a_plot_without_points_is_not_made() -> None:
    assert cost_plot([], "nothing", "cost") is None
    drawn = cost_plot(published_points(), "published", "hours")
    assert drawn is not None
    assert str(drawn).count("<circle") == 12


def test_markdown_escapes() -> None:
    assert plain_text("a|b\n*c*") == r"a\|b \*c\*"
    assert code("run `x` | y") == r"`` run `x` \| y ``"


def test_joules_of_two_machines_are_not_compared() -> None:
    plans = {plan.row: plan for plan in made.plans()}
    base = made.run(plans["one-by-one"], 0)
    here, there = made.run(plans["mas-2"], 0), made.run(plans["mas-2"], 1)
    moved = msgspec.structs.replace(there, machine="another machine")
    bench = benches([base, msgspec.structs.replace(base, seed=1), here, moved])[0]
    row = bench.row("mas", 2)
    assert row is not None
    joules, counted = ratio_to_one_by_one(bench, row, JOULES), ratio_to_one_by_one(bench, row, COUNTED)
    assert joules is not None
    assert counted is not None
    assert (joules.n, counted.n) == (1, 2)


def test_of_many_partitions_the_ends_and_the_chosen_are_drawn() -> None:
    assert drawn(range(40), {}) == list(range(40))
    assert drawn(range(90), {50, 3}) == [*range(24), 50, *range(82, 90)]


def test_the_headline_says_no_more_than_the_seeds_do() -> None:
    def told(losses: list[float]) -> str:
        runs = [made.simple("one-by-one", seed, 2.0, 10.0) for seed in range(len(losses))]
        runs += [made.simple("mas", seed, value, 5.0, 3) for seed, value in enumerate(losses)]
        return str(headline(document(runs)).striptags())

    assert (
        told([1.9, 1.91, 1.89]) == "MAS-3’s total loss is 0.100 ± 0.025 below one-by-one’s, at 0.50 of its operations."
    )
    assert told([1.5, 2.4, 1.9]).startswith(
        "MAS-3’s total loss cannot be told apart by these seeds (0.067 ± 1.120 below)"
    )
    assert told([2.25]).startswith("MAS-3’s total loss is 0.250 (one seed) above one-by-one’s")
    assert "nothing is compared yet" in headline(document([made.simple("mas", 0, 2.0, 5.0, 3)]))
