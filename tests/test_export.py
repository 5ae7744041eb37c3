"""What is saved comes back bit for bit, opens without isthmus, and says the same in ONNX Runtime."""

import json
import re
import shutil
import subprocess
import sys
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

from isthmus import export
from isthmus.certify import certify
from isthmus.data import from_arrays
from isthmus.errors import InputError, IsthmusError, ModelFileError, UnsupportedModel
from isthmus.export import export_onnx, load_model, save
from isthmus.memorize import memorize
from isthmus.model_file import CERTIFICATE, DEEPEST, DESCRIPTION, MODEL, ONNX, read_model
from isthmus.nets.patched import Gates, Patched
from isthmus.nets.residual import Residual
from isthmus.predict import predict
from isthmus.verify import verify
from tests.saved import named_by, random_network, result

RANDOM = np.random.default_rng(5)
X = RANDOM.standard_normal((12, 3))
LABELS = np.arange(12) % 3
VALUES = np.column_stack([np.sin(X.sum(1)), X[:, 0] * X[:, 1]])
README = Path(__file__).parents[1] / "README.md"
CASTS = {torch.float64: ".double()", torch.float32: "", torch.float16: ".half()"}
SMALL = {
    "classes": lambda: memorize((X, LABELS)),
    "leaky": lambda: memorize((X, LABELS), activation="leaky_relu"),
    "float32": lambda: memorize((X, LABELS), dtype=torch.float32),
    "float16": lambda: memorize((X, LABELS), dtype=torch.float16, method="gates"),
    "regression": lambda: memorize((X, VALUES)),
    "affine": lambda: memorize((X[:, :1], 2 * X[:, 0] + 0.25)),
    "images": lambda: memorize((RANDOM.integers(0, 256, (8, 2, 3)).astype(np.uint8), np.arange(8) % 2)),
    "single row": lambda: memorize((X[:1], VALUES[:1])),
}


def names(folder):
    return sorted(entry.name for entry in folder.iterdir())


def same(one, other):
    one, other = one.state_dict(), other.state_dict()
    return list(one) == list(other) and all(torch.equal(one[n], other[n]) for n in one)


@pytest.fixture(scope="module")
def small():
    return memorize((X, LABELS))


@pytest.fixture(scope="module", params=SMALL)
def exported(request, tmp_path_factory):
    found = SMALL[request.param]()
    place = tmp_path_factory.mktemp("models") / "model"
    return found, place, save(place, found, onnx=True)


class TestOnnx:
    def test_every_row_agrees(self, exported):
        found, place, certificate = exported
        (backend,) = certificate.backends
        assert (backend.name, backend.dtype) == ("onnxruntime", found.certificate.dtype)
        assert (backend.rows, backend.wrong) == (found.data.rows, 0)
        assert read_model(place).certificate == certificate
        assert certificate.model_copy(update={"backends": ()}) == found.certificate

    def test_batches_of_any_size(self, exported):
        found, place, _ = exported
        session = onnxruntime.InferenceSession(str(place / ONNX), providers=["CPUExecutionProvider"])
        x = found.data.x.to(next(found.model.parameters()).dtype)
        with torch.no_grad():
            wanted = found.model(x)
        for size in {1, 2, 5, len(x)}:
            parts = [torch.from_numpy(session.run(["y"], {"x": part.numpy()})[0]) for part in x.split(size)]
            assert parts[0].dtype == wanted.dtype
            found_bound = found.certificate.bound
            assert float((torch.cat(parts) - wanted).abs().max()) <= found_bound

    def test_metadata(self, exported):
        found, place, certificate = exported
        session = onnxruntime.InferenceSession(str(place / ONNX), providers=["CPUExecutionProvider"])
        metadata = session.get_modelmeta().custom_metadata_map
        assert metadata["model_digest"] == certificate.model_digest == found.certificate.model_digest
        assert metadata["data_digest"] == found.data.digest
        assert json.loads(metadata["classes"]) == list(found.data.classes)

    def test_the_directory_round_trips(self, exported):
        found, place, _ = exported
        assert names(place) == sorted([MODEL, DESCRIPTION, CERTIFICATE, ONNX])
        assert names(place.parent) == ["model"]
        back = load_model(place)
        assert same(back, found.model)
        assert not back.training
        x = found.data.x.to(next(found.model.parameters()).dtype)
        with torch.no_grad():
            assert torch.equal(back(x), found.model(x))
        description = read_model(place).description
        assert description.classes == found.data.classes
        assert description.input_shape == tuple(found.data.x.shape[1:])
        assert description.recipe == json.loads(json.dumps(found.recipe))


