"""Singular values of J [E, P] and of its columns in each layer, from triangles or from Gram matrices.

J J^T = R^T R is the sum of the layers' own, and R is that of the layers' triangles on top of one another.
Fewer columns than E are always decomposed: that takes less than their Gram matrix, and tells their rank.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from typing import Final

import torch
from torch import Tensor

from isthmus.errors import InputError
from isthmus.jacobian.gram import by_layer, summed, symmetric
from isthmus.jacobian.memory import room
from isthmus.jacobian.operator import Jacobian
from isthmus.jacobian.shallow import Shallow
from isthmus.jacobian.singular import EPSILON, ONE_BLOCK, Singular, by_gram, by_qr, dense, square, stacked
from isthmus.linalg.cholesky import NotPositiveDefinite, dense_rows, packed_bytes
from isthmus.linalg.lanczos import Operator

MATRICES: Final = 8  # E x E that are held at a time, at most, where J has no structure

Found = tuple[Singular, dict[str, Singular]]  # of all columns, and of each layer's


@dataclass(frozen=True)
class Parts:
    """J, and how its singular values are to be found.

    Attributes:
        jacobian: J.
        trusted: error of σ_min up to which a Gram matrix serves; where it is larger, J is decomposed.
        memory: bytes in all.
        seed: of Lanczos.
    """

    jacobian: Jacobian
    trusted: float
    memory: int
    seed: int

    def by_triangles(self, *, every: bool) -> Found:
        """From R: all singular values, or the extreme ones."""
        layers: dict[str, Singular] = {}
        whole: Tensor | None = None
        for layer, columns in by_layer(self.jacobian, memory=self._room):
            own = stacked(block.T for block in columns)
            layers[layer] = self._of_triangle(own, self.jacobian.layers[layer], every=every)
            whole = own if whole is None else stacked([whole, own])
        assert whole is not None
        return _with_whole(layers, lambda: self._of_triangle(whole, self._all, every=every))

    def by_grams(self) -> Found:
        """From J J^T, for E <= P."""
        layers: dict[str, Singular] = {}
        whole: Tensor | None = None
        for layer, columns in by_layer(self.jacobian, memory=self._room):
            names = self.jacobian.layers[layer]
            if tall := self.jacobian.width(names) < self.jacobian.equations:
                columns = [torch.cat(list(columns), 1)]
                layers[layer] = self._of_triangle(stacked([columns[0].T]), names)
            own = symmetric(summed(columns, self.jacobian))
            if not tall:
                layers[layer] = self._of_gram(dense_rows(own), own.mv, names, self._epsilon)
            whole = own if whole is None else whole.add_(own)
        assert whole is not None
        return _with_whole(
            layers, lambda: self._of_gram(dense_rows(whole), whole.mv, self._all, self._epsilon)
        )

    def by_structure(self, shallow: Shallow) -> Found:
        """From J J^T of a hidden layer and a head, which is computed as it is used, for E <= P."""
        room(self.memory, 2 * packed_bytes(self.jacobian.equations, torch.float64), "a Cholesky factor")

        def of(part: Shallow, names: Collection[str]) -> Singular:
            size = self.jacobian.equations
            if self.jacobian.width(names) < size:
                return self._decomposed(names)
            if size > ONE_BLOCK:
                return self._of_gram(part.gram_rows, part.gram_product, names, EPSILON)
            gram = part.gram_rows(slice(0, size))
            return self._of_gram(lambda _: gram, gram.mv, names, EPSILON)  # one block, to be overwritten

        own = [replace(shallow, features=None), replace(shallow, x=shallow.x[:, :0])]
        parts = own if len(self.jacobian.layers) == 2 else [shallow]
        layers = {
            layer: of(part, names)
            for (layer, names), part in zip(self.jacobian.layers.items(), parts, strict=True)
        }
        return _with_whole(layers, lambda: of(shallow, self._all))

    def _of_gram(
        self, rows: Callable[[slice], Tensor], product: Operator, names: Collection[str], epsilon: float
    ) -> Singular:
        """Of the columns in these parameters, from their Gram matrix, or from themselves if that will not do.

        Raises:
            InputError: it will not do, and is trusted with any error.
        """
        size, device = self.jacobian.equations, self.jacobian.x.device
        try:
            found = by_gram(rows, product, size, epsilon=epsilon, seed=self.seed, device=device)
        except NotPositiveDefinite as error:
            if math.isinf(self.trusted):
                raise InputError(
                    f"J J^T in {', '.join(names)} is singular, so far as float64 can tell (at equation "
                    f"{error.pivot}): sigma_min is 1e-8 sigma_max or less, and method='qr' says what it is."
                ) from None
        else:
            if found.error <= self.trusted:
                return found
        return self._decomposed(names)

    def _decomposed(self, names: Collection[str]) -> Singular:
        columns = self.jacobian.by_columns(names, memory=self._room)
        return self._of_triangle(stacked(block.T for _, block in columns), names)

    def _of_triangle(self, root: Tensor, names: Collection[str], *, every: bool = False) -> Singular:
        """Of the columns in these parameters, from their R [min(E, P), E]."""
        if every:
            return dense(square(root), epsilon=self._epsilon)
        longer = max(self.jacobian.equations, self.jacobian.width(names))
        return by_qr(square(root), tolerance=longer * self._epsilon, epsilon=self._epsilon, seed=self.seed)

    @property
    def _all(self) -> Collection[str]:
        return self.jacobian.point.keys()

    @property
    def _epsilon(self) -> float:
        """What entries of J are off by."""
        return torch.finfo(self.jacobian.dtype).eps

    @property
    def _room(self) -> int:
        """Bytes for blocks of J."""
        size = self.jacobian.equations
        return room(self.memory, MATRICES * 8 * size**2, f"what is made of {size} equations")


def _with_whole(layers: dict[str, Singular], whole: Callable[[], Singular]) -> Found:
    """If there is one layer, it is the whole."""
    return next(iter(layers.values())) if len(layers) == 1 else whole(), layers
