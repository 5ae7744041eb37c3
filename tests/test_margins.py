"""Margins against NumPy on the outputs, and against what the certificate says of the same rows."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import isthmus
from tests.saved import random_network


def test_classes() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(50, 4, generator=generator, dtype=torch.float64)
    y = torch.randint(0, 3, (50,), generator=generator)
    model = random_network(1, [4, 7, 3], nn.Tanh())
    found = isthmus.margins(model, (x, y))
    output = model(x).detach().numpy()
    own = output[np.arange(50), y]
    others = output.copy()
    others[np.arange(50), y] = -np.inf
    np.testing.assert_allclose(found.margin, own - others.max(1), atol=1e-9)
    certificate = isthmus.certify(model, (x, y))
    seen = found.to_dict()
    assert seen["wrong"] == certificate.wrong
    assert seen["proven"] == certificate.proven_rows
    assert seen["quantiles"]["0.0"] == pytest.approx(certificate.margin)
    assert found.tightest == (np.argsort(found.margin.numpy(), kind="stable")[:10] + 1).tolist()
    assert f"rows {found.tightest[0]}," in str(found)


def test_values() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(20, 4, generator=generator, dtype=torch.float64)
    model = random_network(1, [4, 7, 2], nn.ReLU())
    shift = 0.2 * torch.rand(20, 2, generator=generator, dtype=torch.float64)
    target = model(x).detach() + shift
    found = isthmus.margins(model, (x, target), tolerance=0.1)
    np.testing.assert_allclose(found.margin, 0.1 - shift.amax(1), atol=1e-12)
    assert found.to_dict()["wrong"] == isthmus.certify(model, (x, target), tolerance=0.1).wrong
    assert found.to_dict()["tolerance"] == 0.1


def test_a_model_that_is_not_understood_has_no_bound() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.GELU(), nn.Linear(4, 2)).double()
    x = torch.arange(12.0, dtype=torch.float64).reshape(4, 3)
    found = isthmus.margins(model, (x, torch.tensor([0, 1, 0, 1])))
    assert torch.isinf(found.bound).all()
    assert found.to_dict()["proven"] == 0
