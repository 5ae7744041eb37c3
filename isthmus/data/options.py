"""Options behind a name, as in ``sphere:n=1000,d=100``: they are the keyword arguments of a function."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any, Literal, TypeVar, get_args, get_origin

from isthmus.errors import DataError

T = TypeVar("T")


def call(function: Callable[..., T], options: str, source: str) -> T:
    """Call a function with the options that a source gives after its name.

    Args:
        function: its keyword-only parameters, each an ``int`` (perhaps ``None`` by default), a ``float`` or
            a ``Literal`` of strings, are the options; their defaults are the options' defaults.
        options: for example ``"n=1000,d=100"``.
        source: the whole of what was given; opens every message.

    Raises:
        DataError: an option is unknown, given twice, missing, or not of its type.
    """
    parameters = {
        name: parameter
        for name, parameter in inspect.signature(function, eval_str=True).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY
    }
    known = ", ".join(
        f"{name}=" if parameter.default in {parameter.empty, None} else f"{name}={parameter.default}"
        for name, parameter in parameters.items()
    )
    given: dict[str, Any] = {}
    for item in options.split(",") if options.strip() else ():
        name, _, value = (part.strip() for part in item.partition("="))
        if name not in parameters:
            raise DataError(f"{source}: {name!r} is no option here; the options are: {known or 'none'}.")
        if name in given:
            raise DataError(f"{source}: the option {name} is given twice; give it once.")
        given[name] = _parsed(value, parameters[name].annotation, f"{source}: {name}={value}")
    missing = [
        name
        for name, parameter in parameters.items()
        if parameter.default is parameter.empty and name not in given
    ]
    if missing:
        raise DataError(f"{source}: {missing[0]} is missing; add {missing[0]}= (the options are: {known}).")
    return function(**given)


def _parsed(value: str, kind: Any, option: str) -> Any:
    if get_origin(kind) is Literal:
        if value not in get_args(kind):
            raise DataError(f"{option} is unknown; choose {' or '.join(get_args(kind))}.")
        return value
    kind = int if kind == int | None else kind
    try:
        number = kind(value)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise DataError(f"{option} is not {'an integer' if kind is int else 'a finite number'}.")
    return number
