"""A product of sets: some tensors in one set, others in another."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

from torch import Tensor

from isthmus.constraints.constraint import Constraint, Tensors
from isthmus.errors import InputError


@dataclass(frozen=True, eq=False)
class Product(Constraint):
    """Every tensor in a set by its name, as in `Product({"layer4": Ball(10.0), "fc": FloorAndRatio()})`.

    Attributes:
        parts: sets by the names of tensors, or of modules whose tensors they are for.

    Raises:
        InputError: there is no part, a part is a Product itself, or one is named within another.
    """

    parts: Mapping[str, Constraint]

    def __post_init__(self) -> None:
        if not (isinstance(self.parts, Mapping) and self.parts):
            raise InputError("a Product has one part or more, sets by name.")
        for name, part in self.parts.items():
            if not isinstance(part, Constraint):
                raise InputError(f"the part {name!r} of a Product is a set such as Ball(1.0), not {part!r}.")
            if isinstance(part, Product):
                raise InputError(
                    f"the part {name!r} of a Product is a Product; write its parts beside the others."
                )
            for other in self.parts:
                if other != name and is_within(name, other):
                    raise InputError(
                        f"two parts of a Product are for {name!r}: its own, and that of {other!r}."
                    )

    @property
    def center(self) -> Tensors:
        """The center by name."""
        return {name: tensor for part in self.parts.values() for name, tensor in part.center.items()}

    def to_dict(self) -> dict[str, Any]:
        """What the set is, as plain data."""
        return {"set": "Product", "parts": {name: part.to_dict() for name, part in self.parts.items()}}

    def _at(self, center: dict[str, Tensor]) -> Self:
        split = {
            name: {each: tensor for each, tensor in center.items() if is_within(each, name)}
            for name in self.parts
        }
        for name, named in split.items():
            if not named:
                raise InputError(f"the Product has a part for {name!r}, but there is no such tensor.")
        covered = {each for named in split.values() for each in named}
        for each in center:
            if each not in covered:
                raise InputError(
                    f"no part of the Product is for {each!r}; parts are {', '.join(self.parts)}."
                )
        return replace(self, parts={name: part.at(split[name]) for name, part in self.parts.items()})

    def project_(self, point: Tensors) -> None:
        """Move the tensors of a point into their sets, in place."""
        for part in self.parts.values():
            part.project_({name: point[name] for name in part.center})

    def _normal(self, point: Tensors, direction: Tensors) -> dict[str, Tensor]:
        normal = {}
        for part in self.parts.values():
            names = part.center
            normal |= part.normal({n: point[n] for n in names}, {n: direction[n] for n in names})
        return normal


def is_within(name: str, module: str) -> bool:
    """Whether a dotted name is a module's, or of something in it; all are within the root, named ""."""
    return module in {"", name} or name.startswith(f"{module}.")