def test_opens_without_isthmus(tmp_path):
    # The snippet of the README, letter by letter but for narrower dtypes, where isthmus cannot be imported.
    section = README.read_text(encoding="utf-8").partition("## Without isthmus")[2]
    snippet = re.findall(r"```python\n(.*?)```", section, re.DOTALL)[0]
    code = "import os, sys\nsys.modules['isthmus'] = None\n"
    wanted = {}
    for name, make in SMALL.items():
        found, folder = make(), tmp_path / name
        folder.mkdir()
        save(folder / "model", found)
        x = found.data.x.to(next(found.model.parameters()).dtype)
        torch.save(x, folder / "inputs.pt")
        with torch.no_grad():
            wanted[name] = found.model(x)
        code += f"os.chdir({str(folder)!r})\n"
        code += snippet.replace(".double()", CASTS[x.dtype])
        code += "torch.save(model(torch.load('inputs.pt')).detach(), 'outputs.pt')\n"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
    for name, output in wanted.items():
        assert torch.equal(torch.load(tmp_path / name / "outputs.pt"), output)


def test_nothing_is_said_and_one_file_is_written(small, tmp_path, capfd):
    (tmp_path / "a.onnx").write_text("old")
    backend = export_onnx(small, tmp_path / "a.onnx")
    assert (backend.rows, backend.wrong) == (12, 0)
    assert names(tmp_path) == ["a.onnx"]
    assert capfd.readouterr() == ("", "")


def test_a_wrong_row_is_counted_by_onnx_too(tmp_path):
    model = random_network(3, [3, 4, 3], nn.LeakyReLU())
    data = named_by(model, X)
    y = data.y.clone()
    y[4] = (y[4] + 1) % 3
    (backend,) = save(tmp_path / "m", result(model, replace(data, y=y)), onnx=True).backends
    assert (backend.rows, backend.wrong) == (12, 1)


@pytest.mark.parametrize("activation", [nn.Hardtanh(-0.3, 0.7), nn.LeakyReLU(0.1), nn.ReLU6()])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_constants_reach_onnx_as_the_model_holds_them(tmp_path, activation, dtype):
    # PyTorch's exporter writes plain numbers as float32, even into a float64 graph.
    model = random_network(3, [3, 8, 3], activation, dtype)
    (backend,) = save(tmp_path / "m", result(model, named_by(model, X)), onnx=True).backends
    assert backend.max_difference <= 8 * torch.finfo(dtype).eps


def test_exporting_leaves_a_model_in_its_mode(small, tmp_path):
    small.model.train()
    export_onnx(small, tmp_path / "a.onnx")
    assert all(module.training for module in small.model.modules())
    small.model.eval()


class TestInto:
    def test_a_module_of_the_same_shape(self, small, tmp_path):
        save(tmp_path / "m", small)
        into = load_model(tmp_path / "m")
        for parameter in into.parameters():
            parameter.data.zero_()
        into.train()
        assert load_model(tmp_path / "m", into=into) is into
        assert same(into, small.model)
        assert not into.training

    def test_others_are_refused(self, small, tmp_path):
        save(tmp_path / "m", small)
        for into in (nn.Linear(3, 3).double(), nn.Sequential(nn.Linear(3, 4)).double()):
            with pytest.raises(ModelFileError, match="do not fit the given module"):
                load_model(tmp_path / "m", into=into)
        with pytest.raises(ModelFileError, match="float32"):
            load_model(tmp_path / "m", into=load_model(tmp_path / "m").float())

    def test_loading_leaves_the_random_state(self, small, tmp_path):
        save(tmp_path / "m", small)
        before = torch.get_rng_state()
        load_model(tmp_path / "m")
        assert torch.equal(torch.get_rng_state(), before)


