"""Registries: read at first use, closed to writing, and broken packages named all at once."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from models.networks import NETWORKS, NetworkParts
from models.plugins import PluginError, Registry
from models.tasks import TASKS, TaskSpec

GROUP = "mas_edge.test_numbers"


def _install(folder: Path, package: str, entries: dict[str, str], group: str = GROUP) -> None:
    """What an installer leaves of a package: its metadata."""
    info = folder / f"{package}-1.2.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.2\n")
    lines = [f"[{group}]", *(f"{name} = {value}" for name, value in entries.items())]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n")


def _number(name: str, loaded: object) -> dict[str, int]:
    if not isinstance(loaded, int):
        raise TypeError(f"{name} is no number")
    return {name: loaded}


def _registry(builtin: dict[str, int] | None = None) -> Registry[int]:
    return Registry(GROUP, builtin or {"one": 1}, _number, marks=lambda number: (f"value {number}",))


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def test_built_in_things_are_there_without_packages() -> None:
    registry = _registry({"two": 2, "one": 1})
    assert dict(registry) == {"two": 2, "one": 1}
    assert "three" not in registry
    with pytest.raises(KeyError):
        registry["three"]


def test_packages_add_to_it_after_what_is_built_in(site: Path) -> None:
    _install(site, "b-pack", {"size": "sys:maxsize"})
    _install(site, "a-pack", {"version": "sys:hexversion"})
    assert list(_registry().items()) == [("one", 1), ("version", sys.hexversion), ("size", sys.maxsize)]


def test_a_package_is_imported_at_first_use_and_once(site: Path) -> None:
    _install(site, "late", {"late": "late_module_of_a_test:VALUE"})
    registry = _registry()
    assert "late_module_of_a_test" not in sys.modules
    (site / "late_module_of_a_test.py").write_text("VALUE = 7\n")
    assert registry["late"] == 7
    (site / "late-1.2.dist-info" / "entry_points.txt").write_text("")
    assert registry["late"] == 7


def test_it_cannot_be_written_to_and_does_not_follow_what_it_was_made_of() -> None:
    builtin = {"one": 1}
    registry = _registry(builtin)
    builtin["two"] = 2
    with pytest.raises(TypeError):
        registry["two"] = 2  # type: ignore[index]
    with pytest.raises(TypeError):
        registry._read()["two"] = 2  # type: ignore[index]
    assert dict(registry) == {"one": 1}


def test_every_fault_of_every_package_is_told_at_once_with_what_to_do(site: Path) -> None:
    (site / "broken_module_of_a_test.py").write_text("raise RuntimeError('no such device')\n")
    _install(site, "absent", {"x": "module_that_is_nowhere:THING"})
    _install(site, "broken", {"y": "broken_module_of_a_test:THING"})
    _install(site, "wrong", {"z": "sys:version", "one": "sys:maxsize"})
    _install(site, "first", {"same": "sys:hexversion"})
    _install(site, "second", {"other": "sys:hexversion"})
    with pytest.raises(PluginError) as caught:
        len(_registry())
    assert len(caught.value.faults) == 5
    absent, broken, second, wrong_name, wrong_type = caught.value.faults
    assert "package absent 1.2" in absent
    assert "module_that_is_nowhere" in absent
    assert "`pip uninstall absent`" in absent
    assert "RuntimeError: no such device" in broken
    assert f"value {sys.hexversion} is taken by package first 1.2" in second
    assert "name one is taken by mas-edge itself" in wrong_name
    assert "z is no number" in wrong_type


def test_a_failure_is_told_every_time_and_gone_once_it_is_mended(site: Path) -> None:
    _install(site, "wrong", {"z": "sys:version"})
    registry = _registry()
    for _ in range(2):
        with pytest.raises(PluginError):
            list(registry)
    (site / "wrong-1.2.dist-info" / "entry_points.txt").write_text("")
    assert list(registry) == ["one"]


def test_importing_it_reads_no_metadata() -> None:
    root = str(Path(__file__).parent.parent.parent)
    code = f"import sys; sys.path.insert(0, {root!r}); import models.tasks; print('importlib.metadata' in sys.modules)"
    done = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_a_network_or_task_of_a_wrong_type_is_refused_in_words(site: Path) -> None:
    _install(site, "net", {"mine": "sys:version"}, NETWORKS.group)
    _install(site, "task", {"mine": "sys:version"}, TASKS.group)
    networks: Registry[NetworkParts] = Registry(NETWORKS.group, {}, NETWORKS._expand)
    with pytest.raises(PluginError, match="a network is a "):
        len(networks)
    tasks: Registry[TaskSpec] = Registry(TASKS.group, {}, TASKS._expand)
    with pytest.raises(PluginError, match="must be a TaskSpec"):
        len(tasks)


def test_letters_of_tasks_are_unique_across_packages(site: Path) -> None:
    (site / "tasks_of_a_test.py").write_text(
        "from models.tasks import TaskSpec\nMINE = TaskSpec('mine', 'd', 1, 'l1', kind='vector')\n"
    )
    _install(site, "task", {"mine": "tasks_of_a_test:MINE"}, TASKS.group)
    tasks = Registry(TASKS.group, dict(TASKS), TASKS._expand, TASKS._marks)
    with pytest.raises(PluginError, match="letter d is taken by mas-edge itself"):
        len(tasks)
