"""Taking a patch back."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from isthmus.certificate import Certificate
from isthmus.certify import certify
from isthmus.data.dataset import Dataset
from isthmus.errors import InputError
from isthmus.patch.attach import Opened, detach
from isthmus.patch.cases import read_cases


@dataclass(frozen=True)
class Restored:
    """A model without its last patch, with what was checked of it on the cases."""

    model: nn.Module
    certificate: Certificate
    data: Dataset

    @property
    def recipe(self) -> dict[str, Any]:
        """How it was made."""
        return {"plan": {"method": "patch removed"}}


def unpatched(model: Opened) -> Opened:
    """A model without its last patch.

    Raises:
        InputError: it has none.
    """
    base = detach(model.module)
    if base is None:
        raise InputError("the model has no patch that could be removed.")
    return replace(model, module=base)


def restored(model: Opened, cases: Any) -> Restored:
    """A model from which a patch was removed, checked on some cases, so that it can be saved."""
    known = read_cases(model, cases, None, "drop")
    return Restored(model.module, certify(model.module, known.data, tolerance=known.tolerance), known.data)
