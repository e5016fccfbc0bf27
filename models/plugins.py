"""Things by name that other packages may add to: tasks, networks, datasets, schemes. No torch.

A package adds to a registry with an entry point of its group (PyPA, entry points specification). Its module is
imported at the first use of the registry, not before: a command that needs no network pays for none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

T = TypeVar("T")


class PluginError(ValueError):
    """Installed packages that do not fit together with this one; `faults` holds one line for each, and what to do."""

    def __init__(self, faults: Iterable[str]) -> None:
        self.faults = tuple(faults)
        super().__init__("; ".join(self.faults))


def _no_marks(_: object) -> Iterable[str]:
    return ()


class Registry(Mapping[str, T]):
    """Read-only names -> things: the built-in ones, then those of the entry points of `group`, by distribution's order.

    `expand(entry point's name, what it loads to)` gives the things to add by name, and raises TypeError or ValueError
    saying what is wrong with them. `marks(thing)` names what else of it must be unique, such as `letter s`.
    Any use but construction may raise PluginError, with every fault of every package at once.
    """

    def __init__(
        self,
        group: str,
        builtin: Mapping[str, T],
        expand: Callable[[str, object], Mapping[str, T]],
        marks: Callable[[T], Iterable[str]] = _no_marks,
    ) -> None:
        self.group = group
        self._builtin = MappingProxyType(dict(builtin))
        self._expand = expand
        self._marks = marks
        # The one thing that changes after construction. It depends only on what is installed, which does not change
        # while a process runs, so reading late gives what reading early would: nobody can tell when it was filled, or
        # whether two threads filled it. Failures are not kept; they are told anew.
        self._all: Mapping[str, T] | None = None

    def __getitem__(self, name: str) -> T:
        return self._read()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._read())

    def __len__(self) -> int:
        return len(self._read())

    def __repr__(self) -> str:
        return f"Registry({self.group!r}: {', '.join(self._builtin if self._all is None else self._all)})"

    def _read(self) -> Mapping[str, T]:
        if self._all is None:
            self._all = MappingProxyType(self._with_plugins())
        return self._all

    def _with_plugins(self) -> dict[str, T]:
        from importlib.metadata import entry_points  # takes longer to import than all else here

        everything = dict(self._builtin)
        owners = {f"name {name}": "mas-edge itself" for name in everything}
        owners.update((mark, "mas-edge itself") for thing in everything.values() for mark in self._marks(thing))
        faults: list[str] = []
        for point in sorted(entry_points(group=self.group), key=lambda each: (_source(each), each.name)):
            try:
                things = self._expand(point.name, point.load())
            except Exception as error:  # noqa: BLE001 - other people's modules may fail in any way; raised below
                faults.append(_fault(point, f"fails with {type(error).__name__}: {error}"))
                continue
            for name, thing in things.items():
                marks = [f"name {name}", *self._marks(thing)]
                taken = [f"{mark} is taken by {owners[mark]}" for mark in marks if mark in owners]
                faults += [_fault(point, each) for each in taken]
                if not taken:
                    owners.update(dict.fromkeys(marks, _source(point)))
                    everything[name] = thing
        if faults:
            raise PluginError(faults)
        return everything


def _source(point: EntryPoint) -> str:
    return f"package {point.dist.name} {point.dist.version}" if point.dist else "a package without a name"


def _fault(point: EntryPoint, what: str) -> str:
    package = point.dist.name if point.dist else "the package that has it"
    return (
        f"{_source(point)}, entry point {point.name} = {point.value} of {point.group}: {what};"
        f" mend or update it, or remove it with `pip uninstall {package}`"
    )