class TestPlace:
    def test_force(self, small, tmp_path):
        save(tmp_path / "m", small)
        with pytest.raises(InputError, match="--force"):
            save(tmp_path / "m", small)
        other = memorize((X, LABELS[::-1].copy()))
        save(tmp_path / "m", other, force=True)
        assert same(load_model(tmp_path / "m"), other.model)
        assert names(tmp_path) == ["m"]

    def test_other_directories_are_not_forced(self, small, tmp_path):
        (tmp_path / "notes").write_text("mine")
        with pytest.raises(InputError, match="never replaced"):
            save(tmp_path, small, force=True)
        assert names(tmp_path) == ["notes"]

    @pytest.mark.parametrize("where", ["export_onnx", "save_file", "_tensors", "read_model"])
    @pytest.mark.parametrize(
        "error", [RuntimeError("no"), OSError(28, "No space left on device"), KeyboardInterrupt()]
    )
    def test_whatever_fails_the_older_one_stays(self, small, tmp_path, monkeypatch, where, error):
        def fail(*_, **__):
            raise error

        save(tmp_path / "m", small)
        before = {file.name: file.read_bytes() for file in (tmp_path / "m").iterdir()}
        monkeypatch.setattr(export, where, fail)
        with pytest.raises(InputError if isinstance(error, OSError) else type(error)):
            save(tmp_path / "m", small, onnx=where == "export_onnx", force=True)
        assert {file.name: file.read_bytes() for file in (tmp_path / "m").iterdir()} == before
        assert names(tmp_path) == ["m"]

    def test_a_model_changed_since_is_refused(self, tmp_path):
        found = memorize((X, LABELS))
        save(tmp_path / "m", found)
        before = (tmp_path / "m" / MODEL).read_bytes()
        with torch.no_grad():
            next(found.model.parameters()).add_(1.0)
        with pytest.raises(ModelFileError, match="digest"):
            save(tmp_path / "m", found, force=True)
        assert (tmp_path / "m" / MODEL).read_bytes() == before

    def test_a_missing_extra_is_named_and_nothing_written(self, small, tmp_path, monkeypatch):
        monkeypatch.setitem(sys.modules, "onnxscript", None)
        with pytest.raises(IsthmusError, match=r"isthmus\[onnx\]"):
            save(tmp_path / "m", small, onnx=True)
        assert names(tmp_path) == []


class Net(nn.Module):
    """A class of the user's: an image network with integer buffers."""

    def __init__(self):
        super().__init__()
        self.filters, self.norm, self.drop = nn.Conv2d(1, 4, 2), nn.BatchNorm2d(4), nn.Dropout(0.5)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.drop(torch.relu(self.norm(self.filters(x)))).flatten(1))


def net(seed=0):
    torch.manual_seed(seed)
    made = Net()
    with torch.no_grad():
        made(torch.randn(20, 1, 2, 3))  # statistics of its own
    return made.requires_grad_(False)


IMAGES = np.random.default_rng(6).standard_normal((30, 1, 2, 3)).astype(np.float32)


def gates():
    made = Gates(6, 2, 3)
    made.normal[0, 0], made.slope[:], made.shift[:] = 1.0, 4.0, torch.arange(6).reshape(2, 3) / 8
    return made


FOREIGN = {
    "Net": net,
    "Patched(Net)": lambda: Patched(net(), [gates()]),
    "Patched(Patched(Net))": lambda: Patched(Patched(net(), [gates()]), [gates(), gates()]),
    "Patched(Sequential, shares)": lambda: Patched(
        nn.Sequential(nn.Flatten(), nn.Linear(6, 3), nn.Softmax(1)), [gates()], shares=True
    ).requires_grad_(False),
    "Sequential": lambda: nn.Sequential(nn.Flatten(), nn.Linear(6, 3), nn.Softmax(1)).requires_grad_(False),
}


