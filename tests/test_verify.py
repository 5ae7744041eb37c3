"""The independent check agrees with the certificate, finds what is wrong, and its bound is a bound."""

import json
from dataclasses import replace
from fractions import Fraction
from importlib import import_module

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from isthmus import graph
from isthmus.arithmetic.exact import exact_forward
from isthmus.certificate import LEVELS
from isthmus.certify import certify
from isthmus.data import Dataset, from_arrays
from isthmus.errors import InputError, ModelFileError, UnsupportedModel
from isthmus.export import Given, save
from isthmus.memorize import memorize
from isthmus.model_file import CERTIFICATE, ONNX
from isthmus.predict import predict
from isthmus.verify import verify
from isthmus.verify_numpy import evaluate_numpy
from tests.saved import model_file, named_by, random_network, result, saved

module = import_module("isthmus.verify")  # isthmus.verify itself is the function

BACKENDS = ("numpy", "torch", "onnxruntime", "exact")
OTHER_ROWS = "these are other rows than the certificate was issued for"
COLUMNS = ("a", "b", "c")
NAMES = ("cat", "dog", "eel")
X = np.random.default_rng(2).integers(-9, 10, (10, 3)).astype(np.float64)
ACTIVATIONS = (nn.Hardtanh(), nn.ReLU(), nn.LeakyReLU(0.1), nn.ReLU6(), nn.Hardtanh(-0.3, 0.1))


def pets():
    return random_network(4, [3, 5, 3], nn.Hardtanh())


def values():
    return random_network(5, [3, 4, 2], nn.LeakyReLU())


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    with torch.no_grad():
        data = from_arrays(X, values()(torch.from_numpy(X)), task="regression", columns=COLUMNS)
    return {
        "classes": saved(folder / "classes", pets(), named_by(pets(), X, NAMES, COLUMNS), onnx=True),
        "values": saved(folder / "values", values(), data, onnx=True),
    }


@pytest.fixture(scope="module")
def data():
    return named_by(pets(), X, NAMES, COLUMNS)


@pytest.fixture(scope="module")
def targets():
    return from_arrays(X, values()(torch.from_numpy(X)), task="regression", columns=COLUMNS)


