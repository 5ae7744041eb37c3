"""One damped Gauss-Newton step, in whichever space is smaller.

With B = L^T J [N, P], the Jacobian with its rows weighted by the loss's curvature (N = n r), a step solves

    (B^T B + μ I) s = -J^T g = -(B^T z + q),   q = J^T u.

There are P equations of it. Where N < P, s = B^T w - q / μ solves it if

    (B B^T + μ I) w = B q / μ - z,

which are N equations, and q = 0 for most losses. B is made a few samples at a time.

Source: Levenberg 1944 and Marquardt 1963; z, u and L are those of `isthmus.narrow.gauss_newton.curvature`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from isthmus.errors import InputError
from isthmus.jacobian.samples import Linearized
from isthmus.linalg.cholesky import cholesky, dense_rows, packed_bytes
from isthmus.narrow.gauss_newton.curvature import Curvature, times


@dataclass(frozen=True)
class NormalEquations:
    """The equations at one point, for any damping.

    Attributes:
        linearized: J.
        curvature: L, z and u.
        gram: B^T B [P, P], or B B^T [N, N] of which the part above the diagonal is not used; float64.
        primal: whether it is the former.
    """

    linearized: Linearized
    curvature: Curvature
    gram: Tensor
    primal: bool

    @cached_property
    def gradient(self) -> Tensor:
        """J^T g [P], the gradient of the loss in the parameters; float64."""
        return self.linearized.pull(self.curvature.gradient).double()

    @cached_property
    def scale(self) -> float:
        """The mean of the diagonal: what a damping is relative to."""
        return float(self.gram.diagonal().mean())

    def step(self, shift: float) -> Tensor:
        """The step s [P] for a damping μ > 0; float64.

        Raises:
            NotPositiveDefinite: μ is lost in the rounding of the Gram matrix.
        """
        factor = cholesky(dense_rows(self.gram), len(self.gram), shift=shift)
        if self.primal:
            return -factor.solve(self.gradient)
        right = -self.curvature.slope
        flat = None if self.curvature.flat is None else self.linearized.pull(self.curvature.flat).double()
        if flat is not None:
            right = right + times(self.curvature.root.mT, self.linearized.push(flat).double()) / shift
        weights = factor.solve(right.flatten()).view_as(right)
        found = self.linearized.pull(times(self.curvature.root, weights)).double()
        return found if flat is None else found - flat / shift


def normal_equations(
    linearized: Linearized, curvature: Curvature, *, row_bytes: int, memory: int
) -> NormalEquations:
    """Make the smaller Gram matrix.

    Args:
        linearized: J.
        curvature: L, z and u.
        row_bytes: what all of one sample's J takes, in the model's dtype.
        memory: bytes that the Gram matrix, its factor and parts of B may take.

    Raises:
        InputError: they would take more.
    """
    equations, unknowns = curvature.slope.numel(), linearized.size
    primal = unknowns <= equations
    size = min(unknowns, equations)
    if linearized.outputs.dtype != torch.float64:
        row_bytes += curvature.slope.shape[1] * unknowns * torch.float64.itemsize
    at_once = _samples_at_once(size, len(curvature.slope), row_bytes, memory, parts=1 if primal else 2)
    gram = (_primal if primal else _dual)(linearized, curvature.root, at_once)
    if not gram.diagonal().isfinite().all():
        raise InputError("the model's outputs have derivatives in its parameters that are not finite.")
    return NormalEquations(linearized, curvature, gram, primal)


def _primal(linearized: Linearized, root: Tensor, at_once: int) -> Tensor:
    """B^T B."""
    gram = root.new_zeros(linearized.size, linearized.size)
    for part in _parts(len(root), at_once):
        rows = _rows(linearized, root, part)
        gram.addmm_(rows.T, rows)
    return gram


def _dual(linearized: Linearized, root: Tensor, at_once: int) -> Tensor:
    """B B^T, up to the diagonal."""
    rank = root.shape[2]
    gram = root.new_empty(len(root) * rank, len(root) * rank)
    for part in _parts(len(root), at_once):
        rows = _rows(linearized, root, part)
        block = gram[part.start * rank : part.stop * rank]
        for before in _parts(part.start, at_once):
            others = _rows(linearized, root, before)
            torch.mm(rows, others.T, out=block[:, before.start * rank : before.stop * rank])
        torch.mm(rows, rows.T, out=block[:, part.start * rank : part.stop * rank])
    return gram


def _rows(linearized: Linearized, root: Tensor, part: slice) -> Tensor:
    """Rows of B [samples r, P], float64."""
    return linearized.rows(root, part).flatten(0, 1).double()


def _parts(samples: int, at_once: int) -> Iterator[slice]:
    for start in range(0, samples, at_once):
        yield slice(start, min(start + at_once, samples))


def _samples_at_once(size: int, samples: int, row_bytes: int, memory: int, *, parts: int) -> int:
    """How many samples of J fit beside the Gram matrix and its factor.

    Args:
        size: of the Gram matrix.
        samples: of all of J.
        row_bytes: what all of one sample's J takes.
        memory: bytes.
        parts: of J that are held at once, if it is not held as a whole.

    Raises:
        InputError: not even one does.
    """
    held = torch.float64.itemsize * size**2 + packed_bytes(size, torch.float64)
    room = memory - held
    if samples * row_bytes <= room:
        return samples
    if room < parts * row_bytes:
        raise InputError(
            f"a Gauss-Newton step takes {held + parts * row_bytes} bytes or more: its matrix is {size} x "
            f"{size}, after the parameters or the outputs of all rows, whichever are fewer. It may take "
            f"memory={memory}; allow more, or give it fewer rows at a time or a smaller model."
        )
    return room // (parts * row_bytes)
