"""A model directory is read whole and sound, or refused by one kind of error, whatever was done to it."""

import json
import os
import pickle
import shutil
import struct

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from torch import nn

from isthmus.certificate import model_digest
from isthmus.errors import ModelFileError
from isthmus.export import load_model
from isthmus.model_file import CERTIFICATE, DEEPEST, DESCRIPTION, LARGEST_JSON, MODEL, Description, read_model
from tests.saved import named_by, random_network, saved

MUTATIONS = 200


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    x = np.random.default_rng(0).standard_normal((6, 2))
    model = random_network(1, [2, 3, 2], nn.Hardtanh())
    return saved(tmp_path_factory.mktemp("models") / "model", model, named_by(model, x))


@pytest.fixture
def directory(original, tmp_path):
    return shutil.copytree(original, tmp_path / "model")


def change(path, **changes):
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, **changes}))


def reissue(directory, **changes):
    """Change the description or the tensors and forge a fitting digest: only the checks are left."""
    tensors = changes.pop("tensors", None)
    if tensors is not None:
        save_file(tensors, directory / MODEL)
    content = json.loads((directory / DESCRIPTION).read_text()) | changes
    (directory / DESCRIPTION).write_text(json.dumps(content))
    layers = Description.model_validate(content).layers()
    change(directory / CERTIFICATE, model_digest=model_digest(layers, load_file(directory / MODEL)))


def refused(directory, message):
    with pytest.raises(ModelFileError, match=message) as caught:
        load_model(directory)
    assert str(directory) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_sound_one_is_read(original):
    found = read_model(original)
    assert [layer.type for layer in found.description.architecture] == ["Linear", "Hardtanh", "Linear"]
    assert {name: value.shape for name, value in found.tensors.items()} == {
        "0.weight": (3, 2),
        "0.bias": (3,),
        "2.weight": (2, 3),
        "2.bias": (2,),
    }
    assert found.certificate.model_digest == model_digest(found.description.layers(), found.tensors)
    assert (found.description.inputs, found.description.widest) == (2, 3)