class TestAgreement:
    @pytest.mark.parametrize("options", [
        {}, {"activation": "relu"}, {"activation": "leaky_relu"}, {"dtype": torch.float32},
        {"method": "interpolant", "activation": "relu"}, {"method": "three-layer"}, {"method": "classifier"},
    ])  # fmt: skip
    @pytest.mark.parametrize("seed", range(3))
    def test_what_is_certified_is_proven(self, tmp_path, options, seed):
        random = np.random.default_rng(seed)
        x = [random.standard_normal((25, 4)), random.integers(0, 256, (25, 2, 3)), np.arange(25.0)][seed]
        found = memorize((x, random.integers(0, 3, 25)), **options)
        save(tmp_path / "m", found)
        seen = verify(tmp_path / "m", found.data)
        assert (seen.verified, seen.wrong, seen.rows, seen.notes) == (True, 0, 25, ())
        assert LEVELS.index(seen.level) >= LEVELS.index(found.certificate.level)
        assert seen.proven

    @pytest.mark.parametrize("backend", BACKENDS)
    @pytest.mark.parametrize("activation", ["hardtanh", "relu", "leaky_relu"])
    def test_float16_by_every_backend(self, tmp_path, backend, activation):
        x, y = np.random.default_rng(0).integers(0, 30, (12, 4)).astype(float), np.arange(12) % 2
        found = memorize((x, y), dtype=torch.float16, activation=activation, level="measured")
        save(tmp_path / "m", found, onnx=backend == "onnxruntime")
        seen = verify(tmp_path / "m", found.data, backend=backend)
        assert (seen.verified, seen.wrong, seen.backend) == (True, 0, backend)
        assert LEVELS.index(seen.level) >= LEVELS.index(found.certificate.level)
        assert predict(tmp_path / "m", x) == y.tolist()
        y[5] = 1 - y[5]
        assert verify(tmp_path / "m", (x, y), backend=backend).first_wrong == (6,)

    def test_rows_are_exact_one_by_one(self, tmp_path):
        # The first row's lead is one bit: proven only because its sums are exact, as the second's are not.
        model = nn.Sequential(nn.Linear(2, 2, bias=False, dtype=torch.float64)).requires_grad_(False)
        model[0].weight.data = torch.tensor([[1.0, 2**-51], [1.0, 0.0]]).double()
        rows = Dataset(
            torch.tensor([[1.0, 1.0], [0.1, -1e3]]).double(), torch.tensor([0, 1]), "classification", (0, 1)
        )
        place = saved(tmp_path / "m", model, rows)
        assert certify(model, rows).level == verify(place, rows).level == "proven"

    @pytest.mark.parametrize("options", [{}, {"dtype": torch.float32, "tolerance": 1e-3}])
    def test_regression(self, tmp_path, options):
        x = np.random.default_rng(1).standard_normal((20, 3))
        found = memorize((x, np.sin(x.sum(1))), **options)
        save(tmp_path / "m", found)
        seen = verify(tmp_path / "m", found.data)
        assert (seen.verified, seen.proven, seen.tolerance) == (True, True, found.certificate.tolerance)
        assert LEVELS.index(seen.level) >= LEVELS.index(found.certificate.level)

    @settings(max_examples=40, derandomize=True)
    @given(seed=st.integers(0, 10**6), activation=st.sampled_from(ACTIVATIONS), half=st.booleans())
    def test_random_networks_as_certify_has_them(self, tmp_path_factory, seed, activation, half):
        dtype = torch.float32 if half else torch.float64
        model = random_network(seed, [3, 6, 4, 3], activation, dtype)
        rows = named_by(model, X)
        y = rows.y.clone()
        y[seed % 10] = (y[seed % 10] + seed % 3) % 3
        rows = replace(rows, y=y)
        place = saved(tmp_path_factory.mktemp("m") / "m", model, rows)
        seen, certificate = verify(place, rows), certify(model, rows)
        assert seen.wrong == certificate.wrong == (seed % 3 != 0)
        assert seen.margin == pytest.approx(certificate.margin, rel=1e-4)
        assert not certificate.wrong or seen.first_wrong == (seed % 10 + 1,)

    def test_a_float32_regression_is_bitwise_in_float32(self, tmp_path):
        model = random_network(8, [3, 1], nn.ReLU(), torch.float32)
        model[0].weight.data.zero_()
        model[0].bias.data.fill_(0.75)
        found = result(model, from_arrays(X, np.full(10, 0.75 + 1e-10), task="regression"))
        place = saved(tmp_path / "m", model, found.data)
        assert verify(place, found.data).level == found.certificate.level == "bitwise"


def evaluated(model, x):
    with np.errstate(all="ignore"):
        return evaluate_numpy(model_file(model))(x)


def assert_bounded(model, x):
    """Every output is as near to the rational one as is said; where nothing is said, nothing is checked."""
    output, error = evaluated(model, x)
    exact = exact_forward(graph.stages(model), x).fractions()
    with torch.no_grad():
        other = model(torch.from_numpy(x)).numpy()
    said = np.isfinite(error)
    for found in (output, other):
        for got, wanted, bound in zip(found[said], exact[said], error[said], strict=True):
            assert abs(Fraction(got.item()) - wanted) <= Fraction(bound.item())
    return said


def agree(place, rows):
    seen = [verify(place, rows, backend=backend) for backend in BACKENDS]
    assert [s.backend for s in seen] == list(BACKENDS)
    for s in seen:
        assert (s.verified, s.proven, s.wrong, s.notes) == (True, True, 0, ())
        assert s.max_error == pytest.approx(seen[0].max_error, abs=max(1e-12, s.bound))
        assert s.margin == (None if rows.task == "regression" else pytest.approx(seen[0].margin, abs=s.bound))
        json.dumps(s.to_dict(), allow_nan=False)
        assert str(s).startswith(f"verified ({s.level}) by {s.backend}")
    return seen