class TestForeign:
    @pytest.fixture(scope="class", params=FOREIGN)
    @classmethod
    def foreign(cls, request, tmp_path_factory):
        model = FOREIGN[request.param]().eval()
        data = named_by(model, IMAGES, ("cat", "dog", "eel"))
        place = tmp_path_factory.mktemp("models") / "m"
        return request.param, model, data, save(place, result(model, data), onnx=True), place

    def test_it_comes_back_into_a_module_of_its_class(self, foreign):
        name, model, data, certificate, place = foreign
        saved = read_model(place)
        assert saved.description.layers() == [{"name": "model", "type": "Foreign", "module": name}]
        assert (saved.description.dtype, certificate.level) == ("float32", "measured")
        into = FOREIGN[name]()
        for tensor in into.state_dict().values():
            tensor.zero_()
        assert load_model(place, into=into) is into
        assert same(into, model)
        assert torch.equal(into(data.x), model(data.x))
        assert not any(module.training for module in into.modules())

    def test_no_module_is_made_of_it(self, foreign):
        name, *_, place = foreign
        with pytest.raises(ModelFileError, match=f"the model is a {re.escape(name)}, .*into=module"):
            load_model(place)

    def test_modules_that_do_not_fit(self, foreign):
        name, *_, place = foreign
        with pytest.raises(ModelFileError, match=f"the model is a {re.escape(name)}, but .* a Linear"):
            load_model(place, into=nn.Linear(3, 3))
        with pytest.raises(ModelFileError, match="is float32, but the given module holds it as float64"):
            load_model(place, into=FOREIGN[name]().double())

    def test_onnx_says_the_same(self, foreign):
        _, _, data, certificate, place = foreign
        (backend,) = certificate.backends
        assert (backend.rows, backend.wrong, backend.dtype) == (30, 0, "float32")
        assert backend.max_difference < 1e-5
        seen = verify(place, data, backend="onnxruntime")
        assert (seen.verified, seen.level, seen.proven, seen.bound) == (True, "measured", False, None)
        assert "nothing bounds" in seen.notes[0]
        assert predict(place, IMAGES) == [data.classes[label] for label in data.y]
        y = data.y.clone()
        y[4] = (y[4] + 1) % 3
        assert verify(place, replace(data, y=y), backend="onnxruntime").first_wrong == (5,)

    @pytest.mark.parametrize("backend", ["numpy", "torch", "exact"])
    def test_other_backends_say_what_to_do(self, foreign, backend):
        name, _, data, _, place = foreign
        with pytest.raises(ModelFileError, match="use --backend onnxruntime") as caught:
            verify(place, data, backend=backend)
        assert f"the layers of a {name} are not described" in str(caught.value)
        assert "\n" not in str(caught.value)

    def test_without_an_onnx_file(self, foreign, tmp_path):
        name, _, data, _, place = foreign
        shutil.copytree(place, tmp_path / "m")
        (tmp_path / "m" / ONNX).unlink()
        for question in (lambda: predict(tmp_path / "m", IMAGES),
                         lambda: verify(tmp_path / "m", data, backend="onnxruntime")):  # fmt: skip
            with pytest.raises(ModelFileError, match=f"no such file; save the {re.escape(name)} again"):
                question()

    def test_values(self, tmp_path):
        model = net().eval()
        data = from_arrays(IMAGES, model(torch.from_numpy(IMAGES)).double(), task="regression")
        found = replace(result(model, data), certificate=certify(model, data, tolerance=1e-3))
        save(tmp_path / "m", found, onnx=True)
        seen = verify(tmp_path / "m", data, backend="onnxruntime")
        assert (seen.verified, seen.level, seen.proven) == (True, "measured", False)
        np.testing.assert_allclose(
            predict(tmp_path / "m", IMAGES), model(torch.from_numpy(IMAGES)), atol=1e-5
        )

    def test_in_training_mode(self, tmp_path):
        model = net().eval()
        data = named_by(model, IMAGES)
        found, before = result(model, data), model.norm.running_mean.clone()
        model.train()
        (backend,) = save(tmp_path / "m", found, onnx=True).backends
        assert backend.wrong == 0
        assert all(module.training for module in model.modules())
        assert torch.equal(model.norm.running_mean, before)

    def test_tensors_that_are_not_saved(self, tmp_path):
        model = net().eval()
        model.register_buffer("phase", torch.ones(2, dtype=torch.complex64))
        found = result(model, named_by(model, IMAGES))
        with pytest.raises(UnsupportedModel, match="phase is complex64, not one of float64, "):
            save(tmp_path / "m", found)
        model = WithEpoch(*FOREIGN["Sequential"]()).eval()
        with pytest.raises(UnsupportedModel, match="_extra_state is dict"):
            save(tmp_path / "m", result(model, named_by(model, IMAGES)))
        assert names(tmp_path) == []

    def test_what_the_exporter_cannot_write(self, tmp_path):
        model = Branching().eval()
        found = result(model, named_by(model, X))
        with pytest.raises(UnsupportedModel, match="PyTorch cannot write the model as ONNX") as caught:
            save(tmp_path / "m", found, onnx=True)
        assert "\n" not in str(caught.value)
        assert names(tmp_path) == []
        save(tmp_path / "m", found)


class WithEpoch(nn.Sequential):
    """What keeps more than tensors."""

    def get_extra_state(self):
        return {"epoch": 3}


class Branching(nn.Linear):
    """What depends on the values of its inputs."""

    def __init__(self):
        super().__init__(3, 3, dtype=torch.float64)

    def forward(self, x):
        return super().forward(x) if x.sum().item() > 0 else super().forward(2 * x)


