"""Small networks as `save` takes them, and model directories written by hand."""

from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from isthmus import graph
from isthmus.certify import certify
from isthmus.data import Dataset, from_arrays
from isthmus.export import Given, save
from isthmus.model_file import Description, ModelFile


def result(model: nn.Module, data: Any) -> Given:
    """Any network on any data, as if it had been memorized."""
    data = data if isinstance(data, Dataset) else from_arrays(*data)
    return Given(model.eval(), certify(model, data), data, {"plan": {"method": "by hand"}})


def random_network(seed: int, widths: list[int], activation: nn.Module, dtype=torch.float64, scale=1.0):
    """Linear layers with one activation between them, all weights from one generator."""
    random = torch.Generator().manual_seed(seed)
    layers: list[nn.Module] = []
    for fan_in, fan_out in pairwise(widths):
        layer = nn.Linear(fan_in, fan_out, dtype=dtype)
        for parameter in layer.parameters():
            parameter.data = (torch.randn(parameter.shape, generator=random).double() * scale).to(dtype)
        layers += [layer, activation]
    return nn.Sequential(*layers[:-1]).requires_grad_(False).eval()


def named_by(model: nn.Module, x: Any, classes: tuple[str | int, ...] = (), columns=()) -> Dataset:
    """Rows labelled by the model itself, which is right wherever there is no tie."""
    x, dtype = torch.as_tensor(x), next(model.parameters()).dtype
    with torch.no_grad():
        output = model(x.to(dtype))
    classes = classes or tuple(range(output.shape[1]))
    return Dataset(x, output.argmax(1), "classification", classes, columns)


def saved(path: Path, model: nn.Module, data: Any, **options: Any) -> Path:
    save(path, result(model, data), **options)
    return path


def model_file(model: nn.Module) -> ModelFile:
    """What is read of a model, without the disk: description and tensors alone."""
    linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
    description = Description.model_validate({
        "kind": "by hand",
        "task": "regression",
        "architecture": graph.describe(model),
        "dtype": graph.dtype_name(graph.dtype_of(model)),
        "input_shape": (linear[0].in_features,),
        "outputs": linear[-1].out_features,
        "columns": (),
        "classes": (),
        "recipe": {},
    })
    tensors = {name: value.numpy() for name, value in model.state_dict().items()}
    return ModelFile(Path("model"), description, tensors, SimpleNamespace())