class TestBound:
    @settings(max_examples=300, derandomize=True)
    @given(
        seed=st.integers(0, 10**9),
        widths=st.lists(st.integers(1, 9), min_size=2, max_size=5),
        activation=st.sampled_from(ACTIVATIONS),
        half=st.booleans(),
        scale=st.sampled_from([1e-40, 1e-12, 1e-3, 0.3, 1.0, 30.0, 1e5, 1e12]),
        reach=st.sampled_from([1e-38, 1e-5, 1.0, 255.0, 1e9]),
        whole=st.booleans(),
    )
    def test_holds_against_rational_arithmetic(self, seed, widths, activation, half, scale, reach, whole):
        dtype = torch.float32 if half else torch.float64
        model = random_network(seed, widths, activation, dtype, scale)
        x = np.random.default_rng(seed).standard_normal((4, widths[0])) * reach
        if whole:  # dyadic weights of few bits, for which sums are exact
            power = np.ldexp(1.0, int(np.log2(scale)))
            for parameter in model.parameters():
                parameter.data = (parameter.double() / scale * 4).round().mul(power).to(dtype)
            x = np.round(x / reach * 4) * np.ldexp(1.0, int(np.log2(reach)))
        said = assert_bounded(model, x.astype(str(dtype).removeprefix("torch.")))
        assert said.all() or scale > 1e3  # nothing overflows below

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    @pytest.mark.parametrize("powers", [(-100, -60), (-80, -69), (-600, -500), (-537, -537), (-1000, -70)])
    def test_products_that_underflow_are_not_exact(self, dtype, powers):
        model = nn.Sequential(nn.Linear(1, 1, dtype=dtype)).requires_grad_(False)
        model[0].weight.data.fill_(2.0 ** powers[0])
        model[0].bias.data.zero_()
        x = np.full((1, 1), 2.0 ** powers[1], dtype=str(dtype).removeprefix("torch."))
        assert assert_bounded(model, x).all()

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_sums_that_overflow_are_not_exact(self, dtype):
        top = float(torch.finfo(dtype).max)
        half = 2.0 ** (np.log2(top) // 2)
        model = nn.Sequential(nn.Linear(4, 1, bias=False, dtype=dtype), nn.Hardtanh()).requires_grad_(False)
        model[0].weight.data = torch.tensor([[half, half, -half, -half]], dtype=dtype)
        x = np.full((1, 4), half, dtype=str(dtype).removeprefix("torch."))
        output, error = evaluated(model, x)
        assert abs(output[0, 0]) <= error[0, 0] or np.isnan(output[0, 0])
        assert error[0, 0] > 0

    def test_integers_are_exact(self):
        model = random_network(0, [3, 4, 2], nn.ReLU())
        for parameter in model.parameters():
            parameter.data = (parameter * 3).round()
        output, error = evaluated(model, X)
        assert not error.any()
        assert (output == exact_forward(graph.stages(model), X).fractions()).all()

    def test_smooth_layers_against_a_finer_float(self):
        for activation in (nn.Tanh(), nn.Sigmoid()):
            for seed in range(30):
                model = random_network(seed, [3, 8, 8, 2], activation, torch.float32)
                output, error = evaluated(model, X.astype(np.float32))
                with torch.no_grad():
                    fine = model.double()(torch.from_numpy(X)).numpy()
                assert (np.abs(output - fine) <= error).all()


class TestBackends:
    @pytest.mark.parametrize("name", ["classes", "values"])
    def test_all_agree(self, places, data, targets, name):
        agree(places[name], data if name == "classes" else targets)

    @pytest.mark.parametrize("backend", BACKENDS)
    def test_all_find_wrong_rows(self, places, data, backend):
        y = data.y.clone()
        y[[2, 9]] = (y[[2, 9]] + 1) % 3
        seen = verify(places["classes"], replace(data, y=y), backend=backend)
        assert (seen.verified, seen.wrong, seen.first_wrong, seen.level) == (False, 2, (3, 10), "none")
        assert seen.notes == (OTHER_ROWS,)
        assert "wrong rows  3, 10" in str(seen)

    def test_exact_proves_no_more_than_the_others(self, tmp_path):
        # The lead is clear in rational arithmetic, but less than rounding may take.
        model = nn.Sequential(nn.Linear(2, 2, bias=False, dtype=torch.float64)).requires_grad_(False)
        model[0].weight.data = torch.tensor([[0.1, 0.2 + 2**-52], [0.3, 0.0]], dtype=torch.float64)
        rows = Dataset(torch.ones(1, 2).double(), torch.tensor([0]), "classification", (0, 1))
        place = saved(tmp_path / "m", model, rows)
        for backend in ("numpy", "torch", "exact"):
            seen = verify(place, rows, backend=backend)
            assert (seen.verified, seen.level, seen.proven) == (True, "measured", False)

    def test_others_are_unknown(self, places, data):
        with pytest.raises(InputError, match="unknown backend 'jax'; choose one of numpy"):
            verify(places["classes"], data, backend="jax")

    def test_smooth_layers_have_no_exact_value(self, tmp_path):
        model = random_network(0, [3, 4, 2], nn.Tanh())
        rows = named_by(model, X)
        place = saved(tmp_path / "m", model, rows)
        assert verify(place, rows).verified
        with pytest.raises(UnsupportedModel):
            verify(place, rows, backend="exact")

    def test_parts_say_the_same(self, places, data, monkeypatch):
        whole = verify(places["classes"], data)
        monkeypatch.setattr(module, "WORKSPACE", 17)
        parts = []
        seen = verify(places["classes"], data, on_progress=lambda what, part: parts.append(part))
        assert (seen.wrong, seen.level, seen.margin) == (
            whole.wrong,
            whole.level,
            pytest.approx(whole.margin),
        )
        assert parts == sorted(parts)
        assert len(parts) > 2
        assert parts[-1] == 1.0


class TestOnnxFile:
    @pytest.fixture
    def copy(self, places, tmp_path):
        shutil = import_module("shutil")
        return shutil.copytree(places["classes"], tmp_path / "m")

    def refused(self, place, data, message):
        with pytest.raises(ModelFileError, match=message):
            verify(place, data, backend="onnxruntime")

    def test_missing(self, copy, data):
        (copy / ONNX).unlink()
        self.refused(copy, data, "isthmus export .* --onnx")

    @pytest.mark.parametrize("content", [b"", b"no ONNX", b"\x80\x04."])
    def test_damaged(self, copy, data, content):
        (copy / ONNX).write_bytes(content)
        self.refused(copy, data, "not a sound ONNX file")

    def test_truncated(self, copy, data):
        content = (copy / ONNX).read_bytes()
        for size in range(0, len(content), len(content) // 10):
            (copy / ONNX).write_bytes(content[:size])
            self.refused(copy, data, ONNX)

    def test_of_another_model(self, copy, places, data):
        (copy / ONNX).write_bytes((places["values"] / ONNX).read_bytes())
        self.refused(copy, data, "its digest differs")

    @pytest.mark.parametrize("classes", ['["dog", "cat", "eel"]', "[", "3"])
    def test_of_other_classes(self, copy, data, classes):
        proto = onnx.load(copy / ONNX)
        next(p for p in proto.metadata_props if p.key == "classes").value = classes
        onnx.save(proto, copy / ONNX)
        self.refused(copy, data, ONNX)

    def test_of_other_weights_with_the_same_digest(self, copy, places, data):
        # Whoever forges the digest is found out by the rows.
        proto = onnx.load(copy / ONNX)
        for initializer in proto.graph.initializer:
            if initializer.raw_data:
                initializer.raw_data = bytes(len(initializer.raw_data))
        onnx.save(proto, copy / ONNX)
        assert not verify(copy, data, backend="onnxruntime").verified

    def test_of_weights_that_happen_to_be_right(self, copy, data):
        # Every row is right, but nothing is proven of this network.
        proto = onnx.load(copy / ONNX)
        last = max(proto.graph.initializer, key=lambda initializer: initializer.name)
        weight = onnx.numpy_helper.to_array(last)
        last.CopyFrom(onnx.numpy_helper.from_array(weight * (1 + 1e-9), last.name))
        onnx.save(proto, copy / ONNX)
        seen = verify(copy, data, backend="onnxruntime")
        assert (seen.verified, seen.level, seen.proven) == (True, "measured", False)

    def test_of_other_inputs_with_the_same_digest(self, copy, places, data):
        proto = onnx.load(places["values"] / ONNX)
        wanted = {p.key: p.value for p in onnx.load(copy / ONNX).metadata_props}
        for entry in proto.metadata_props:
            entry.value = wanted[entry.key]
        onnx.save(proto, copy / ONNX)
        self.refused(copy, data, ONNX)


class TestMatching:
    @pytest.mark.parametrize("backend", BACKENDS)
    def test_classes_in_another_order(self, places, data, backend):
        order = torch.tensor([2, 0, 1])
        names = tuple(NAMES[index] for index in torch.argsort(order))
        seen = verify(places["classes"], replace(data, y=order[data.y], classes=names), backend=backend)
        assert (seen.verified, seen.wrong, seen.notes) == (True, 0, (OTHER_ROWS,))

    def test_a_subset_of_classes(self, places, data):
        rows = data.take(torch.nonzero(data.y == data.y[0]).squeeze(1))
        rows = replace(rows, y=torch.zeros_like(rows.y), classes=(NAMES[int(data.y[0])],))
        assert verify(places["classes"], rows).verified

    def test_numbers_and_their_names(self, tmp_path):
        rows = named_by(pets(), X, (3, 7, 11))
        place = saved(tmp_path / "m", pets(), rows)
        assert verify(place, replace(rows, classes=("3", "7", "11"))).verified

    def test_an_unknown_class_counts_as_wrong(self, places, data):
        seen = verify(places["classes"], replace(data, classes=("cow", "dog", "eel")))
        cats = int((data.y == 0).sum())
        assert cats > 0
        assert seen.wrong == cats
        assert seen.first_wrong == tuple((torch.nonzero(data.y == 0).squeeze(1) + 1).tolist())
        assert seen.notes[0] == f"the model knows no class 'cow': {cats} row(s) count as wrong"

    def test_columns_in_another_order_and_more_of_them(self, places, data):
        rows = replace(data, x=data.x[:, [2, 0, 1]], columns=("c", "a", "b"))
        assert verify(places["classes"], rows).verified
        wider = torch.column_stack([data.x, torch.zeros(10).double()])[:, [3, 2, 1, 0]]
        assert verify(places["classes"], replace(data, x=wider, columns=("z", "c", "b", "a"))).verified

    def test_columns_without_names(self, places, data):
        assert verify(places["classes"], replace(data, columns=())).verified

    def test_a_missing_column(self, places, data):
        with pytest.raises(InputError, match="no input column 'b'"):
            verify(places["classes"], replace(data, columns=("a", "x", "c")))

    @pytest.mark.parametrize("x", [X[:, :2], np.column_stack([X, X]), X[:, :, None] * np.ones(2)])
    def test_other_shapes(self, places, data, x):
        with pytest.raises(InputError, match=r"\d inputs in a row, but the model takes 3"):
            verify(places["classes"], replace(data, x=torch.from_numpy(x), columns=()))

    def test_other_tasks(self, places, data, targets):
        with pytest.raises(InputError, match="read as regression, but the model is for classification"):
            verify(places["classes"], targets)
        with pytest.raises(InputError, match="read as classification, but the model is for regression"):
            verify(places["values"], data)

    def test_other_targets(self, places, targets):
        with pytest.raises(InputError, match="1 targets, but the model has 2 outputs"):
            verify(places["values"], replace(targets, y=targets.y[:, :1]))


class TestTolerance:
    @pytest.fixture
    def off(self, targets):
        """Targets that are half a unit away in row 7."""
        y = targets.y.clone()
        y[6, 1] += 0.5
        return replace(targets, y=y)

    @pytest.mark.parametrize(("tolerance", "wrong"), [(0.4, 1), (0.499999, 1), (0.500001, 0), (9.0, 0)])
    def test_what_is_beyond_it_is_wrong(self, places, off, tolerance, wrong):
        seen = verify(places["values"], off, tolerance=tolerance)
        assert (seen.wrong, seen.verified, seen.tolerance) == (wrong, not wrong, tolerance)
        assert seen.first_wrong == (7,) * wrong
        assert seen.max_error == pytest.approx(0.5)
        assert seen.notes == (OTHER_ROWS,)

    def test_by_default_the_certificate_s_or_a_part_of_the_range(self, places, targets, off):
        certificate = json.loads((places["values"] / CERTIFICATE).read_text())
        assert verify(places["values"], targets).tolerance == certificate["tolerance"]
        assert verify(places["values"], off).tolerance == 1e-8 * off.target_range()

    def test_right_but_not_proven_is_not_verified(self, places, targets):
        seen = verify(places["values"], targets, tolerance=1e-15)
        assert not seen.verified
        assert not seen.proven

    def test_none_for_classes(self, places, data):
        with pytest.raises(InputError, match="tolerance"):
            verify(places["classes"], data, tolerance=0.1)


def test_pairs_of_arrays(tmp_path):
    found = memorize((X, np.arange(10) % 4))
    save(tmp_path / "m", found)
    assert verify(str(tmp_path / "m"), (X, np.arange(10) % 4)).notes == ()
    assert verify(tmp_path / "m", (X[:3], np.arange(3))).notes == (OTHER_ROWS,)


def test_a_model_that_overflows_is_wrong_and_not_proven(tmp_path):
    model = random_network(1, [3, 3], nn.ReLU())
    model[0].weight.data *= 1e307
    rows = Dataset(torch.full((2, 3), 1e9).double(), torch.tensor([0, 1]), "classification", (0, 1, 2))
    place = tmp_path / "m"
    save(place, Given(model, certify(model, rows), rows, {"plan": {"method": "by hand"}}))
    seen = verify(place, rows)
    assert (seen.verified, seen.wrong, seen.proven, seen.max_error, seen.bound) == (
        False,
        2,
        False,
        None,
        None,
    )
