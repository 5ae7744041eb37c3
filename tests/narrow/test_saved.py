"""A network trained in the regime, on disk: plain layers, certified, without isthmus."""

import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import isthmus
from isthmus.errors import InputError
from isthmus.nets.mlp import mlp
from isthmus.nets.resnet import resnet18


def _trained() -> tuple[nn.Sequential, isthmus.Dataset]:
    wine = isthmus.load("wine")
    x = (wine.x - wine.x.mean(0)) / wine.x.std(0)
    data = isthmus.from_arrays(x, wine.y)
    model = mlp(data.inputs, [12], 3).double()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    isthmus.attach(model, optimizer, blocks="layer1", head="fc", constraint=isthmus.Ball(3.0))
    for _ in range(100):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), data.y).backward()
        optimizer.step()
    return model, data


def test_a_trained_network_is_saved_as_plain_layers_and_verified_everywhere(tmp_path: Path) -> None:
    model, data = _trained()
    certificate = isthmus.save(tmp_path / "m", model, data=data, onnx=True)
    assert certificate.level == "proven"
    assert certificate.wrong == 0
    for backend in ("numpy", "torch", "onnxruntime"):
        assert isthmus.verify(tmp_path / "m", data, backend=backend).verified
    layers = json.loads((tmp_path / "m" / "model.json").read_text())["architecture"]
    assert [layer["type"] for layer in layers] == ["Linear", "Tanh", "Linear"]
    assert not isinstance(model.fc, nn.Linear)
    tensors = load_file(tmp_path / "m" / "model.safetensors")
    first, second = tensors["fc.weight"].chunk(2, 1)
    assert torch.equal(first, model.fc.weight)
    assert torch.equal(first, -second)


def test_a_resnet_is_exported_folded(tmp_path: Path) -> None:
    model = resnet18(3, width=8, small_images=True).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0))
    x = torch.randn(6, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    backend = isthmus.export_onnx(model, tmp_path / "r.onnx", data=(x, torch.arange(6) % 3))
    session = onnxruntime.InferenceSession(tmp_path / "r.onnx")
    (found,) = session.run(None, {"x": x.numpy()})
    np.testing.assert_allclose(found, model(x).detach().numpy(), rtol=1e-3, atol=1e-5)
    assert backend.max_difference < 1e-4


def test_a_model_without_data_is_not_certified(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="give its data too"):
        isthmus.save(tmp_path / "m", mlp(3, [4], 2))
    assert not (tmp_path / "m").exists()


def test_a_result_has_data_of_its_own(tmp_path: Path) -> None:
    data = isthmus.load("wine")
    found = isthmus.memorize(data)
    with pytest.raises(InputError, match="certified on its own"):
        isthmus.save(tmp_path / "m", found, data=data)
