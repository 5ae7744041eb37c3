"""Cholesky factorization of a symmetric matrix that is never held: the factor takes its rows as they come.

With block rows A_i = [A_i0, ..., A_ii], up to the diagonal, and those of L before it, block row i of L is

    L_ij = (A_ij - Σ_{k<j} L_ik L_jk^T) L_jj^{-T}  for j < i,    L_ii L_ii^T = A_ii - Σ_{k<i} L_ik L_ik^T.

So a row of A is wanted once, when its own turn comes, and is overwritten there: n^2 / 2 numbers in all, and
almost all work is in products of matrices.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from isthmus._types import Progress

BLOCK = 256  # rows of a block: products are near full speed, triangular solves a small part


class NotPositiveDefinite(ArithmeticError):
    """A pivot that is not positive: the matrix is singular as far as its dtype can tell.

    Attributes:
        pivot: the leading rows up to and including this one are to blame, counted from 0.
    """

    def __init__(self, pivot: int) -> None:
        super().__init__(f"row {pivot} depends on those before it")
        self.pivot = pivot


@dataclass(frozen=True)
class Cholesky:
    """The lower factor L.

    Attributes:
        blocks: its block rows, each [rows, columns up to its last row].
    """

    blocks: tuple[Tensor, ...]

    @property
    def size(self) -> int:
        """n, the rows of L."""
        return self.blocks[-1].shape[1]

    @cached_property
    def pivots(self) -> Tensor:
        """The diagonal of L [n]."""
        return torch.cat([_tile(block).diagonal() for block in self.blocks])

    def solve(self, right: Tensor) -> Tensor:
        """``(L L^T)^-1 b`` in the dtype of b, [n] or [n, k]; each step in the dtype of L."""
        found = right.to(self.blocks[0].dtype, copy=True).reshape(self.size, -1)
        for block in self.blocks:
            start, stop = block.shape[1] - len(block), block.shape[1]
            own = found[start:stop]
            own.addmm_(block[:, :start], found[:start], alpha=-1)
            own.copy_(torch.linalg.solve_triangular(_tile(block), own, upper=False))
        for block in reversed(self.blocks):
            start, stop = block.shape[1] - len(block), block.shape[1]
            own = found[start:stop]
            own.copy_(torch.linalg.solve_triangular(_tile(block).T, own, upper=True))
            found[:start].addmm_(block[:, :start].T, own, alpha=-1)
        return found.reshape(right.shape).to(right.dtype)


def cholesky(
    rows: Callable[[slice], Tensor],
    size: int,
    *,
    shift: float | Tensor = 0.0,
    block: int = BLOCK,
    on_progress: Progress | None = None,
) -> Cholesky:
    """Factorize A + shift I, with A given by block rows.

    Args:
        rows: gives rows a to b of A, columns 0 to b, as a new tensor [b - a, b] that is then overwritten.
        size: n.
        shift: added to the diagonal, one number or one per row [n].
        block: rows at a time.
        on_progress: told which part of the work is done.

    Raises:
        NotPositiveDefinite: a pivot is not positive.
    """
    done: list[Tensor] = []
    for start in range(0, size, block):
        stop = min(start + block, size)
        row = rows(slice(start, stop))
        for before in done:
            first, last = before.shape[1] - len(before), before.shape[1]
            part = row[:, first:last]
            part.addmm_(row[:, :first], before[:, :first].T, alpha=-1)
            part.copy_(torch.linalg.solve_triangular(_tile(before).T, part, upper=True, left=False))
        tile = _tile(row)
        tile.addmm_(row[:, :start], row[:, :start].T, alpha=-1)
        tile.diagonal().add_(shift[start:stop] if isinstance(shift, Tensor) else shift)
        factor, failed = torch.linalg.cholesky_ex(tile)
        if failed:
            raise NotPositiveDefinite(start + int(failed) - 1)
        tile.copy_(factor)
        done.append(row)
        if on_progress is not None:
            on_progress("factorizing", (stop / size) ** 3)
    return Cholesky(tuple(done))


def dense_rows(matrix: Tensor) -> Callable[[slice], Tensor]:
    """Block rows of a symmetric matrix [n, n] that is held."""
    return lambda block: matrix[block, : block.stop].clone()


def packed_bytes(size: int, dtype: torch.dtype, block: int = BLOCK) -> int:
    """What a factor of n rows takes, with the rows that are being made."""
    return dtype.itemsize * (size * (size + block) // 2 + 2 * size * min(block, size))


def _tile(block: Tensor) -> Tensor:
    """The square at the end of a block row."""
    return block[:, block.shape[1] - len(block) :]
