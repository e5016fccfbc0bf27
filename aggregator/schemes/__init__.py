"""Training schemes: how a job spends its rounds. A new one is a new file here with an attribute `SCHEME`."""

from __future__ import annotations

import importlib
import pkgutil

from aggregator.schemes.base import Scheme


def schemes() -> dict[str, Scheme]:
    """All schemes by name, found by looking through this package."""
    names = sorted(module.name for module in pkgutil.iter_modules(__path__))
    modules = [importlib.import_module(f"{__name__}.{name}") for name in names]
    found: list[Scheme] = [module.SCHEME for module in modules if hasattr(module, "SCHEME")]
    return {scheme.name: scheme for scheme in found}


def find_scheme(name: str) -> Scheme:
    """The scheme called `name`; ValueError naming those there are."""
    known = schemes()
    if name not in known:
        raise ValueError(f"unknown scheme {name!r}; known are {', '.join(sorted(known))}")
    return known[name]
