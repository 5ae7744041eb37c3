"""Data to fit, and what a returned network gives on it, worked out without isthmus and without PyTorch."""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from isthmus.nets.paired import PairedHead


def regression(rows: int, inputs: int, outputs: int | None = None, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Gaussian inputs [N, d] and targets [N], or [N, K]."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, inputs, generator=g, dtype=torch.float64)
    shape = (rows,) if outputs is None else (rows, outputs)
    return x, torch.randn(shape, generator=g, dtype=torch.float64)


def classes(rows: int, inputs: int, count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Gaussian inputs [N, d] and random labels [N], each of which occurs."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, inputs, generator=g, dtype=torch.float64)
    label = torch.randint(0, count, (rows,), generator=g)
    label[:count] = torch.arange(count)
    return x, label


def forward(model: nn.Sequential, x: Any) -> np.ndarray:
    """A network's outputs [N, K] in NumPy's long double, from its weights as they are stored."""
    value = np.asarray(x).astype(np.longdouble).reshape(len(x), -1)
    for layer in model:
        match layer:
            case nn.Flatten():
                pass
            case PairedHead():
                first, second = np.split(value, 2, axis=1)
                value = (first - second) @ _long(layer.weight).T
            case nn.Linear():
                value = value @ _long(layer.weight).T
                if layer.bias is not None:
                    value = value + _long(layer.bias)
            case nn.Tanh():
                value = np.tanh(value)
            case nn.Sigmoid():
                value = 1 / (1 + np.exp(-value))
            case nn.ReLU():
                value = np.maximum(value, 0)
            case nn.LeakyReLU():
                value = np.where(value > 0, value, np.longdouble(layer.negative_slope) * value)
            case _:
                raise AssertionError(f"a {type(layer).__name__} that a solution should not have")
    return value


def relative_loss(model: nn.Sequential, x: Any, y: Any, mean: Any = 0.0) -> float:
    """``|y - f|^2 / |y - mean|^2`` in long double."""
    target = np.asarray(y).astype(np.longdouble).reshape(len(x), -1)
    residual = target - forward(model, x)
    return float(np.square(residual).sum() / np.square(target - mean).sum())


def wrong(model: nn.Sequential, x: Any, index: Any) -> int:
    """How many rows' own class [N] has not the strictly largest output."""
    output, index = forward(model, x), np.asarray(index)
    own = output[np.arange(len(index)), index]
    rivals = output.copy()
    rivals[np.arange(len(index)), index] = -np.inf
    return int((~(own > rivals.max(1))).sum())


def _long(tensor: Tensor) -> np.ndarray:
    return tensor.detach().double().numpy().astype(np.longdouble)