@pytest.mark.parametrize("name", [MODEL, DESCRIPTION, CERTIFICATE])
class TestEveryFile:
    def test_missing(self, directory, name):
        (directory / name).unlink()
        refused(directory, f"{name}: the file is missing")

    def test_a_directory_in_its_place(self, directory, name):
        (directory / name).unlink()
        (directory / name).mkdir()
        refused(directory, f"{name}: the file is missing")

    def test_a_pipe_is_not_waited_for(self, directory, name):
        (directory / name).unlink()
        os.mkfifo(directory / name)
        refused(directory, f"{name}: the file is missing")

    def test_empty(self, directory, name):
        (directory / name).write_bytes(b"")
        refused(directory, name)

    def test_a_pickle(self, directory, name):
        (directory / name).write_bytes(pickle.dumps({"0.weight": [1.0]}))
        refused(directory, name)

    def test_a_torch_file(self, directory, name):
        torch.save({"0.weight": torch.ones(3, 2)}, directory / name)
        refused(directory, name)

    def test_truncated_anywhere(self, directory, name):
        content = (directory / name).read_bytes()
        for size in range(0, len(content) - 2, max(1, len(content) // 25)):
            (directory / name).write_bytes(content[:size])
            refused(directory, name)

    def test_mutated_anywhere(self, directory, name, original):
        content, sound = (original / name).read_bytes(), read_model(original)
        random = np.random.default_rng(7)
        for _ in range(MUTATIONS):
            damaged = bytearray(content)
            # Half of the damage goes to a tensor file's header, where it does most.
            end = len(content) if random.random() < 0.5 else min(len(content), 300)
            for place in random.integers(0, end, random.integers(1, 4)):
                damaged[place] = random.integers(256)
            if random.random() < 0.3:
                cut = random.integers(len(damaged))
                del damaged[cut : cut + random.integers(1, 9)]
            (directory / name).write_bytes(damaged)
            try:
                found = read_model(directory)
                load_model(directory)
            except ModelFileError:
                continue
            assert found.description.layers() == sound.description.layers()
            assert found.tensors.keys() == sound.tensors.keys()
            for key, value in sound.tensors.items():
                np.testing.assert_array_equal(found.tensors[key], value, strict=True)


class TestTensors:
    @pytest.mark.parametrize("bit", [0, 3, 7])
    @pytest.mark.parametrize("place", [-1, -20, -60])
    def test_one_bit_of_one_weight(self, directory, bit, place):
        content = bytearray((directory / MODEL).read_bytes())
        content[place] ^= 1 << bit
        (directory / MODEL).write_bytes(content)
        refused(directory, "digest differs|not made of finite")

    @pytest.mark.parametrize(
        ("name", "value", "message"),
        [
            ("0.weight", np.ones((2, 3)), "the tensors are"),
            ("0.weight", np.ones(6), "the tensors are"),
            ("0.bias", np.ones(()), "the tensors are"),
            ("0.bias", np.ones(0), "the tensors are"),
            ("extra", np.ones(1), "the tensors are"),
            ("0.bias", np.ones(3, np.float32), "not made of finite float64"),
            ("0.bias", np.ones(3, np.float16), "not made of finite float64"),
            ("0.bias", np.ones(3, np.int64), "not made of finite float64"),
            ("0.bias", np.ones(3, bool), "not made of finite float64"),
            ("0.bias", np.array([1.0, np.nan, 1.0]), "not made of finite float64"),
            ("2.bias", np.array([1.0, -np.inf]), "not made of finite float64"),
        ],
    )
    def test_of_another_kind(self, directory, name, value, message):
        reissue(directory, tensors=load_file(directory / MODEL) | {name: value})
        refused(directory, message)

    def test_one_missing(self, directory):
        tensors = load_file(directory / MODEL)
        del tensors["2.bias"]
        reissue(directory, tensors=tensors)
        refused(directory, "the tensors are")

    @pytest.mark.parametrize("dtype", ["BF16", "F8_E4M3", "F8_E5M2", "U64", "F128"])
    def test_dtypes_that_numpy_lacks(self, directory, dtype):
        header = json.dumps({"0.weight": {"dtype": dtype, "shape": [8], "data_offsets": [0, 64]}}).encode()
        for size in (8, 16, 64, 128):
            content = header.replace(b"64]", str(size).encode() + b"]")
            (directory / MODEL).write_bytes(struct.pack("<Q", len(content)) + content + bytes(size))
            refused(directory, MODEL)

    @pytest.mark.parametrize("size", [1 << 30, 1 << 62, (1 << 64) - 1])
    def test_a_huge_declared_header(self, directory, size):
        content = (directory / MODEL).read_bytes()
        (directory / MODEL).write_bytes(struct.pack("<Q", size) + content[8:])
        refused(directory, "not a safetensors file")

    def test_a_huge_declared_tensor(self, directory):
        entry = {"dtype": "F64", "shape": [1 << 31, 1 << 31], "data_offsets": [0, 1 << 62]}
        header = json.dumps({"0.weight": entry}).encode()
        (directory / MODEL).write_bytes(struct.pack("<Q", len(header)) + header)
        refused(directory, "not a safetensors file")

    def test_a_file_far_too_large(self, directory):
        with (directory / MODEL).open("ab") as file:
            file.truncate(1 << 40)  # sparse
        refused(directory, "larger than any that belongs here")


class TestJson:
    @pytest.mark.parametrize("name", [DESCRIPTION, CERTIFICATE])
    @pytest.mark.parametrize(
        "content",
        [
            "null",
            "[]",
            "3",
            '"text"',
            "{}",
            "{",
            "\x00",
            '{"format": "other"}',
            "[" * 10_000,
            '{"a":' * 10_000,
        ],
    )
    def test_of_another_schema(self, directory, name, content):
        (directory / name).write_text(content)
        refused(directory, f"{name}: damaged or not written by isthmus")

    @pytest.mark.parametrize("name", [DESCRIPTION, CERTIFICATE])
    def test_not_unicode(self, directory, name):
        (directory / name).write_bytes((directory / name).read_bytes() + b"\xff\xfe")
        refused(directory, f"{name}: damaged")

    @pytest.mark.parametrize("name", [DESCRIPTION, CERTIFICATE])
    def test_far_too_large(self, directory, name):
        with (directory / name).open("ab") as file:
            file.truncate(LARGEST_JSON + 1)
        refused(directory, f"{name}: the file is larger")

    @pytest.mark.parametrize("name", [DESCRIPTION, CERTIFICATE])
    @pytest.mark.parametrize("changes", [{"schema_version": 2}, {"unknown": 1}, {"task": "ranking"}])
    def test_a_field_of_a_later_release(self, directory, name, changes):
        change(directory / name, **changes)
        refused(directory, f"{name}: damaged or not written by isthmus: {next(iter(changes))}")

    def test_each_other_s(self, directory):
        shutil.copy(directory / CERTIFICATE, directory / DESCRIPTION)
        refused(directory, f"{DESCRIPTION}: damaged")

    def test_a_certificate_of_another_model(self, directory):
        change(directory / CERTIFICATE, model_digest="0" * 64)
        refused(directory, "their digest differs")

    def test_a_certificate_of_another_task(self, directory):
        change(directory / CERTIFICATE, task="regression")
        refused(directory, "is for regression")

    @pytest.mark.parametrize(
        "changes",
        [
            {"input_shape": [3]},
            {"input_shape": [1, 2]},
            {"input_shape": []},
            {"input_shape": [0]},
            {"input_shape": [-2]},
            {"input_shape": [2, 1 << 39, 1 << 39]},
            {"outputs": 3},
            {"outputs": 0},
            {"classes": [0]},
            {"classes": [0, 0]},
            {"classes": [0, "0"]},
            {"classes": [0, 1, 2]},
            {"classes": []},
            {"columns": ["a"]},
            {"task": "regression"},
            {"dtype": "float32"},
            {"dtype": "bfloat16"},
            {"architecture": []},
            {"kind": None},
            {"recipe": []},
        ],
    )
    def test_parts_that_do_not_fit(self, directory, changes):
        change(directory / DESCRIPTION, **changes)
        refused(directory, r"model\.json|model: |not made of")
        if "task" in changes:
            change(directory / CERTIFICATE, **changes)
            refused(directory, "class names")


LINEAR = {"type": "Linear", "name": "0", "in_features": 2, "out_features": 2, "bias": True}


class TestArchitecture:
    @pytest.mark.parametrize(
        "layer",
        [
            {"type": "Conv2d", "name": "1"},
            {"type": "Sequential", "name": "1"},
            {"type": "ReLU", "name": "1", "inplace": True},
            {"type": "ReLU", "name": ""},
            {"type": "ReLU"},
            {"type": "Hardtanh", "name": "1", "min_val": 0.0},
            {"type": "Hardtanh", "name": "1", "min_val": float("-inf"), "max_val": 1.0},
            {"type": "LeakyReLU", "name": "1", "negative_slope": 2.0},
            {"type": "LeakyReLU", "name": "1", "negative_slope": float("nan")},
            {"type": "Dropout", "name": "1", "p": 1.5},
            {"type": "Linear", "name": "1", "in_features": 0, "out_features": 2, "bias": True},
            {"type": "Linear", "name": "1", "in_features": 2, "out_features": 1 << 50, "bias": True},
            {"type": "Linear", "name": "1", "in_features": 2, "out_features": "2x", "bias": True},
            3,
        ],
    )
    def test_layers_outside_the_list(self, directory, layer):
        change(directory / DESCRIPTION, architecture=[LINEAR, layer])
        refused(directory, f"{DESCRIPTION}: damaged or not written by isthmus: architecture")

    @pytest.mark.parametrize("name", ["0", "0.1", ".", "a..b", ".a", "a.", " ", "é"])
    def test_names(self, directory, name):
        tensors = {"0.weight": np.eye(2), "0.bias": np.zeros(2)}
        reissue(directory, tensors=tensors, architecture=[LINEAR, {"type": "ReLU", "name": name}])
        if name in {" ", "é"}:
            assert [found for found, _ in load_model(directory).named_children()] == ["0", name]
        else:
            refused(directory, "repeat or are out of order")

    @pytest.mark.parametrize("name", ["forward", "training", "_modules", "train", "__class__", "append"])
    def test_names_that_torch_keeps_for_itself(self, directory, name):
        tensors = {"0.weight": np.eye(2), "0.bias": np.zeros(2)}
        reissue(directory, tensors=tensors, architecture=[LINEAR, {"type": "ReLU", "name": name}])
        refused(directory, "no layer can be named")

    def test_nested_names_come_back_nested(self, directory):
        inner = {**LINEAR, "name": "body.0.first"}
        tensors = {"body.0.first.weight": np.eye(2), "body.0.first.bias": np.zeros(2)}
        reissue(directory, tensors=tensors, architecture=[inner, {"type": "ReLU", "name": "body.1"}])
        found = load_model(directory)
        assert list(found.state_dict()) == list(tensors)
        assert torch.equal(found(torch.tensor([[-1.0, 2.0]]).double()), torch.tensor([[0.0, 2.0]]).double())

    @pytest.mark.parametrize(
        ("layers", "shape", "message"),
        [
            ([{**LINEAR, "in_features": 3}], [2], "takes 3 inputs, but gets 2"),
            ([LINEAR], [2, 1], "takes 2 inputs, but gets 2 x 1"),
            ([LINEAR, {**LINEAR, "name": "1", "in_features": 3}], [2], "takes 3 inputs, but gets 2"),
            ([{**LINEAR, "out_features": 3}], [2], "does not give 2 outputs"),
            ([{"type": "ReLU", "name": "0"}], [1, 2], "does not give 2 outputs"),
        ],
    )
    def test_layers_that_do_not_fit(self, directory, layers, shape, message):
        reissue(directory, tensors={}, architecture=layers, input_shape=shape)
        refused(directory, message)


RESIDUAL = {"type": "Residual", "name": "0", "layers": [{**LINEAR, "name": "0.0"}]}
TENSORS = {"0.0.weight": np.eye(2), "0.0.bias": np.zeros(2)}
RELU = {"type": "ReLU", "name": "0.0"}


def nested(depth):
    """A Residual within a Residual within ..., this many of them."""
    name = ".".join(["0"] * (depth + 1))
    layer = {"type": "ReLU", "name": name}
    for _ in range(depth):
        name = name[:-2]
        layer = {"type": "Residual", "name": name, "layers": [layer]}
    return layer


class TestResidual:
    def test_a_sound_one(self, directory):
        wide = {**LINEAR, "name": "0.body.up", "out_features": 7}
        inner = {"type": "Residual", "name": "0.inner", "layers": [{"type": "ReLU", "name": "0.inner.a.b"}]}
        back = {**LINEAR, "name": "0.down", "in_features": 7}
        tensors = {
            "0.body.up.weight": np.ones((7, 2)),
            "0.body.up.bias": np.zeros(7),
            "0.down.weight": np.ones((2, 7)),
            "0.down.bias": np.array([0.5, -0.5]),
        }
        block = {**RESIDUAL, "layers": [wide, inner, back]}
        reissue(directory, tensors=tensors, architecture=[block, {"type": "ReLU", "name": "1"}])
        found = read_model(directory).description
        assert found.widest == 7
        assert json.loads(json.dumps(found.layers()))[0] == block
        model = load_model(directory)
        assert list(model.state_dict()) == list(tensors)
        # 1 - 2 = -1 and 3 + 1 = 4 through seven units that double what is positive.
        x = torch.tensor([[1.0, -2.0], [3.0, 1.0]]).double()
        assert model(x).tolist() == [[0.0, 0.0], [59.5, 56.5]]

    @pytest.mark.parametrize(
        "layer",
        [
            {"type": "Residual", "name": "0"},
            {**RESIDUAL, "layers": []},
            {**RESIDUAL, "layers": {}},
            {**RESIDUAL, "layers": [3]},
            {**RESIDUAL, "layers": [{**RELU, "type": "Sequential"}]},
            {**RESIDUAL, "layers": [{"type": "Flatten", "name": "0.0"}]},
            {**RESIDUAL, "layers": [RELU, {"type": "Flatten", "name": "0.1"}]},
            {**RESIDUAL, "width": 3},
            {**LINEAR, "layers": [RELU]},
        ],
    )
    def test_outside_the_schema(self, directory, layer):
        change(directory / DESCRIPTION, architecture=[layer])
        refused(directory, f"{DESCRIPTION}: damaged or not written by isthmus: architecture")

    @pytest.mark.parametrize(
        "architecture",
        [
            [{**RESIDUAL, "layers": [{**RELU, "name": "0"}]}],
            [{**RESIDUAL, "layers": [{**RELU, "name": "0."}]}],
            [{**RESIDUAL, "layers": [{**RELU, "name": "1.0"}]}],
            [{**RESIDUAL, "layers": [{**RELU, "name": "00.0"}]}],
            [{**RESIDUAL, "layers": [RELU, RELU]}],
            [{**RESIDUAL, "layers": [RELU, {**RELU, "name": "0.0.1"}]}],
            [{**RESIDUAL, "layers": [{**RELU, "name": "0.a.0"}, RELU, {**RELU, "name": "0.a.1"}]}],
            [RESIDUAL, {**RELU, "name": "0.1"}],
            [{**RELU, "name": "0.1"}, RESIDUAL],
            [RESIDUAL, RESIDUAL],
            [{**RESIDUAL, "layers": [{**RESIDUAL, "name": "0.0", "layers": [RELU]}]}],
        ],
    )
    def test_names_that_are_no_tree(self, directory, architecture):
        reissue(directory, tensors=TENSORS, architecture=architecture)
        refused(directory, "repeat or are out of order")

    @pytest.mark.parametrize("name", ["forward", "training", "_modules"])
    def test_names_that_torch_keeps_for_itself(self, directory, name):
        layers = [*RESIDUAL["layers"], {"type": "ReLU", "name": f"0.{name}"}]
        reissue(directory, tensors=TENSORS, architecture=[{**RESIDUAL, "layers": layers}])
        refused(directory, "no layer can be named")

    @pytest.mark.parametrize(
        ("layers", "shape", "message"),
        [
            ([{**LINEAR, "name": "0.0", "out_features": 1}], [2], "layer 0 adds 1 values to 2"),
            ([{**LINEAR, "name": "0.0", "out_features": 3}], [2], "layer 0 adds 3 values to 2"),
            ([{**LINEAR, "name": "0.0", "in_features": 3}], [2], "layer 0.0 takes 3 inputs, but gets 2"),
            ([{**LINEAR, "name": "0.0"}], [1, 2], "layer 0.0 takes 2 inputs, but gets 1 x 2"),
            ([RELU], [1, 2], "does not give 2 outputs"),
        ],
    )
    def test_layers_that_do_not_fit(self, directory, layers, shape, message):
        reissue(directory, tensors={}, architecture=[{**RESIDUAL, "layers": layers}], input_shape=shape)
        refused(directory, message)

    def test_as_deep_as_may_be(self, directory):
        reissue(directory, tensors={}, architecture=[nested(DEEPEST)])
        assert load_model(directory)(torch.ones(1, 2).double()).tolist() == [[DEEPEST + 1.0] * 2]

    @pytest.mark.parametrize("depth", [DEEPEST + 1, 40, 80, 99])
    def test_deeper(self, directory, depth):
        change(directory / DESCRIPTION, architecture=[nested(depth)])
        refused(directory, "more than 16 Residuals within one another|Invalid JSON|at most 200")

    @pytest.mark.parametrize("depth", [90, 120, 300, 100_000])
    def test_far_too_deep(self, directory, depth):
        opened, closed = '{"type": "Residual", "name": "0", "layers": [', "]}"
        content = (directory / DESCRIPTION).read_text()
        deep = opened * depth + json.dumps(RELU) + closed * depth
        start, end = content.index('"architecture"'), content.index('"dtype"')
        (directory / DESCRIPTION).write_text(f'{content[:start]}"architecture": [{deep}], {content[end:]}')
        refused(directory, f"{DESCRIPTION}: damaged or not written by isthmus")


GATES = {
    "type": "Gates",
    "name": "0.patches.0",
    "inputs": 2,
    "gates": 3,
    "outputs": 2,
    "tilted": False,
    "directions": 0,
}
PATCHED = {
    "type": "Patched",
    "name": "0",
    "base": [{**LINEAR, "name": "0.base.0"}],
    "patches": [GATES],
}

BARE = {"type": "Patched", "name": "", "base": [], "patches": []}


def gate_tensors(name, tilted=False):
    """Tensors of GATES, all zeros but for shifts of 1: every gate is open everywhere."""
    held = {f"{name}.{field}": np.zeros(3) for field in ("center", "curvature", "plateau", "slope")}
    held |= {f"{name}.normal": np.zeros((3, 2)), f"{name}.shift": np.ones((3, 2))}
    return held | ({f"{name}.tilt": np.ones((3, 2, 2))} if tilted else {})


PATCHED_TENSORS = {
    "0.base.0.weight": np.eye(2),
    "0.base.0.bias": np.zeros(2),
    **gate_tensors("0.patches.0"),
}


class TestPatched:
    def test_a_sound_one(self, directory):
        second = {**GATES, "name": "0.patches.1", "tilted": True}
        tensors = PATCHED_TENSORS | gate_tensors("0.patches.1", tilted=True)
        model = {**PATCHED, "patches": [GATES, second]}
        reissue(directory, tensors=tensors, architecture=[model])
        found = read_model(directory).description
        assert (found.widest, found.foreign) == (6, None)
        assert json.loads(json.dumps(found.layers())) == [model]
        before = torch.get_rng_state()
        back = load_model(directory)
        assert torch.equal(torch.get_rng_state(), before)
        assert {name: value.numpy().tolist() for name, value in back.state_dict().items()} == {
            name: value.tolist() for name, value in tensors.items()
        }
        # x + 3 + 3 (1 + x1 + x2)
        assert back(torch.tensor([[1.0, -2.0]]).double()).tolist() == [[4.0, 1.0]]

    @pytest.mark.parametrize(
        ("base", "names"),
        [
            ([{**LINEAR, "name": "base"}], ["base.weight", "base.bias"]),
            ([{**LINEAR, "name": "base.a.b"}], ["base.a.b.weight", "base.a.b.bias"]),
            ([], []),
        ],
    )
    def test_a_whole_model(self, directory, base, names):
        architecture = [
            {**PATCHED, "name": "", "base": base, "patches": [{**GATES, "name": "patches.0"}]},
        ]
        tensors = dict(zip(names, (np.eye(2), np.zeros(2)), strict=False)) | gate_tensors("patches.0")
        reissue(directory, tensors=tensors, architecture=architecture)
        assert load_model(directory)(torch.tensor([[1.0, -2.0]]).double()).tolist() == [[4.0, 1.0]]

    @pytest.mark.parametrize(
        "layer",
        [
            {"type": "Patched", "name": "0"},
            {**PATCHED, "layers": []},
            {**PATCHED, "shares": False},
            {**PATCHED, "base": [GATES]},
            {**PATCHED, "base": [{"type": "Foreign", "name": "model", "module": "Net"}]},
            {**PATCHED, "patches": [LINEAR]},
            {**PATCHED, "patches": [{**GATES, "gates": 0}]},
            {**PATCHED, "patches": [{**GATES, "tilted": 2}]},
            {**PATCHED, "patches": [{**GATES, "slope": 1.0}]},
            GATES,
            {**RESIDUAL, "layers": [{**PATCHED, "base": [{"type": "Flatten", "name": "0.0.base"}]}]},
        ],
    )
    def test_outside_the_schema(self, directory, layer):
        change(directory / DESCRIPTION, architecture=[layer])
        refused(directory, f"{DESCRIPTION}: damaged or not written by isthmus: architecture")

    @pytest.mark.parametrize(
        "architecture",
        [
            [{**PATCHED, "base": [{**LINEAR, "name": "0.0"}]}],
            [{**PATCHED, "base": [{**LINEAR, "name": "1.base.0"}]}],
            [{**PATCHED, "base": [{**LINEAR, "name": "0.patches.0"}]}],
            [{**PATCHED, "base": [{**LINEAR, "name": "0.base.0"}, {**RELU, "name": "0.base"}]}],
            [{**PATCHED, "base": [{**RELU, "name": "0.base"}, {**RELU, "name": "0.base"}]}],
            [{**PATCHED, "patches": [{**GATES, "name": "0.patches.1"}]}],
            [{**PATCHED, "patches": [{**GATES, "name": "patches.0"}]}],
            [{**PATCHED, "patches": [{**GATES, "name": ""}]}],
            [{**PATCHED, "patches": [GATES, GATES]}],
            [{**PATCHED, "name": ""}],
            [{**PATCHED, "name": "", "base": [PATCHED], "patches": []}],
            [{**BARE, "base": [BARE]}],
            [BARE, {**RELU, "name": "1"}],
            [PATCHED, {**RELU, "name": "0.a"}],
        ],
    )  # fmt: skip
    def test_names_that_are_no_tree(self, directory, architecture):
        change(directory / DESCRIPTION, architecture=architecture)
        refused(directory, "repeat or are out of order|at least 1 character")

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"patches": [{**GATES, "inputs": 3}]}, "gives 2 values of 3, but the layers beside it 2 of 2"),
            ({"patches": [{**GATES, "outputs": 1}]}, "gives 1 values of 2, but the layers beside it 2 of 2"),
            ({"base": [{**LINEAR, "name": "0.base", "out_features": 1}]}, "but the layers beside it 1 of 2"),
            ({"base": [{**LINEAR, "name": "0.base", "in_features": 1}]}, "takes 1 inputs, but gets 2"),
        ],
    )
    def test_layers_that_do_not_fit(self, directory, changes, message):
        reissue(directory, tensors={}, architecture=[{**PATCHED, **changes}])
        refused(directory, message)

    @pytest.mark.parametrize("name", PATCHED_TENSORS)
    def test_tensors_that_are_missing_or_of_another_shape(self, directory, name):
        for changed in ({}, {name: np.zeros((1, 4))}):
            tensors = {key: value for key, value in PATCHED_TENSORS.items() if key != name} | changed
            reissue(directory, tensors=tensors, architecture=[PATCHED])
            refused(directory, "the tensors are")

    def test_a_tilt_that_is_not_described(self, directory):
        tensors = PATCHED_TENSORS | gate_tensors("0.patches.0", tilted=True)
        reissue(directory, tensors=tensors, architecture=[PATCHED])
        refused(directory, "the tensors are")

    def test_more_gates_than_there_can_be(self, directory):
        huge = {**PATCHED, "patches": [{**GATES, "gates": (1 << 40) - 1}]}
        reissue(directory, tensors=PATCHED_TENSORS, architecture=[huge])
        refused(directory, "the tensors are")

    def test_as_deep_as_may_be(self, directory):
        layer, name = {**RELU, "name": "0" + ".base" * DEEPEST}, "0" + ".base" * DEEPEST
        for _ in range(DEEPEST):
            name = name[: -len(".base")]
            layer = {"type": "Patched", "name": name, "base": [layer], "patches": []}
        reissue(directory, tensors={}, architecture=[layer])
        assert load_model(directory)(torch.tensor([[1.0, -1.0]]).double()).tolist() == [[1.0, 0.0]]
        deeper = {"type": "Residual", "name": "0", "layers": [layer]}
        change(directory / DESCRIPTION, architecture=[deeper])
        refused(directory, "more than 16 Residuals within one another, or Patched")


