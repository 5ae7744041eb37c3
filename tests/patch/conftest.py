"""Small deployed models and what they get wrong."""

import pytest
import torch
from torch import nn

import isthmus


def trained(x, y, outputs, hidden=16, steps=150, dtype=torch.float32):
    """A network fit for a short while: it gets most rows right, and some wrong."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Flatten(), nn.Linear(x[0].numel(), hidden), nn.ReLU(), nn.Linear(hidden, outputs)
    )
    model = model.to(dtype)
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    return model.eval()


@pytest.fixture(scope="session")
def digits():
    """The first half trains, the second half is deployed on: x [N, 8, 8] in [0, 1], y [N]."""
    data = isthmus.load("digits")
    x, y = (data.x.float() / 16).reshape(-1, 8, 8), data.y
    return x[:900], y[:900], x[900:], y[900:]


@pytest.fixture(scope="session")
def deployed(digits):
    x, y, _, _ = digits
    return trained(x, y, 10, steps=60)
