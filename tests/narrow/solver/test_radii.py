"""Loss against radius: every ball has a point of loss 0, and its output weights grow as the ball shrinks."""

import pytest
import torch

import isthmus
from isthmus.errors import InputError
from tests.narrow.solver.problems import regression

RADII = (1.0, 0.1, 0.01, 0.001)


@pytest.mark.parametrize("bias", [True, False])
def test_every_ball_has_a_point_of_loss_zero(bias: bool) -> None:
    x, y = regression(60, 8, seed=1)
    found = isthmus.loss_against_radius((x, y), RADII, bias=bias)
    for point in found:
        assert point.loss <= 1e-18
        assert point.distance <= point.radius
        assert point.kkt.primal == 0.0
        # The sum over rows is the relative loss in units of the targets.
        assert point.kkt.loss == pytest.approx(0.5 * point.loss * float((y**2).sum()), rel=1e-1, abs=1e-16)
    tight = [point for point in found if point.distance > 0.5 * point.radius]
    products = [point.outer * point.radius for point in tight]
    assert len(tight) >= 2
    assert products == pytest.approx([products[0]] * len(products), rel=0.1)


def test_classes_are_refused() -> None:
    with pytest.raises(InputError, match="classification"):
        isthmus.loss_against_radius((torch.randn(6, 2), torch.tensor([0, 1] * 3)), RADII)