class TestUnusualModels:
    def test_a_layer_used_twice(self, tmp_path):
        tied = nn.Linear(3, 3, dtype=torch.float64).requires_grad_(False)
        model = nn.Sequential(tied, nn.Hardtanh(), tied)
        save(tmp_path / "m", result(model, named_by(model, X)))
        back = load_model(tmp_path / "m")
        assert same(back, model)
        x = torch.from_numpy(X)
        assert torch.equal(back(x), model(x))

    def test_an_activation_used_twice_and_nesting(self, tmp_path):
        act = nn.ReLU6()
        first, second = (nn.Linear(3, 3).requires_grad_(False) for _ in range(2))
        model = nn.Sequential(OrderedDict(a=nn.Sequential(first, act), b=nn.Sequential(second, act)))
        save(tmp_path / "m", result(model, named_by(model, X)))
        back = load_model(tmp_path / "m")
        assert same(back, model)
        assert torch.equal(back(torch.from_numpy(X).float()), model(torch.from_numpy(X).float()))

    @pytest.mark.parametrize("activation", [nn.Hardtanh(-0.3, 0.7), nn.ReLU(), nn.LeakyReLU(0.1)], ids=str)
    @pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64], ids=str)
    def test_residual_blocks(self, tmp_path, dtype, activation):
        block = Residual(*random_network(1, [3, 5, 3], activation, dtype))
        inner = Residual(activation, *random_network(3, [4, 4], activation, dtype))
        model = nn.Sequential(
            OrderedDict(
                block=block,
                again=nn.Sequential(block, activation),
                nest=Residual(
                    random_network(2, [3, 4], activation, dtype), inner, nn.Linear(4, 3, dtype=dtype)
                ),
                head=random_network(4, [3, 3], activation, dtype),
            )
        ).requires_grad_(False)
        assert model(torch.ones(1, 3, dtype=dtype)).isfinite().all()
        found = result(model, named_by(model, X))
        (backend,) = save(tmp_path / "m", found, onnx=True).backends
        assert (backend.dtype, backend.wrong) == (str(dtype).removeprefix("torch."), 0)
        assert backend.max_difference <= found.certificate.bound
        assert backend.max_difference <= 300 * torch.finfo(dtype).eps
        back = load_model(tmp_path / "m")
        x = torch.from_numpy(X).to(dtype)
        assert same(back, model)
        assert torch.equal(back(x), model(x))
        assert torch.equal(back.nest(x), model.nest(x))
        assert [type(layer) for layer in back] == [Residual, nn.Sequential, Residual, nn.Sequential]
        assert type(back.nest[1]) is Residual

    def test_blocks_deeper_than_can_be_read(self, tmp_path):
        block = Residual(nn.Linear(3, 3).double())
        for _ in range(DEEPEST - 1):
            block = Residual(block, nn.Hardtanh())
        model = nn.Sequential(block).requires_grad_(False)
        save(tmp_path / "m", result(model, named_by(model, X)))
        assert same(load_model(tmp_path / "m"), model)
        model = nn.Sequential(Residual(block))
        with pytest.raises(UnsupportedModel, match="more than 16 Residuals within one another"):
            save(tmp_path / "n", result(model, named_by(model, X)))
        assert names(tmp_path) == ["m"]

    def test_weights_that_are_views(self, tmp_path):
        model = random_network(0, [3, 3], nn.ReLU())
        model[0].weight.data = model[0].weight.data.T
        save(tmp_path / "m", result(model, named_by(model, X)))
        assert same(load_model(tmp_path / "m"), model)

    @pytest.mark.parametrize(
        ("model", "error"),
        [
            (nn.Linear(3, 2).double(), UnsupportedModel),
            (Residual(nn.Linear(3, 3)).double(), UnsupportedModel),
            (nn.Sequential(nn.Linear(3, 2)).bfloat16(), InputError),
        ],
    )
    def test_refused_in_one_sentence(self, tmp_path, model, error):
        with pytest.raises(error) as caught:
            save(tmp_path / "m", result(model, named_by(model, X)))
        assert "\n" not in str(caught.value)
        assert names(tmp_path) == []

    def test_names_in_any_script(self, tmp_path):
        data = from_arrays(X[:, :2], np.array(["ä", "日本", "ä\n", '"'] * 3), columns=("größe", "x,\ty"))
        found = memorize(data)
        save(tmp_path / "m", found)
        description = read_model(tmp_path / "m").description
        assert description.classes == data.classes
        assert description.columns == data.columns
        assert (tmp_path / "m" / DESCRIPTION).read_bytes().decode("utf-8")
