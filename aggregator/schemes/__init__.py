"""Training schemes: how a job spends its rounds. A new one is a new file here with an attribute `SCHEME`.

Other packages add theirs by entry points of group `mas_edge.schemes`.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from functools import cache

import msgspec

from aggregator.schemes.base import Scheme
from models.plugins import Registry

_METHODS = ("faults", "first", "following")


def schemes() -> Mapping[str, Scheme]:
    """All schemes by name: those of this package, found by looking through it, then those of installed packages.

    Any use of what is returned may raise PluginError, a ValueError.
    """
    return _schemes(tuple(__path__))


def find_scheme(name: str) -> Scheme:
    """The scheme called `name`; ValueError naming those there are."""
    known = schemes()
    if name not in known:
        raise ValueError(f"unknown scheme {name!r}; known are {', '.join(sorted(known))}")
    return known[name]


@cache
def _schemes(folders: tuple[str, ...]) -> Registry[Scheme]:
    names = sorted(module.name for module in pkgutil.iter_modules(folders))
    modules = [importlib.import_module(f"{__name__}.{name}") for name in names]
    found: list[Scheme] = [module.SCHEME for module in modules if hasattr(module, "SCHEME")]
    return Registry("mas_edge.schemes", {scheme.name: scheme for scheme in found}, _from_plugin)


def _from_plugin(name: str, thing: object) -> dict[str, Scheme]:
    """A scheme out of another package; TypeError or ValueError where it is none."""
    lacking = [method for method in _METHODS if not callable(getattr(thing, method, None))]
    options = getattr(thing, "options", None)
    if lacking or isinstance(thing, type) or not (isinstance(options, type) and issubclass(options, msgspec.Struct)):
        raise TypeError(
            f"it must load to a scheme: an object with name, options (a msgspec struct's type), {', '.join(_METHODS)}"
        )
    if getattr(thing, "name", None) != name:
        raise ValueError(f"the scheme's name is {getattr(thing, 'name', None)!r}, but the entry point is called {name}")
    return {name: thing}  # type: ignore[dict-item]
