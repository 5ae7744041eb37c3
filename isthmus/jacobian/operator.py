"""The Jacobian J of a model's outputs on fixed rows in chosen parameters, as an operator: it is never whole.

Equations are ordered by rows: all K outputs of row 0, then those of row 1. Unknowns are ordered as the model
names its parameters, each flattened. J d is a derivative in forward mode, J^T a one in reverse mode, and a
block of J takes K derivatives in reverse mode for each of its rows.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from math import ceil

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from isthmus import graph
from isthmus.errors import InputError
from isthmus.jacobian.calls import called, outputs, stand_ins
from isthmus.jacobian.memory import BLOCK
from isthmus.jacobian.parameters import chosen, layer_of
from isthmus.jacobian.repeatable import require_repeatable, require_separate

Point = dict[str, Tensor]


@dataclass(frozen=True, eq=False)
class Jacobian:
    """J [N K, P], as `jacobian_of` makes it.

    Attributes:
        model: whose outputs these are, in evaluation mode.
        x: the rows [N, *shape], as the model takes them.
        point: the chosen parameters by name.
        outputs: K, numbers per row.
    """

    model: nn.Module
    x: Tensor
    point: Point
    outputs: int

    @property
    def equations(self) -> int:
        """N K, the rows of J."""
        return len(self.x) * self.outputs

    @property
    def parameters(self) -> int:
        """P, the columns of J."""
        return self.width(self.point)

    @property
    def dtype(self) -> torch.dtype:
        """That of the model."""
        return graph.dtype_of(self.model)

    @cached_property
    def layers(self) -> dict[str, list[str]]:
        """Names of parameters by that of the module which owns them."""
        found: dict[str, list[str]] = {}
        for name in self.point:
            found.setdefault(layer_of(name), []).append(name)
        return found

    def width(self, names: Collection[str]) -> int:
        """Columns of J in these parameters."""
        return sum(self.point[name].numel() for name in names)

    def push(self, direction: Tensor, *, memory: int = BLOCK) -> Tensor:
        """J d [N, K], in forward mode.

        Args:
            direction: d [P].
            memory: bytes that the rows which are done at a time may take.
        """
        step = _parts(direction, self.point)
        found = []
        size = self._fitting(2 * self._kept, memory)
        with _differentiable(self.model):
            for x in self.x.split(size):
                moved = torch.func.jvp(lambda point, x=x: self._values(point, x), (self.point,), (step,))
                found.append(moved[1])
        return torch.cat(found)

    def pull(self, cotangent: Tensor, *, memory: int = BLOCK) -> Tensor:
        """J^T a [P], in reverse mode.

        Args:
            cotangent: a [N, K] or [N K].
            memory: bytes that the rows which are done at a time may take.
        """
        total = {name: torch.zeros_like(tensor) for name, tensor in self.point.items()}
        size = self._fitting(2 * self._kept, memory)
        with _differentiable(self.model):
            for x, a in zip(self.x.split(size), cotangent.reshape(-1, self.outputs).split(size), strict=True):
                back = torch.func.vjp(lambda point, x=x: self._values(point, x), self.point)[1]
                for name, gradient in back(a)[0].items():
                    total[name] += gradient
        return torch.cat([tensor.flatten() for tensor in total.values()])

    def by_rows(
        self, names: Collection[str] | None = None, *, memory: int = BLOCK
    ) -> Iterator[tuple[slice, Point]]:
        """J in blocks of rows.

        Args:
            names: of parameters; all by default.
            memory: bytes that a block may take, with what its derivatives do.

        Yields:
            A slice of rows, and for every parameter its derivatives [n, K, size].
        """
        part = {name: self.point[name] for name in self.point if names is None or name in names}
        size = self._fitting(self.outputs * (self.width(part) + self._kept), memory)
        for start in range(0, len(self.x), size):
            rows = slice(start, min(start + size, len(self.x)))
            with _differentiable(self.model):
                found = self._derivatives(part, self.x[rows])
            yield rows, {name: block.flatten(2) for name, block in found.items()}

    def by_columns(
        self, names: Collection[str] | None = None, *, memory: int = BLOCK
    ) -> Iterator[tuple[str, Tensor]]:
        """J in blocks of columns, in float64; all rows are gone through for every block that fits.

        Args:
            names: of parameters; all by default.
            memory: bytes that a block may take, with what its derivatives do.

        Yields:
            The name of a parameter, and J in it or, where that is too wide, in a part of it [N K, c].
        """
        sizes = {n: tensor.numel() for n, tensor in self.point.items() if names is None or n in names}
        width = max(1, memory // (16 * self.equations))
        for cuts in _cuts(sizes, width):
            blocks = [
                self.x.new_empty(self.equations, cut.stop - cut.start, dtype=torch.float64) for _, cut in cuts
            ]
            for rows, found in self.by_rows({name for name, _ in cuts}, memory=memory // 2):
                equations = slice(rows.start * self.outputs, rows.stop * self.outputs)
                for (name, cut), block in zip(cuts, blocks, strict=True):
                    block[equations] = found[name][..., cut].flatten(0, 1)
            for (name, _), block in zip(cuts, blocks, strict=True):
                yield name, block

    def _values(self, point: Point, x: Tensor) -> Tensor:
        """Outputs [n, K], from copies of buffers and rows, so that every call finds and leaves the same."""
        return called(self.model, stand_ins(self.model, point), x).reshape(len(x), self.outputs)

    def _derivatives(self, part: Point, x: Tensor) -> Point:
        """In some parameters [n, K, *shape], for all rows together or one by one."""
        return self._together(part, x) if self._batched else self._apart(part, x)

    def _together(self, part: Point, x: Tensor) -> Point:
        def values(part: Point, row: Tensor) -> Tensor:
            return self._values({**self.point, **part}, row[None])[0]

        return torch.func.vmap(torch.func.jacrev(values), (None, 0))(part, x)

    def _apart(self, part: Point, x: Tensor) -> Point:
        rows = []
        for row in x:
            value, back, *_ = torch.func.vjp(
                lambda part, row=row: self._values({**self.point, **part}, row[None])[0], part
            )
            units = torch.eye(self.outputs, dtype=value.dtype, device=value.device)
            gradients = [back(unit)[0] for unit in units]
            rows.append({name: torch.stack([each[name] for each in gradients]) for name in part})
        return {name: torch.stack([each[name] for each in rows]) for name in part}

    @cached_property
    def _batched(self) -> bool:
        """Whether vmap takes the model: not one that decides by values, or by kernels such as an LSTM's."""
        try:
            with _differentiable(self.model):
                self._together(self.point, torch.stack([self.x[0], self.x[-1]]))
        except RuntimeError:
            return False
        return True

    @cached_property
    def _kept(self) -> int:
        """How many numbers a second row adds to those that a forward pass keeps for derivatives."""
        counts = [0, 0]
        for rows in (1, 2):

            def keep(tensor: Tensor, rows: int = rows) -> Tensor:
                counts[rows - 1] += tensor.numel()
                return tensor

            trained = {name: tensor.clone().requires_grad_() for name, tensor in self.point.items()}
            hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
            with _differentiable(self.model), torch.enable_grad(), hooks:
                self._values(trained, self.x[:1].expand(rows, *self.x.shape[1:]))
        return max(0, counts[1] - counts[0])

    def _fitting(self, numbers: int, memory: int) -> int:
        """Rows at a time, if each takes so many numbers."""
        return max(1, memory // (max(1, numbers) * self.dtype.itemsize))


def jacobian_of(model: nn.Module, x: Tensor, names: str | Sequence[str] | None = None) -> Jacobian:
    """The Jacobian of a model's outputs in its parameters, in evaluation mode.

    Args:
        model: any module that maps rows to one tensor [N, ...] of real outputs, each row by itself.
        x: the rows [N, *shape], on the model's device and in the dtype that it takes.
        names: of parameters, or of modules, for all within them. By default those that are trained, or all
            if none is.

    Raises:
        InputError: there is no such name, or no row, or the model does not take the rows.
        UnsupportedModel: a row's outputs change from call to call, or with the rows beside it.
    """
    point = {name: parameter.detach() for name, parameter in chosen(model, names).items()}
    if not len(x):
        raise InputError("there are no rows, so there is no Jacobian.")
    require_repeatable(model, x)
    require_separate(model, x)
    with _differentiable(model):
        values = outputs(model, stand_ins(model, {}), x[:1])
    return Jacobian(model, x, point, values.numel())


@contextmanager
def _differentiable(model: nn.Module) -> Iterator[None]:
    """Hold a model in evaluation mode, and attention in its plain form, which alone has all derivatives.

    That some kernels are slower under vmap than they might be is not worth a warning.

    Yields:
        Nothing; no graph is kept of what is done meanwhile, except by `torch.func`.
    """
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with (
            graph.evaluating(model),
            sdpa_kernel(SDPBackend.MATH),
            torch.no_grad(),
            warnings.catch_warnings(),
        ):
            warnings.filterwarnings("ignore", "There is a performance drop")
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def _parts(flat: Tensor, like: Point) -> Point:
    """A vector [P] cut into tensors of these shapes."""
    parts = flat.split([tensor.numel() for tensor in like.values()])
    return {name: part.view_as(like[name]) for name, part in zip(like, parts, strict=True)}


def _cuts(sizes: dict[str, int], width: int) -> Iterator[list[tuple[str, slice]]]:
    """What to do at a time, with that many columns at most.

    Yields:
        Columns by parameter; one that is wider than that alone is cut into equal parts.
    """
    gathered: list[tuple[str, slice]] = []
    taken = 0
    for name, size in sizes.items():
        step = ceil(size / ceil(size / width))
        for start in range(0, size, step):
            stop = min(start + step, size)
            if taken + stop - start > width:
                yield gathered
                gathered, taken = [], 0
            gathered.append((name, slice(start, stop)))
            taken += stop - start
    yield gathered