FOREIGN = {"type": "Foreign", "name": "model", "module": "Net"}


class TestForeign:
    def test_any_tensors_are_good(self, directory):
        tensors = {"w": np.ones((2, 3), np.float32), "n": np.array(3), "b": np.array([True, False])}
        reissue(directory, tensors=tensors, architecture=[FOREIGN])
        found = read_model(directory)
        assert found.description.foreign == "Net"
        assert (found.description.inputs, found.description.widest) == (2, 2)
        assert {name: (value.dtype, value.shape) for name, value in found.tensors.items()} == {
            name: (value.dtype, value.shape) for name, value in tensors.items()
        }
        refused(directory, "the model is a Net, whose layers are not described; give load_model a module")

    @pytest.mark.parametrize("value", [np.array([np.nan]), np.array([1.0, -np.inf], np.float32)])
    def test_but_not_what_is_not_finite(self, directory, value):
        reissue(directory, tensors={"w": value}, architecture=[FOREIGN])
        refused(directory, "w is not made of finite numbers")

    @pytest.mark.parametrize("value", [np.ones(2, np.uint64), np.ones(2, np.uint16)])
    def test_nor_of_other_dtypes(self, directory, value):
        reissue(directory, tensors={"w": value}, architecture=[FOREIGN])
        refused(directory, "of a dtype that is saved")

    def test_one_that_is_too_large(self, directory, monkeypatch):
        reissue(directory, tensors={"w": np.ones(9)}, architecture=[FOREIGN])
        monkeypatch.setattr("isthmus.model_file.LARGEST_FOREIGN", 8)
        monkeypatch.setattr("isthmus.model_file.LARGEST_HEADER", 8)
        refused(directory, "larger than any that belongs here")

    @pytest.mark.parametrize(
        "architecture",
        [
            [FOREIGN, {**RELU, "name": "1"}],
            [FOREIGN, FOREIGN],
            [{**FOREIGN, "name": "0"}],
            [{**FOREIGN, "module": ""}],
            [{**FOREIGN, "layers": []}],
        ],
    )
    def test_outside_the_schema(self, directory, architecture):
        change(directory / DESCRIPTION, architecture=architecture)
        refused(directory, "damaged or not written by isthmus")

    def test_other_parts_are_still_checked(self, directory):
        reissue(directory, tensors={"w": np.ones(2)}, architecture=[FOREIGN], outputs=3)
        refused(directory, "2 class names for 3 outputs")
        reissue(directory, tensors={"w": np.ones(2)}, architecture=[FOREIGN], outputs=2)
        save_file({"w": np.zeros(2)}, directory / MODEL)
        refused(directory, "digest differs")


class TestPlaces:
    def test_no_directory(self, tmp_path):
        refused(tmp_path / "none", "there is no such model directory")

    def test_a_file(self, directory):
        refused(directory / MODEL, "this is a file, but a model directory is wanted")

    def test_an_empty_directory(self, tmp_path):
        refused(tmp_path, "the file is missing")

    def test_an_impossible_name(self, tmp_path):
        refused(tmp_path / ("m" * 300), "cannot be opened|no such")

    def test_a_text_path_and_a_link(self, directory):
        (directory.parent / "link").symlink_to(directory)
        for place in (str(directory), directory.parent / "link"):
            assert read_model(place).description.outputs == 2

    def test_one_left_aside_by_a_crash_is_put_back(self, directory):
        directory.rename(directory.parent / ".model.aside")
        assert read_model(directory).description.outputs == 2
        assert [entry.name for entry in directory.parent.iterdir()] == ["model"]
