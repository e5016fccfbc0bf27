"""jtop in a process of its own: what its lines mean, what ends it, and what mends it. The service is a stand-in."""

from __future__ import annotations

import importlib.util
import io
import json
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from edge_agent.config import PowerConfig
from edge_agent.power import jtop
from edge_agent.power.jtop import JtopPower, candidates
from edge_agent.power.jtop_process import sample_of, serve
from edge_agent.power.source import PowerSourceError

RAILS = {"VDD_CPU": {"volt": 5000, "curr": 100, "power": 500, "avg": 9000}, "VDD_SOC": {"power": 300, "avg": 9000}}
WITH_INPUT = {"rail": RAILS, "tot": {"name": "VDD_IN", "volt": 5000, "curr": 400, "power": 2000, "avg": 9000}}
WITHOUT = {"rail": RAILS, "tot": {"power": 800, "avg": 18000}}


class JtopException(Exception):
    pass


def service(*samples: tuple[dict[str, Any], Any], error: Exception | None = None) -> Any:
    """A module like `jtop`, whose service tells `samples` (power, uptime) and then `error`, or ends."""

    class Client:
        def __init__(self, interval: float) -> None:
            self._left = iter(samples)

        def __enter__(self) -> Client:
            return self

        def __exit__(self, *_: object) -> None:
            return None

        def ok(self) -> bool:
            following = next(self._left, None)
            if following is None:
                if error is not None:
                    raise error
                return False
            self.power, self.uptime = following
            return True

    return SimpleNamespace(jtop=Client, JtopException=JtopException)


def lines_of(module: Any) -> list[dict[str, Any]]:
    out = io.StringIO()
    serve(module, 1.0, out)
    return [json.loads(line) for line in out.getvalue().splitlines()]


def test_power_is_taken_and_never_the_running_average() -> None:
    assert sample_of(WITH_INPUT, timedelta(seconds=7.5)) == {
        "uptime_s": 7.5,
        "rails": {"VDD_CPU": 0.5, "VDD_SOC": 0.3, "VDD_IN": 2.0},
        "total": "VDD_IN",
    }
    assert sample_of(WITHOUT, 8) == {"uptime_s": 8.0, "rails": {"VDD_CPU": 0.5, "VDD_SOC": 0.3}, "total": ""}


def test_a_service_that_ends_says_so_last() -> None:
    said = lines_of(service((WITH_INPUT, 1.0), (WITH_INPUT, 2.0)))
    assert [line.get("uptime_s") for line in said] == [1.0, 2.0, None]
    assert "jtop ended" in said[-1]["error"]


@pytest.mark.parametrize(
    "samples, error, words",
    [
        ([], JtopException("The jetson_stats.service is not active"), ["not active", "group jtop", "same version"]),
        ([], PermissionError(13, "Permission denied"), ["Permission denied", "usermod -aG jtop"]),
        ([], ConnectionResetError(104, "Connection reset"), ["Connection reset", "systemctl restart"]),
        ([({}, 1.0)], None, ["no power sensors"]),
        ([({"rail": {"A": {"volt": 1}}}, 1.0)], None, ["KeyError('power')", "jetson-stats 7"]),
    ],
)
def test_whatever_goes_wrong_is_one_line_that_says_what_to_do(
    samples: list[Any], error: Exception | None, words: list[str]
) -> None:
    said = lines_of(service(*samples, error=error))
    assert len(said) == 1
    assert all(word in said[0]["error"] for word in words), said


# --- the process, from this side ------------------------------------------------------------------------------------


def telling(*lines: object, then: str = "sys.stdin.read()") -> tuple[str, ...]:
    """A process that says `lines` and then waits for its end."""
    said = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    code = f"import sys\nfor line in {said!r}:\n    print(line, flush=True)\n{then}"
    return (sys.executable, "-c", code)


def line(uptime_s: float, total: str = "VDD_IN", **rails: float) -> dict[str, Any]:
    return {"uptime_s": uptime_s, "rails": rails, "total": total}


@pytest.fixture
def opened() -> Iterator[list[JtopPower]]:
    sources: list[JtopPower] = []
    yield sources
    for source in sources:
        source.close()


def until_uptime(source: JtopPower, uptime_s: float) -> None:
    child = source._child
    assert child is not None
    with child._changed:
        assert child._changed.wait_for(lambda: child._line.get("uptime_s") == uptime_s, 10)


def test_the_whole_input_alone_is_read_and_stamped_on_arrival(opened: list[JtopPower]) -> None:
    source = JtopPower(telling(line(1.0, VDD_IN=4.0, CPU=1.0), line(2.0, VDD_IN=6.0, CPU=1.0)))
    opened.append(source)
    until_uptime(source, 2.0)
    said = source.read()
    assert (said.power_w, source.rails, source.scope) == (6.0, ("VDD_IN",), "module")
    assert source.read() == said, "the same sample has the same time"


