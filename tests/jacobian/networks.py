"""Networks that Jacobians are tried on, and J by plain autograd: one output at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from isthmus.nets.mlp import mlp
from isthmus.nets.resnet import BasicBlock

Case = tuple[nn.Module, Tensor]


class Block(nn.Module):
    """A residual block with BatchNorm whose statistics are not 0 and 1, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.block = BasicBlock(2, 4, 2)
        self.fc = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.block(x).mean((2, 3)))


class Autoencoder(nn.Module):
    """One parameter under two names, and a third use, transposed."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4, bias=False)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(torch.tanh(self.second(torch.tanh(self.first(x)))), self.first.weight.T)


class Shared(nn.Sequential):
    """One layer and one BatchNorm in two places each."""

    def __init__(self) -> None:
        twice = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Tanh())
        super().__init__(twice, twice, nn.Linear(4, 2))


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(4, 2, 6, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x).mean(1)


class Recurrent(nn.Module):
    """vmap has no rule for its kernel."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.fc = nn.LSTM(3, 4, batch_first=True), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.lstm(x)[0][:, -1])


class Deciding(nn.Module):
    """It goes another way for each row, and counts its calls, to no effect."""

    calls: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        y = self.layer(x)
        return torch.stack([row if row.sum() > 0 else row**2 for row in y])


def randn(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def randomized(model: nn.Module, seed: int = 0) -> nn.Module:
    """The model in float64 with every parameter and floating-point buffer drawn anew; variances positive."""
    generator = torch.Generator().manual_seed(seed)
    model.double()
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point() and not name.endswith("calls"):
                drawn = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
                tensor.copy_(0.5 + drawn.abs() if name.endswith("running_var") else drawn / 2)
    return model


CASES: dict[str, Callable[[], Case]] = {
    "mlp": lambda: (randomized(mlp(5, [6, 7, 8], 2, paired=False)), randn(9, 5)),
    "paired": lambda: (randomized(mlp(5, [8], 1)), randn(9, 5)),
    "residual block": lambda: (randomized(Block()), randn(7, 2, 5, 5)),
    "layer norm": lambda: (
        randomized(nn.Sequential(nn.Linear(5, 6), nn.LayerNorm(6), nn.GELU(), nn.Linear(6, 2))),
        randn(9, 5),
    ),
    "tied": lambda: (randomized(Autoencoder()), randn(6, 4)),
    "attention": lambda: (randomized(Attention()), randn(5, 3, 4)),
    "in place": lambda: (
        randomized(nn.Sequential(nn.ReLU(inplace=True), nn.Linear(4, 5), nn.ReLU(inplace=True))),
        randn(6, 4),
    ),
    "pictures": lambda: (
        randomized(
            nn.Sequential(nn.Conv2d(1, 2, 3), nn.Tanh(), nn.MaxPool2d(2), nn.ConvTranspose2d(2, 1, 2))
        ),
        randn(4, 1, 6, 6),
    ),
    "shared": lambda: (randomized(Shared()), randn(6, 4)),
    "one number": lambda: (randomized(nn.Sequential(nn.Linear(3, 1), nn.Flatten(0))), randn(5, 3)),
    "own parameter": lambda: (randomized(nn.Linear(3, 2)), randn(5, 3)),
    "recurrent": lambda: (randomized(Recurrent()), randn(5, 4, 3)),
    "deciding": lambda: (randomized(Deciding()), randn(5, 3)),
}


def jacobian(model: nn.Module, x: Tensor, names: Sequence[str] | None = None) -> Tensor:
    """[N, K, P] by plain autograd, one output at a time."""
    training = [module for module in model.modules() if module.training]
    every = dict(model.named_parameters(remove_duplicate=False))
    parameters = [every[name] for name in names] if names else list(model.parameters())
    model.eval()
    outputs = model(x.clone()).reshape(len(x), -1)
    rows = [
        torch.cat([g.flatten() for g in torch.autograd.grad(each, parameters, retain_graph=True)])
        for each in outputs.flatten()
    ]
    for module in training:
        module.training = True
    return torch.stack(rows).reshape(*outputs.shape, -1)
