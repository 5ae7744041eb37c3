"""Solving (J J^T + Λ) a = r for a network of one hidden layer, in the memory there is.

J J^T is N K x N K. Its Cholesky factor takes half of that in float32, which is enough: what it leaves is
found with products by J and J^T in float64, in O(N d m) each, and put right by conjugate gradients with the
factor as preconditioner. Where float32 cannot factorize, float64 does, if it fits. Where neither fits, the
factors of diagonal blocks, as large as fit, are the preconditioner.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final, Literal

import torch
from torch import Tensor

from isthmus._types import Progress
from isthmus.errors import InputError
from isthmus.jacobian.shallow import Shallow
from isthmus.linalg.cholesky import BLOCK, Cholesky, NotPositiveDefinite, cholesky, packed_bytes
from isthmus.linalg.conjugate import conjugate_gradients

Route = Literal["float64", "float32", "blocks"]

DOUBLE_BELOW: Final = 500  # equations up to which float64 costs nothing worth saving
INEXACT: Final = 0.1  # part of a right side that solving may leave, far from a solution
PATIENCE: Final = 80  # equations per iteration of conjugate gradients that a factorization is worth
LEAST_ITERATIONS: Final = 3
ITERATIONS: Final = 200  # of conjugate gradients
FREE: Final = 0.8  # part of the free memory that is taken by default
LIFT: Final = (1e-11, 1e-10, 1e-9, 1e-8)  # of the trace, so that a float32 factor exists


@dataclass(frozen=True)
class Memory:
    """What may be held, and what that allows.

    Attributes:
        limit: bytes.
        taken: bytes that rows, weights and their products take besides the factor.
    """

    limit: int
    taken: int

    def fits(self, equations: int, dtype: torch.dtype) -> bool:
        """Whether a whole factor fits."""
        return self.taken + packed_bytes(equations, dtype) <= self.limit

    def route(self, equations: int) -> Route:
        """How to factorize: as little as serves.

        Raises:
            InputError: not even the rows fit.
        """
        if equations <= DOUBLE_BELOW and self.fits(equations, torch.float64):
            return "float64"
        if self.fits(equations, torch.float32):
            return "float32"
        if self.block(equations) >= BLOCK:
            return "blocks"
        least = self.taken + packed_bytes(BLOCK, torch.float32) * -(-equations // BLOCK)
        raise InputError(
            f"a memory of {self.limit / 2**20:,.3g} MiB is too small: rows, weights and the smallest "
            f"preconditioner take {least / 2**20:,.4g} MiB. Allow more, or take fewer rows."
        )

    def block(self, equations: int) -> int:
        """How many equations a diagonal block may have, so that all blocks fit."""
        return min(equations, 2 * max(0, self.limit - self.taken) // (4 * equations) - BLOCK)

    def stated(self, equations: int) -> int:
        """Bytes that the route takes."""
        match self.route(equations):
            case "float64":
                return self.taken + packed_bytes(equations, torch.float64)
            case "float32":
                return self.taken + packed_bytes(equations, torch.float32)
            case "blocks":
                return self.limit


@dataclass(frozen=True)
class Inverse:
    """(J J^T + Λ)^-1, as good as asked for.

    Attributes:
        jacobian: J, float64.
        shift: Λ, one number [] or one per equation [N K].
        precondition: nearly the inverse.
        exact: whether that is the inverse already, but for rounding in float64.
    """

    jacobian: Shallow
    shift: Tensor
    precondition: Callable[[Tensor], Tensor]
    exact: bool

    def product(self, a: Tensor) -> Tensor:
        """(J J^T + Λ) a."""
        return self.jacobian.gram_product(a) + self.shift * a

    def is_quick(self) -> bool:
        """Whether solving takes few iterations beside what another factorization would."""
        probe = self.jacobian.x.new_ones(self.jacobian.equations)
        found = conjugate_gradients(
            self.product,
            probe,
            precondition=self.precondition,
            tolerance=INEXACT,
            iterations=max(LEAST_ITERATIONS, len(probe) // PATIENCE),
        )
        return found.residual <= INEXACT

    def __call__(self, right: Tensor, tolerance: float) -> Tensor:
        """Solve for a up to ``|r - (J J^T + Λ) a| <= tolerance |r|``, if conjugate gradients get there."""
        if self.exact:
            return self.precondition(right)
        return conjugate_gradients(
            self.product,
            right,
            precondition=self.precondition,
            tolerance=tolerance,
            iterations=ITERATIONS,
        ).solution


def invert(jacobian: Shallow, shift: Tensor, memory: Memory, on_progress: Progress | None = None) -> Inverse:
    """Factorize J J^T + Λ, once.

    Args:
        jacobian: J, float64.
        shift: Λ >= 0, one number [] or one per equation [N K].
        memory: what may be held.
        on_progress: told which part is done.

    Raises:
        NotPositiveDefinite: J J^T + Λ is singular in float64.
        InputError: the memory is too small.
    """
    size = jacobian.equations
    route = memory.route(size)
    if route == "float64":
        return _exact(jacobian, shift, on_progress)
    single = jacobian.to(torch.float32)
    lower = shift.float()
    if route == "blocks":
        step = memory.block(size)
        blocks = [slice(start, min(start + step, size)) for start in range(0, size, step)]
        factors = [_lifted(single, lower, block, on_progress) for block in blocks]
        solve = partial(_solve_blocks, blocks, factors)
        return Inverse(jacobian, shift, solve, exact=False)
    try:
        factor = _lifted(single, lower, slice(0, size), on_progress)
    except NotPositiveDefinite:
        if not memory.fits(size, torch.float64):
            raise
        return _exact(jacobian, shift, on_progress)
    found = Inverse(jacobian, shift, factor.solve, exact=False)
    if not memory.fits(size, torch.float64) or found.is_quick():
        return found
    del factor, found  # before twice as much is taken
    return _exact(jacobian, shift, on_progress)


def _exact(jacobian: Shallow, shift: Tensor, on_progress: Progress | None) -> Inverse:
    factor = _factor(jacobian, shift, slice(0, jacobian.equations), on_progress)
    return Inverse(jacobian, shift, factor.solve, exact=True)


def _factor(jacobian: Shallow, shift: Tensor, block: slice, on_progress: Progress | None) -> Cholesky:
    """Of a diagonal block of J J^T + Λ."""

    def rows(part: slice) -> Tensor:
        return jacobian.gram_rows(slice(block.start + part.start, block.start + part.stop), block.start)

    own = shift.expand(jacobian.equations)[block]
    return cholesky(rows, block.stop - block.start, shift=own, on_progress=on_progress)


def _lifted(jacobian: Shallow, shift: Tensor, block: slice, on_progress: Progress | None) -> Cholesky:
    """The same with the least lift of the diagonal that makes it positive definite in its dtype.

    Raises:
        NotPositiveDefinite: none of the lifts does.
    """
    trace = float(jacobian.gram_diagonal().sum())
    *lifts, last = LIFT
    for lift in lifts:
        try:
            return _factor(jacobian, shift + lift * trace, block, on_progress)
        except NotPositiveDefinite:
            continue
    return _factor(jacobian, shift + last * trace, block, on_progress)


def _solve_blocks(blocks: list[slice], factors: list[Cholesky], right: Tensor) -> Tensor:
    return torch.cat([factor.solve(right[block]) for block, factor in zip(blocks, factors, strict=True)])


def usable(device: torch.device | str) -> torch.device:
    """A device by its name, if it is there.

    Raises:
        InputError: PyTorch does not know it, or cannot use it here.
    """
    try:
        place = torch.zeros(1, device=device)
        place.item()
        return place.device
    except (RuntimeError, AssertionError, TypeError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise InputError(f"device {device!r} cannot be used here: {reason}.") from None


def available(device: torch.device) -> int:
    """Bytes that a solver may take by default: most of what is free."""
    if device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0]
    else:
        try:
            lines = Path("/proc/meminfo").read_text().splitlines()
            free = next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable"))
        except (OSError, StopIteration):
            free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    return int(FREE * free)
