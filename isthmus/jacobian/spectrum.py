"""Singular values of the Jacobian of a model's outputs in its parameters, of the whole and of each layer.

J is [N K, P]. Its smallest singular value is the (N K)-th one: it is positive if and only if small changes of
the parameters can change all outputs on all rows in any way, and with fewer parameters than that it is 0.

J is computed in the model's dtype, and all that is made of it in float64. In a float32 network the entries of
J are off by 1e-7, so that σ_min is good to 1e-7 cond(J) only: convert the model to float64 before asking.
Where J is in a hidden layer and the head behind it alone, its structure gives J J^T without J, in float64 for
a model of any dtype.

Source: Zhang et al. 2021, whose Theorem 1 rests on σ_min > 0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final, Literal, get_args

from torch import Tensor, nn

from isthmus import graph
from isthmus.data.dataset import as_dataset
from isthmus.errors import InputError
from isthmus.jacobian.hidden import read_shallow
from isthmus.jacobian.memory import MEMORY
from isthmus.jacobian.operator import jacobian_of
from isthmus.jacobian.parts import Parts
from isthmus.jacobian.result import Spectrum
from isthmus.jacobian.singular import Method

SMALL: Final = 1 << 28  # N K P min(N K, P), up to which all singular values are computed: seconds
TRUSTED: Final = 1e-8  # estimated error of σ_min up to which J J^T serves


def spectrum(
    model: nn.Module,
    data: Any,
    *,
    parameters: str | Sequence[str] | None = None,
    method: Literal["auto"] | Method = "auto",
    memory: int = MEMORY,
    seed: int = 0,
) -> Spectrum:
    """Singular values of the Jacobian of a model's outputs in its parameters, in evaluation mode.

    Args:
        model: any module that maps rows to one tensor [N, ...] of real outputs, each row by itself. float64
            is advised.
        data: a Dataset, a pair (x, y), or rows alone as the model takes them. Targets do not matter.
        parameters: names of parameters, or of modules, for all within them. By default those that are
            trained, or all if none is.
        method: ``"dense"`` computes all singular values; ``"gram"`` the largest and the smallest from J J^T,
            with an error of eps cond(J)^2; ``"qr"`` from a QR decomposition of J^T, with eps cond(J).
            ``"auto"`` takes dense where that is a matter of seconds, else gram, and qr in its place where
            gram cannot be trusted to 1e-8. Fewer columns than equations are always decomposed.
        memory: bytes that may be taken in all.
        seed: of Lanczos' first vectors.

    Raises:
        InputError: there is no such name or method, the model does not take the rows, the memory is too
            small, or J J^T is singular so far as float64 can tell and ``"gram"`` was asked for.
        UnsupportedModel: a row's outputs change from call to call, or with the rows beside it.
    """
    if method not in {"auto", *get_args(Method)}:
        raise InputError(f"method={method!r} is unknown; choose 'auto', 'dense', 'gram' or 'qr'.")
    jacobian = jacobian_of(model, _rows(model, data), parameters)
    equations, columns = jacobian.equations, jacobian.parameters
    if method == "auto" and equations * columns * min(equations, columns) <= SMALL:
        method = "dense"
    parts = Parts(jacobian, TRUSTED if method == "auto" else math.inf, memory, seed)
    if method in {"dense", "qr"} or columns < equations:
        whole, layers = parts.by_triangles(every=method == "dense")
    elif shallow := read_shallow(model, jacobian.x, jacobian.point.keys()):
        whole, layers = parts.by_structure(shallow)
    else:
        whole, layers = parts.by_grams()

    below = {
        layer: Spectrum.of(found, len(jacobian.x), jacobian.outputs, jacobian.width(jacobian.layers[layer]))
        for layer, found in layers.items()
    }
    return Spectrum.of(whole, len(jacobian.x), jacobian.outputs, columns, below)


def _rows(model: nn.Module, data: Any) -> Tensor:
    """The rows, where the model is, and except for rows alone in its dtype."""
    device = graph.device_of(model)
    return (
        data.to(device) if isinstance(data, Tensor) else as_dataset(data).x.to(device, graph.dtype_of(model))
    )
