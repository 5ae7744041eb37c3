"""The independent check on patched models: its bound is a bound, all backends agree, tampering is found."""

import json
import shutil
from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from safetensors.numpy import load_file, save_file
from torch import nn

from isthmus import graph
from isthmus.arithmetic.rounding import running_bound
from isthmus.certificate import model_digest
from isthmus.certify import certify, decision_margins
from isthmus.data import from_arrays
from isthmus.errors import ModelFileError
from isthmus.export import load_model
from isthmus.model_file import CERTIFICATE, DESCRIPTION, MODEL, ONNX, Description, read_model
from isthmus.nets.patched import Gates, Patched
from isthmus.nets.residual import Residual
from isthmus.predict import predict
from isthmus.verify import verify
from tests.arithmetic.gated import gates_near
from tests.saved import model_file, named_by, random_network, saved
from tests.test_verify import BACKENDS, agree, assert_bounded, evaluated

KINDS = ("slab", "sphere", "tilted")
DTYPES = (torch.float64, torch.float32, torch.float16)


def numpy_name(dtype):
    return graph.dtype_name(dtype)


def gates_of(kind, x, outputs, seed=0, count=3):
    """Gates of one kind that are open at the first rows, and shut at some distance."""
    rng = np.random.default_rng(seed)
    rows = x[:count].astype(np.float64)
    made = Gates(x.shape[1], count, outputs, tilted=kind == "tilted")
    normal = rng.normal(size=rows.shape)
    if kind == "sphere":
        normal = -2 * rows
        made.curvature.fill_(1.0)
        made.center.copy_(torch.from_numpy(-np.square(rows).sum(1)))
    else:
        made.center.copy_(torch.from_numpy((normal * rows).sum(1)))
    made.normal.copy_(torch.from_numpy(normal))
    made.plateau.fill_(0.5)
    made.slope.fill_(8.0)
    made.shift.copy_(torch.from_numpy(rng.integers(-5, 6, (count, outputs)) + 0.25))
    if made.tilt is not None:
        made.tilt.copy_(torch.from_numpy(rng.normal(size=made.tilt.shape)))
    return made


def patched(kind, x, dtype, seed=1):
    base = nn.Sequential(nn.Flatten(), *random_network(seed, [x.shape[1], 6, 3], nn.ReLU(), dtype))
    return Patched(base, [gates_of(kind, x, 3)]).requires_grad_(False).eval()


def certain(model, x, shape=None):
    """Rows on which the model's own decision is proven, as it labels them."""
    x = x if shape is None else x.reshape(-1, *shape)
    rows = named_by(model, x)
    lead, spread = decision_margins(
        *running_bound(graph.stages(model), rows.x.to(graph.dtype_of(model))), rows.y
    )
    rows = named_by(model, x[(lead > 2 * spread).all(1).numpy()])
    assert rows.rows > 20
    return rows


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_bound_holds_for_gates(dtype):
    said = []
    for seed in range(60):
        rng = np.random.default_rng([seed, DTYPES.index(dtype)])
        inputs, hidden, outputs = rng.integers(1, 6, 3).tolist()
        x = (rng.normal(size=(4, inputs)) * 10.0 ** rng.integers(-2, 3)).astype(numpy_name(dtype))
        before = random_network(seed, [inputs, inputs], nn.Hardtanh(), dtype)
        rows = before(torch.from_numpy(x)).double().numpy() if seed % 2 else x
        patches = [gates_near(rng, rows, int(rng.integers(1, 5)), outputs, k == seed % 3) for k in range(2)]
        base = random_network(seed + 1, [inputs, hidden, outputs], nn.ReLU(), dtype)
        model = nn.Sequential(*before, Patched(base, patches)) if seed % 2 else Patched(base, patches)
        said.append(assert_bounded(model, x).mean())
    assert np.mean(said) > (0.6 if dtype == torch.float16 else 0.95)


def test_no_bound_where_a_square_overflows():
    base = nn.Sequential(nn.Linear(1, 1, dtype=torch.float64)).requires_grad_(False)
    model = Patched(base, [gates_of("slab", np.zeros((1, 1)), 1, count=1)])
    output, error = evaluated(model, np.array([[1e160], [9.0]]))
    assert error[0, 0] == np.inf
    assert np.isfinite(error[1, 0])
    assert output[1, 0] == base(torch.tensor([[9.0]]).double())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_all_agree_on_patched_models(tmp_path, kind, dtype):
    x = np.random.default_rng(3).integers(-9, 10, (99, 4)).astype(float)
    model = patched(kind, x, dtype)
    rows = certain(model, x)
    place = saved(tmp_path / "m", model, rows, onnx=True)
    certificate = certify(model, rows)
    assert certificate.reaches("proven")
    for seen in agree(place, rows):
        assert seen.bound == pytest.approx(certificate.bound, rel=0.3)
    assert predict(place, rows.x) == rows.y.tolist()
    y = rows.y.clone()
    y[2] = (y[2] + 1) % 3
    for backend in BACKENDS:
        assert verify(place, replace(rows, y=y), backend=backend).first_wrong == (3,)


