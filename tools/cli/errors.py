"""Turns the product's errors into a message on stderr and an exit code: 1 failed, 2 usage or settings."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import msgspec
import typer

from models.config import ConfigError, load_toml

T = TypeVar("T", bound=msgspec.Struct)


def fail(message: str, code: int = 1) -> typer.Exit:
    """Print `message` to stderr; raise what is returned."""
    typer.echo(message, err=True)
    return typer.Exit(code)


def load_config(path: Path, kind: type[T]) -> T:
    """Settings from TOML; every fault on stderr and exit 2 when they cannot be used."""
    try:
        return load_toml(path, kind)
    except ConfigError as error:
        raise fail(str(error), 2) from error


def check_broker(url: str) -> None:
    """A broker's URL that cannot be used ends the command with exit code 2."""
    from models.link.address import parse_url
    from models.link.base import BadBrokerUrl

    try:
        parse_url(url)
    except BadBrokerUrl as error:
        raise fail(f"broker: {error}", 2) from error


@contextmanager
def failing_on(*kinds: type[Exception]) -> Iterator[None]:
    """Expected errors end the command with their message and exit 1, without a traceback."""
    try:
        yield
    except kinds as error:
        raise fail(str(error)) from error
