"""Pages from templates: values are escaped, an unknown name is an error, a file is written whole or not at all."""

from __future__ import annotations

import os
from importlib.resources import files
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup


def template(package: str, name: str) -> Template:
    """The template `name` that lies in `package`."""
    environment = Environment(
        loader=PackageLoader(package, "."), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    return environment.get_template(name)


def style(*packages: str) -> Markup:
    """The style sheets of some packages, one after the other; our own files, so they are not escaped."""
    sheets = [files(package).joinpath("style.css").read_text(encoding="utf-8") for package in packages]
    return Markup("\n".join(sheets))


def write_whole(path: Path, content: str) -> None:
    """Put `content` at `path` in one step. Raises OSError."""
    unfinished = path.with_name(path.name + ".part")
    unfinished.write_text(content, encoding="utf-8")
    os.replace(unfinished, path)
