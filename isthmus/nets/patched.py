"""A model with gates beside it: what is outside every gate gets the model's own outputs, bit for bit."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Self

import torch
from torch import Tensor, nn


class Gates(nn.Module):
    """Gates that open around some inputs and add something to a model's outputs there.

    The sum over g of ``o_g(x) (c_g + V_g x)``, with ``o_g = r(1 - s_g r(|q_g| - a_g))`` and ``r = max(0,
    .)``.

    The gate is open around q = 0, where ``q_g(x) = k_g |x|^2 + u_g x - b_g``: a hyperplane if k is 0, and a
    sphere's center if q is ``|x - p|^2``. With a frame W, q is a function of W x in place of x. In floating
    point, too, a gate is exactly 1 where the size of q is computed as a or less, and exactly 0 from a + 1 / s
    on; between them it falls linearly. It takes three ReLUs: two for the size of q beyond the plateau, one
    for the roof.

    Tensors stay in float64 when the module is cast, and inputs are widened to it: a plane that passes between
    thousands of rows is rounded away in less.

    Args:
        inputs: d, how many numbers a row has.
        gates: G.
        outputs: K.
        tilted: whether the gates add affine functions of x, rather than constants.
        directions: r, the rows of the frame; 0 if there is none.

    Attributes:
        frame: W [r, d], or None.
        normal: u [G, d], or [G, r] with a frame.
        center: b [G].
        curvature: k [G].
        plateau: a [G].
        slope: s [G].
        shift: c [G, K].
        tilt: V [G, K, d], or None.

    Source: after Yun, Sra, Jadbabaie 2019 (arXiv 1810.07770), Corollary 4.2; the roof over two sides is an
    addition, as are spheres and tilts.
    """

    frame: Tensor | None
    normal: Tensor
    center: Tensor
    curvature: Tensor
    plateau: Tensor
    slope: Tensor
    shift: Tensor
    tilt: Tensor | None

    def __init__(
        self, inputs: int, gates: int, outputs: int, tilted: bool = False, directions: int = 0
    ) -> None:
        super().__init__()
        self.inputs, self.gates, self.outputs = inputs, gates, outputs
        self.tilted, self.directions = tilted, directions
        frame = torch.zeros(directions, inputs, dtype=torch.float64) if directions else None
        self.register_buffer("frame", frame)
        shapes = {"normal": (gates, directions or inputs), "center": (gates,), "curvature": (gates,)}
        shapes |= {"plateau": (gates,), "slope": (gates,), "shift": (gates, outputs)}
        for name, shape in shapes.items():
            self.register_buffer(name, torch.zeros(shape, dtype=torch.float64))
        tilt = torch.zeros(gates, outputs, inputs, dtype=torch.float64) if tilted else None
        self.register_buffer("tilt", tilt)

    def framed(self, x: Tensor) -> Tensor:
        """What the gates look at: inputs [N, *shape] as rows [N, d], or [N, r] with a frame, in float64."""
        x = x.flatten(1).to(self.normal.dtype)
        return x if self.frame is None else x @ self.frame.T

    def level(self, x: Tensor) -> Tensor:
        """Compute q [N, G] for inputs [N, *shape]."""
        x = self.framed(x)
        return x @ self.normal.T - self.center + x.square().sum(1, keepdim=True) * self.curvature

    def distance(self, x: Tensor) -> Tensor:
        """How far inputs [N, *shape] are from every plane (with |u| = 1) or center [N, G]."""
        level = self.level(x).abs()
        return torch.where(self.curvature > 0, level.sqrt(), level)

    def opening(self, x: Tensor) -> Tensor:
        """How far gates are open [N, G], 0 to 1, for inputs [N, *shape]; closed where these are no number."""
        opening = torch.relu(1 - self.slope * torch.relu(self.level(x).abs() - self.plateau))
        return torch.where(opening > 0, opening, 0.0)

    def forward(self, x: Tensor) -> Tensor:
        """What is added to a model's outputs [N, K], in float64, for inputs [N, *shape]."""
        opening = self.opening(x)
        if self.tilt is None:
            return opening @ self.shift
        tilted = (x.flatten(1).to(self.tilt.dtype) @ self.tilt.flatten(0, 1).T).unflatten(1, self.shift.shape)
        return torch.where(opening[:, :, None] > 0, opening[:, :, None] * (tilted + self.shift), 0.0).sum(1)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        def placed(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

        return super()._apply(placed, recurse)


class Patched(nn.Module):
    """x -> f(x) + the gates' values, added in float64 and rounded once: an exactly repaired model.

    Args:
        base: f, a model of any kind; its parameters stay as they are.
        patches: what is added, one after the other.
        shares: whether the outputs are shares of 1, as of a softmax: then what the gates open is added to the
            shares, and all of them are divided by their new sum.
    """

    def __init__(self, base: nn.Module, patches: Iterable[Gates], shares: bool = False) -> None:
        super().__init__()
        self.base, self.patches, self.shares = base, nn.ModuleList(patches), shares

    def gates(self) -> list[Gates]:
        """What was added, in order."""
        return [patch for patch in self.patches if isinstance(patch, Gates)]

    def forward(self, x: Tensor) -> Tensor:
        """Apply to inputs [N, *shape]."""
        added = [patch(x) for patch in self.patches]  # first, for the base may work in place
        output = self.base(x)
        # In float64, so that large outputs can be moved to small values.
        result, total = output.double(), torch.zeros_like(output, dtype=torch.float64)
        for shift in added:
            result, total = result + shift, total + shift
        if self.shares:
            # Not by the sum of the shares themselves, whose rounding would reach every row.
            total = total.sum(1, keepdim=True)
            result = result / (1 + total)
        return torch.where(total != 0, result.to(output.dtype), output)