def test_without_a_whole_input_the_rails_are_summed(opened: list[JtopPower]) -> None:
    source = JtopPower(telling(line(1.0, "", GPU=4.0, CPU=1.5)))
    opened.append(source)
    assert (source.read().power_w, source.rails, source.scope) == (5.5, ("GPU", "CPU"), "sum_of_rails")


def test_a_line_with_the_same_uptime_is_the_same_sample(opened: list[JtopPower]) -> None:
    now_s = iter([0.0, 10.0, 20.0, 30.0]).__next__  # made, first line, third line, read
    source = JtopPower(telling(line(1.0, VDD_IN=4.0), line(1.0, VDD_IN=4.0), line(2.0, VDD_IN=4.0)), now_s)
    opened.append(source)
    until_uptime(source, 2.0)
    child = source._child
    assert child is not None
    assert child.at_s == 20.0, "the clock was asked twice for three lines"


def test_a_silent_service_is_not_read_as_its_last_words(opened: list[JtopPower]) -> None:
    clock = SimpleNamespace(now_s=0.0)
    source = JtopPower(telling(line(1.0, VDD_IN=4.0)), lambda: clock.now_s)
    opened.append(source)
    clock.now_s = 2.9
    assert source.read().power_w == 4.0
    clock.now_s = 3.1
    with pytest.raises(PowerSourceError, match="nothing for 3 s"):
        source.read()


def test_a_rail_that_vanishes_is_named(opened: list[JtopPower]) -> None:
    source = JtopPower(telling(line(1.0, "", GPU=4.0, CPU=1.5), line(2.0, "", GPU=4.0)))
    opened.append(source)
    until_uptime(source, 2.0)
    if source.rails == ("GPU",):  # both lines were here before it was opened
        source.rails = ("GPU", "CPU")
    with pytest.raises(PowerSourceError, match="no longer tells rail CPU"):
        source.read()


@pytest.mark.parametrize(
    "said, words",
    [
        ({"error": "jtop: forbidden; group jtop"}, "group jtop"),
        ("Traceback (most recent call last)", "Traceback"),
        ([1, 2], "said"),
    ],
)
def test_an_error_of_the_process_is_ours_and_it_is_ended(said: object, words: str) -> None:
    with pytest.raises(PowerSourceError, match=words):
        JtopPower(telling(said))


def test_a_process_that_ends_is_started_again_after_a_while(opened: list[JtopPower]) -> None:
    clock = SimpleNamespace(now_s=0.0)
    source = JtopPower(telling(line(1.0, VDD_IN=4.0), then=""), lambda: clock.now_s)
    opened.append(source)
    first = source._child
    assert first is not None
    first._thread.join()
    with pytest.raises(PowerSourceError, match="has ended"):
        source.read()
    assert source._child is first, "not at once"
    clock.now_s = 31.0
    with pytest.raises(PowerSourceError, match=r"has said nothing yet|has ended"):
        source.read()
    assert source._child is not first
    assert first._process.returncode is not None


@pytest.mark.skipif(importlib.util.find_spec("jtop") is not None, reason="jetson-stats is installed here")
def test_the_real_process_says_that_jetson_stats_is_missing() -> None:
    with pytest.raises(PowerSourceError, match=r"pip install 'mas-edge\[jetson\]'"):
        JtopPower()


def test_closing_ends_the_process() -> None:
    source = JtopPower(telling(line(1.0, VDD_IN=4.0)))
    child = source._child
    assert child is not None
    source.close()
    source.close()
    assert child._process.returncode is not None
    with pytest.raises(PowerSourceError, match="closed"):
        source.read()


def test_absence_says_whether_package_service_or_permission_is_missing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    root = Path("/")
    assert "pip install" in candidates(root, PowerConfig())[0].reason
    monkeypatch.setattr(jtop.importlib.util, "find_spec", lambda name: object())
    assert "systemctl restart jetson_stats" in candidates(root, PowerConfig())[0].reason
    monkeypatch.setattr(Path, "exists", lambda path: True)
    monkeypatch.setattr(jtop.os, "access", lambda path, mode: False)
    assert "usermod -aG jtop" in candidates(root, PowerConfig())[0].reason
    monkeypatch.setattr(jtop.os, "access", lambda path, mode: True)
    assert candidates(root, PowerConfig())[0].available
    assert "not what is under" in candidates(tmp_path, PowerConfig())[0].reason
