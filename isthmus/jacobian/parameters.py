"""Which parameters a Jacobian is in: chosen by name, each once, in the model's order."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches

from torch import nn

from isthmus.errors import InputError


def chosen(model: nn.Module, names: str | Sequence[str] | None) -> dict[str, nn.Parameter]:
    """Parameters by name.

    Args:
        model: whose they are.
        names: of parameters, or of modules, for all within them. None is for all that are trained, or for
            all if none is, as in a network that was loaded or written down.

    Returns:
        In the order of ``model.named_parameters()``. A parameter with several names goes by the first of
        them that was asked for.

    Raises:
        InputError: there is no such name, or no parameter.
    """
    every = dict(model.named_parameters(remove_duplicate=names is None))
    if names is None:
        trained = {name: parameter for name, parameter in every.items() if parameter.requires_grad}
        found = trained or every
    else:
        wanted = [names] if isinstance(names, str) else list(names)
        for name in wanted:
            if not isinstance(name, str):
                raise InputError(
                    "name parameters or modules, as model.named_parameters() does, not a "
                    f"{type(name).__name__}."
                )
            if not any(_is_within(each, name) for each in every):
                modules = [each for each, _ in model.named_modules() if each]
                near = get_close_matches(name, [*every, *modules], n=3) or modules or list(every)
                raise InputError(
                    f"the model has no parameters under the name {name!r}; is it one of {', '.join(near)}?"
                )
        found = {each: every[each] for each in every if any(_is_within(each, name) for name in wanted)}
    first: dict[int, str] = {}
    for name, parameter in found.items():
        if parameter.numel():
            first.setdefault(id(parameter), name)
    if not first:
        raise InputError("the model has no parameters, so its outputs have no Jacobian in them.")
    return {name: found[name] for name in first.values()}


def layer_of(name: str) -> str:
    """The name of the module that owns a parameter; "" is the model itself."""
    return name.rpartition(".")[0]


def _is_within(parameter: str, name: str) -> bool:
    return parameter == name or parameter.startswith(f"{name}.")
