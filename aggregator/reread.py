"""Whether a value is the same when it is read back from MessagePack, found out a piece at a time.

A fleet's state is as large as the fleet: a second one, made only to be compared with the first, would be the most that
the aggregator ever holds of anything but models.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import msgspec

#: What takes less than this is read back in one.
PIECE_BYTES = 16 * 1024


class Rereader:
    """Keeps a decoder for each kind of piece that it has met: there are as many as types in a state."""

    def __init__(self) -> None:
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder = cache(msgspec.msgpack.Decoder)

    def comes_back(self, value: object, kind: Any) -> bool:
        """Whether `value`, of the type `kind`, is equal to what its bytes are decoded to.

        Raises msgspec.MsgspecError when they cannot be decoded. `kind` must be hashable, as types are.
        """
        body = self._encoder.encode(value)
        if len(body) < PIECE_BYTES or (parts := _parts(value, kind)) is None:
            return bool(self._decoder(kind).decode(body) == value)
        del body  # before the pieces have theirs
        return all(self.comes_back(part, of_part) for part, of_part in parts)


def _parts(value: object, kind: Any) -> Iterator[tuple[object, Any]] | None:
    """What a value is made of, each with its type; None where it cannot be divided, or a limit is set to the whole."""
    arms = get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
    if isinstance(value, msgspec.Struct) and type(value) in arms:
        return ((getattr(value, name), of_field) for name, of_field in _fields(type(value)).items())
    if isinstance(value, dict) and (of := _arm(arms, dict)):
        if len(value) == 1:
            return (part for item in value.items() for part in zip(item, get_args(of), strict=True))
        return (({name: each}, of) for name, each in value.items())
    if isinstance(value, tuple) and (of := _arm(arms, tuple)) and get_args(of)[1:] == (...,):
        return ((each, get_args(of)[0]) for each in value)
    return None


def _arm(arms: tuple[Any, ...], origin: type) -> Any:
    return next((arm for arm in arms if get_origin(arm) is origin), None)


@cache
def _fields(kind: type) -> dict[str, Any]:
    """Fields of a struct by name, each with its type."""
    hints = get_type_hints(kind, include_extras=True)
    return {name: hints[name] for name in kind.__struct_fields__}  # type: ignore[attr-defined]