@pytest.mark.parametrize("kind", KINDS)
def test_images_and_patches_of_patches(tmp_path, kind):
    x = np.random.default_rng(4).integers(0, 9, (60, 4)).astype(float)
    inner = patched(kind, x, torch.float32)
    deeper = Patched(inner, [gates_of("slab", x, 3, 5), gates_of("sphere", x, 3, 6)])
    behind = Patched(
        nn.Linear(3, 3, bias=False), [gates_of("sphere", np.random.default_rng(0).normal(size=(3, 3)), 3, 7)]
    )
    behind.base.weight.data.copy_(torch.eye(3))
    model = nn.Sequential(deeper, nn.Identity(), Residual(behind, nn.Hardtanh())).requires_grad_(False).eval()
    rows = certain(model, x, (2, 2))
    place = saved(tmp_path / "m", model, rows, onnx=True)
    agree(place, rows)
    back = load_model(place)
    assert list(back.state_dict()) == list(model.state_dict())
    assert torch.equal(back(rows.x.float()), model(rows.x.float()))
    assert [type(back[0]), type(back[0].base), type(back[2][0])] == [Patched] * 3


def test_regression_is_verified_and_bitwise_where_gates_add_whole_numbers(tmp_path):
    x = np.random.default_rng(3).integers(-9, 10, (50, 4)).astype(float)
    model = patched("slab", x, torch.float64)
    for layer in model.base[1::2]:
        if isinstance(layer, nn.Linear):
            layer.weight.copy_(layer.weight.mul(4).round())
            layer.bias.copy_(layer.bias.mul(4).round())
    whole = x @ model.patches[0].normal.numpy().T - model.patches[0].center.numpy()
    x = x[((abs(whole) < 0.5) | (abs(whole) > 0.625)).all(1) & ((abs(whole) < 0.5).sum(1) < 2)]
    rows = from_arrays(x, model(torch.from_numpy(x)), task="regression")
    place = saved(tmp_path / "m", model, rows, onnx=True)
    assert certify(model, rows).level == "bitwise"
    assert certify(model, rows).bound == 0
    for backend in BACKENDS:
        seen = verify(place, rows, backend=backend)
        assert (seen.verified, seen.level) == (True, "bitwise")


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    x = np.random.default_rng(3).integers(-9, 10, (60, 4)).astype(float)
    model = patched("tilted", x, torch.float32)
    rows = certain(model, x)
    return saved(tmp_path_factory.mktemp("m") / "m", model, rows, onnx=True), rows


class TestTampered:
    @pytest.fixture
    def place(self, original, tmp_path):
        return shutil.copytree(original[0], tmp_path / "m")

    @pytest.mark.parametrize("name", ["patches.0.normal", "patches.0.tilt", "base.1.weight"])
    def test_a_tensor(self, place, name):
        tensors = load_file(place / MODEL)
        tensors[name].flat[0] += 1
        save_file(tensors, place / MODEL)
        with pytest.raises(ModelFileError, match="digest"):
            load_model(place)

    def forge(self, place, tensors):
        save_file(tensors, place / MODEL)
        content = json.loads((place / CERTIFICATE).read_text())
        layers = Description.model_validate_json((place / DESCRIPTION).read_bytes()).layers()
        content["model_digest"] = model_digest(layers, load_file(place / MODEL))
        (place / CERTIFICATE).write_text(json.dumps(content))

    def test_gates_with_a_digest_that_fits(self, place, original):
        tensors = load_file(place / MODEL)
        tensors["patches.0.plateau"][:] = 1e6  # all open everywhere
        self.forge(place, tensors)
        assert verify(place, original[1]).wrong > 0

    def test_gates_in_the_dtype_of_the_base(self, place):
        tensors = load_file(place / MODEL)
        tensors["patches.0.center"] = tensors["patches.0.center"].astype(np.float32)
        self.forge(place, tensors)
        with pytest.raises(ModelFileError, match=r"patches\.0\.center is not made of finite float64 numbers"):
            read_model(place)

    def test_a_base_in_the_dtype_of_the_gates(self, place):
        tensors = load_file(place / MODEL)
        tensors["base.1.weight"] = tensors["base.1.weight"].astype(np.float64)
        self.forge(place, tensors)
        with pytest.raises(ModelFileError, match=r"base\.1\.weight is not made of finite float32 numbers"):
            read_model(place)

    @pytest.mark.parametrize("value", [np.nan, np.inf])
    def test_numbers_that_are_not_finite(self, place, value):
        tensors = load_file(place / MODEL)
        tensors["patches.0.slope"][1] = value
        self.forge(place, tensors)
        with pytest.raises(ModelFileError, match="slope is not made of finite float64 numbers"):
            load_model(place)

    def test_an_onnx_file_with_other_gates(self, place, original):
        proto = onnx.load(place / ONNX)
        changed = 0
        for initializer in proto.graph.initializer:
            values = onnx.numpy_helper.to_array(initializer)
            if values.dtype == np.float64 and values.size > 1:
                changed += 1
                initializer.CopyFrom(onnx.numpy_helper.from_array(values + 1, initializer.name))
        assert changed
        onnx.save(proto, place / ONNX)
        assert not verify(place, original[1], backend="onnxruntime").proven


def test_gates_are_read_as_they_are_described():
    x = np.zeros((3, 4))
    read = model_file(patched("tilted", x, torch.float32))
    (layer,) = read.description.architecture
    (gates,) = layer.patches
    assert {name: read.tensors[name].shape for name in gates.shapes()} == gates.shapes()
    assert read.description.widest == 9
