# SPDX-License-Identifier: MIT
"""A job as text and back: the JSON in the records. Pure.

Format 1: an object with the fields of model.Job by name; dataclasses are objects, tuples arrays,
enumerations their values, an End that is not there null. A field that is missing has the model's
default, so the model may gain fields with defaults; a field that the model does not know is left
out. What changes the meaning of a field needs a new format number and a decoder for the old one.
"""

import dataclasses
import enum
import functools
import json
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, Final

from joblet.model import Job

FORMAT: Final = 1

Decode = Callable[[Any], Any]


def encode(job: Job) -> str:
    return json.dumps(_plain(job), separators=(",", ":"))


def decode(number: int, text: str) -> Job:
    """Raises ValueError, saying which field is wrong, for what is not a job of this format."""
    if number != FORMAT:
        raise ValueError(f"it has format {number}, and this server knows {FORMAT}")
    try:
        value = json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    job = _decoder(Job)(value)
    assert isinstance(job, Job)  # noqa: S101  for mypy
    return job


def _plain(value: Any) -> Any:
    kind: Any = type(value)
    if kind is str or kind is int:
        return value
    names = _fields(kind)
    if names:
        return {name: _plain(getattr(value, name)) for name in names}
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return value


@functools.cache
def _fields(kind: type[Any]) -> tuple[str, ...]:
    """The fields of a dataclass; none for anything else."""
    if not dataclasses.is_dataclass(kind):
        return ()
    return tuple(field.name for field in dataclasses.fields(kind))


@functools.cache
def _decoder(kind: Any) -> Decode:
    """What makes a value of the type `kind`; raises ValueError."""
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return _object(kind)
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return kind
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        [some] = [arg for arg in args if arg is not types.NoneType]
        inner = _decoder(some)
        return lambda value: None if value is None else inner(value)
    if origin is tuple:
        item = _decoder(args[0])
        return lambda value: tuple(item(one) for one in _of(list, value))
    if isinstance(origin, type) and issubclass(origin, Mapping):
        item = _decoder(args[1])
        return lambda value: {key: item(one) for key, one in _of(dict, value).items()}
    return functools.partial(_of, kind)


def _object(kind: type[Any]) -> Decode:
    hints = typing.get_type_hints(kind)
    fields = [
        (field.name, hints[field.name], _decoder(hints[field.name]))
        for field in dataclasses.fields(kind)
    ]

    def decode_object(value: Any) -> Any:
        given = _of(dict, value)
        made = {}
        for name, hint, decode_field in fields:
            if name in given:
                item = given[name]
                # most are str and int already, and lists of jobs are long
                if type(item) is not hint:
                    try:
                        item = decode_field(item)
                    except ValueError as error:
                        raise ValueError(f"{name}: {error}") from None
                made[name] = item
        try:
            return kind(**made)
        except TypeError as error:  # a field without a default is missing
            raise ValueError(str(error)) from None

    return decode_object


def _of(kind: type[Any], value: Any) -> Any:
    """The value, if it is of exactly this type: true is no number."""
    if type(value) is not kind:
        raise ValueError(f"{value!r:.40} is not of type {kind.__name__}")
    return value
