"""`mas split` as people and scripts call it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner, Result

from tools.cli.split import split_command

GOOD = {"tasks": ["a", "b", "c"], "affinity": [[0, 0.8, -0.2], [0.4, 0, -0.4], [-0.6, -0.2, 0]]}


def mas_split(*arguments: str, stdin: str | None = None) -> Result:
    app = typer.Typer()
    app.command()(split_command)
    return CliRunner().invoke(app, list(arguments), input=stdin)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "affinity.json"
    path.write_text(json.dumps(GOOD))
    return path


def test_json(file: Path) -> None:
    done = mas_split(str(file), "--max-splits", "2", "--json")
    assert done.exit_code == 0
    printed = json.loads(done.stdout)
    assert printed == {"splits": [["a", "b"], ["c"]], "score": pytest.approx(0.85 / 3)}


def test_stdin() -> None:
    done = mas_split("-", "--max-splits", "1", "--json", stdin=json.dumps(GOOD))
    assert json.loads(done.stdout)["splits"] == [["a", "b", "c"]]


def test_table(file: Path) -> None:
    done = mas_split(str(file), "--max-splits", "2")
    assert done.exit_code == 0
    for part in ("split-0", "split-1", "0.4", "0.8", "-0.35", "score 0.283333"):
        assert part in done.stdout


@pytest.mark.parametrize(
    "content, parts",
    [
        ("{", ["is not JSON"]),
        ("[1]", ["must hold an object"]),
        ("{}", ["tasks is missing", "affinity is missing"]),
        (json.dumps({**GOOD, "extra": 1, "more": 2}), ["unknown key 'extra'", "unknown key 'more'"]),
        ('{"tasks": ["a", "b"], "affinity": [[0, NaN], [1, 0]]}', ["affinity[0][1] is nan"]),
        ('{"tasks": ["a", "b"], "affinity": [[NaN, 1], [1, 0]]}', ["affinity[0][0] is nan"]),
        ('{"tasks": ["a", "b"], "affinity": [[0, 1], [1, 0], [1, 1]]}', ["3 rows, expected 2"]),
        ('{"tasks": ["a", "b"], "affinity": [[0, 1, 2], [null, 0]]}', ["3 columns", "affinity[1][0] is None"]),
        ('{"tasks": ["a", "a"], "affinity": [[0, Infinity], [1, 0]]}', ["'a' is given 2 times", "inf"]),
        ('{"tasks": "ab", "affinity": 3}', ["tasks is not a list", "affinity is not a list"]),
        ("\ud800".encode("utf-8", "surrogatepass").decode("latin-1"), ["is not JSON"]),
        ("[" * 100_000, ["is not JSON"]),
    ],
)
def test_a_bad_file_says_everything_that_is_wrong(tmp_path: Path, content: str, parts: list[str]) -> None:
    path = tmp_path / "bad.json"
    path.write_text(content, encoding="latin-1")
    done = mas_split(str(path), "--json")
    assert done.exit_code == 1
    assert done.stdout == ""
    for part in parts:
        assert part in done.stderr


def test_a_missing_file(tmp_path: Path) -> None:
    done = mas_split(str(tmp_path / "none.json"))
    assert done.exit_code == 1
    assert "cannot be read" in done.stderr
    assert mas_split(str(tmp_path)).exit_code == 1


@pytest.mark.parametrize(
    "arguments", [[], ["x", "y"], ["x", "--max-splits", "0"], ["x", "--max-splits", "two"], ["--no"]]
)
def test_wrong_usage_is_2(arguments: list[str]) -> None:
    assert mas_split(*arguments).exit_code == 2


def test_it_imports_no_torch() -> None:
    code = "import sys; import tools.cli.split, aggregator.splitting; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
