"""A scheme's own settings: `JobSpec.options` read as the struct that the scheme gives."""

from __future__ import annotations

from typing import TypeVar

import msgspec

from models.wire.job import JobSpec, Option

T = TypeVar("T", bound=msgspec.Struct)


def options_of(spec: JobSpec, options: type[T]) -> T:
    """The settings of `spec`, defaults filled in. Raises ValueError with every fault."""
    faults = option_faults(spec, options)
    if faults:
        raise ValueError("; ".join(faults))
    return msgspec.convert(spec.options, options)


def option_faults(spec: JobSpec, options: type[msgspec.Struct]) -> list[str]:
    """Everything in `spec.options` that `options` has no room for, one line each."""
    fields = {field.name: field for field in msgspec.structs.fields(options)}
    has = f"it has {', '.join(fields)}" if fields else "it has none"
    faults = [f"scheme {spec.scheme} has no option {name!r}; {has}" for name in spec.options if name not in fields]
    for name, field in fields.items():
        if name in spec.options:
            faults += _value_faults(name, spec.options[name], field.type)
        elif field.required:
            faults.append(f"scheme {spec.scheme} needs the option {name!r}")
    return faults


def valid_options(spec: JobSpec, options: type[msgspec.Struct]) -> dict[str, Option] | None:
    """The settings of `spec` without the faulty ones; None if one that is needed is then lacking."""
    fields = {field.name: field for field in msgspec.structs.fields(options)}
    valid = {
        name: value
        for name, value in spec.options.items()
        if name in fields and not _value_faults(name, value, fields[name].type)
    }
    return valid if all(name in valid or not field.required for name, field in fields.items()) else None


def _value_faults(name: str, value: Option, kind: object) -> list[str]:
    try:
        msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        return [f"option {name!r} is {value!r}: {error}"]
    return []
