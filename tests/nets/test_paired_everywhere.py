"""`PairedHead` bounded, certified, saved, verified and exported: what rounds, and what is said of it."""

import math
import shutil
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file
from torch import Tensor, nn

from isthmus import graph
from isthmus.arithmetic.exact import dyadic, exact_forward
from isthmus.arithmetic.rounding import running_bound
from isthmus.certificate import LEVELS, Certificate
from isthmus.certify import certify, decision_margins
from isthmus.data import Dataset, from_arrays
from isthmus.errors import InputError
from isthmus.export import Given, load_model, save
from isthmus.graph import Dense, Paired, Stage
from isthmus.model_file import DESCRIPTION, MODEL, ONNX, Description, ModelFile, read_model
from isthmus.nets.paired import PairedHead
from isthmus.nets.residual import Residual
from isthmus.precision import SIGMAS, compare_precision, expected_error
from isthmus.predict import predict
from isthmus.verify import BackendName, verify
from isthmus.verify_numpy import evaluate_numpy
from tests.arithmetic.evaluations import (
    DTYPES,
    KINDS,
    ORDERS,
    bounds_of,
    evaluate,
    evaluate_fused,
    evaluate_permuted,
    large,
    subnormal,
)
from tests.saved import named_by
from tests.test_model_file import change, refused, reissue

ALL_DTYPES = [*DTYPES, torch.float16]
BACKENDS: tuple[BackendName, ...] = ("numpy", "torch", "onnxruntime", "exact")
X = np.random.default_rng(2).integers(-9, 10, (24, 3)).astype(np.float64)


def paired(weight: Any, bias: Any = None, dtype: torch.dtype = torch.float64) -> Paired:
    bias = None if bias is None else torch.tensor(bias, dtype=dtype)
    return Paired(torch.tensor(weight, dtype=dtype), bias)


def paired_network(
    seed: int, widths: list[int], *, dtype: torch.dtype = torch.float64, apart: float | None = None
) -> nn.Sequential:
    """A ReLU network with a head; apart: by how much the halves before it differ, if they nearly cancel."""
    random = torch.Generator().manual_seed(seed)
    layers: list[nn.Module] = []
    for fan_in, fan_out in pairwise(widths[:-1]):
        layers += [nn.Linear(fan_in, fan_out), nn.ReLU()]
    model = nn.Sequential(*layers, PairedHead(*widths[-2:])).requires_grad_(False)
    for parameter in model.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=random))
    model = model.to(dtype)
    if apart is not None:
        for parameter in model[-3].parameters():
            first, second = parameter.chunk(2, 0)
            second.copy_(first * (1 + apart * torch.randn(first.shape, generator=random).to(dtype)))
    return model.eval()


class Saved(NamedTuple):
    """A network, its directory, and the rows and certificate in it."""

    place: Path
    model: nn.Sequential
    rows: Dataset
    certificate: Certificate


def recorded(model: nn.Module, data: Dataset, tolerance: float | None = None) -> Given:
    certificate = certify(model, data, tolerance=tolerance)
    return Given(model, certificate, data, {"plan": {"method": "by hand"}})


def model_file(model: nn.Module) -> ModelFile:
    """What is read of a model, without the disk: description and tensors alone."""
    head = model[-1]
    description = Description.model_validate({
        "kind": "by hand",
        "task": "regression",
        "architecture": graph.describe(model),
        "dtype": graph.dtype_name(graph.dtype_of(model)),
        "input_shape": (model[0].in_features,),
        "outputs": head.out_features,
        "columns": (),
        "classes": (),
        "recipe": {},
    })
    tensors = {name: value.numpy() for name, value in model.state_dict().items()}
    return ModelFile(Path("model"), description, tensors, SimpleNamespace())


# Rounding, bounded.


def random_network(rng: np.random.Generator, kind: Any, dtype: torch.dtype) -> tuple[nn.Sequential, Tensor]:
    """A random ReLU network whose last layer is a head, and inputs [3, d]."""
    info = torch.finfo(dtype)

    def numbers(shape: tuple[int, ...]) -> Tensor:
        chosen = kind if rng.random() < 0.7 else KINDS[rng.integers(5)]
        return torch.from_numpy(np.asarray(chosen(rng, shape, info), dtype=float)).to(dtype)

    half, outputs, depth = int(rng.integers(1, 6)), int(rng.integers(1, 4)), int(rng.integers(0, 3))
    widths = [*rng.integers(1, 8, depth).tolist(), 2 * half]
    model = nn.Sequential()
    for before, after in pairwise(widths):
        model.extend([nn.Linear(before, after, bool(rng.random() < 0.7), dtype=dtype), nn.ReLU()])
    model.append(PairedHead(2 * half, outputs, bool(rng.random() < 0.7), dtype=dtype))
    for parameter in model.requires_grad_(False).parameters():
        parameter.copy_(numbers(tuple(parameter.shape)))
    if depth and rng.random() < 0.5:  # halves that are equal, or nearly so
        for parameter in model[-3].parameters():
            first, second = parameter.chunk(2, 0)
            second.copy_(first * (1 + info.eps * int(rng.integers(0, 3))))
    return model, numbers((3, widths[0]))


def every_evaluation(
    stages: list[Stage], x: Tensor, rng: np.random.Generator, *, fused: bool
) -> list[np.ndarray]:
    """The network in many orders of summation; the difference is taken first in each."""
    *hidden, last = stages
    assert isinstance(last, Paired)
    affine = [Dense(last.weight, last.bias)]

    def difference(features: np.ndarray) -> Tensor:
        half = features.shape[1] // 2
        return torch.from_numpy(features[:, :half] - features[:, half:])

    found = [evaluate_permuted(affine, difference(evaluate_permuted(hidden, x, rng)), rng) for _ in range(2)]
    for order in ORDERS:
        features = evaluate(hidden, x, order)
        found += [
            evaluate(affine, difference(features), other)
            for other in (order, ORDERS[rng.integers(len(ORDERS))])
        ]
    if fused:
        found.append(evaluate_fused(affine, difference(evaluate_fused(hidden, x))))
    return found


def in_fractions(stages: list[Stage], row: list[float]) -> list[Fraction]:
    """One row through affine maps, ReLUs and a head, one fraction at a time."""
    values = [Fraction(value) for value in row]
    for stage in stages:
        if isinstance(stage, Paired):
            half = len(values) // 2
            values = [a - b for a, b in zip(values[:half], values[half:], strict=True)]
        if isinstance(stage, Paired | Dense):
            offsets = [0.0] * len(stage.weight) if stage.bias is None else stage.bias.tolist()
            values = [
                sum((Fraction(w) * v for w, v in zip(weights, values, strict=True)), Fraction(offset))
                for weights, offset in zip(stage.weight.tolist(), offsets, strict=True)
            ]
        else:
            values = [max(value, Fraction(0)) for value in values]
    return values


@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")
@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
@settings(max_examples=120, derandomize=True)
@given(
    seed=st.integers(0, 10**9),
    kind=st.sampled_from(KINDS),
    dtype=st.sampled_from(DTYPES),
)
def test_every_evaluation_is_within_the_bound(seed: int, kind: Any, dtype: torch.dtype):
    rng = np.random.default_rng(seed)
    model, x = random_network(rng, kind, dtype)
    stages = graph.stages(model)
    value, bound = running_bound(stages, x)
    assert (value.dtype, bound.dtype) == (dtype, torch.float64)
    assert not bound.isnan().any()
    known = torch.isfinite(bound).numpy()
    assert known.all() or kind in {large, subnormal}
    exact = exact_forward(stages, x).fractions()
    assert exact.tolist() == [in_fractions(stages, row) for row in x.tolist()]
    allowed = dyadic(bound.numpy()[known]).fractions()
    own = dyadic(value.numpy()[known]).fractions()
    fused = dtype == torch.float64 and bool(known.all())
    for outputs in [value.numpy(), model(x).numpy(), *every_evaluation(stages, x, rng, fused=fused)]:
        found = dyadic(outputs[known]).fractions()  # refuses infinities: the bound is finite here
        assert (abs(found - exact[known]) <= allowed).all()
        assert (abs(found - own) <= 2 * allowed).all()


def test_bounds_are_neither_0_nor_far_above_what_is_seen():
    zero, attained = [], []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        model, x = random_network(rng, KINDS[0], torch.float64)
        stages = graph.stages(model)
        bound = running_bound(stages, x)[1].numpy()
        exact = exact_forward(stages, x).fractions()
        outputs = every_evaluation(stages, x, rng, fused=True)
        seen = max(float(abs(dyadic(found).fractions() - exact).max()) for found in outputs)
        zero.append((bound == 0).mean())
        attained.append(seen / bound.max() if bound.max() else 1.0)
    assert np.mean(zero) < 0.5
    assert np.median(attained) > 0.05


def by_torch(head: PairedHead, x: Tensor) -> tuple[np.ndarray, np.ndarray]:
    value, bound = running_bound(graph.stages(head), x)
    return value.numpy(), bound.numpy()


def by_numpy(head: PairedHead, x: Tensor) -> tuple[np.ndarray, np.ndarray]:
    with np.errstate(all="ignore"):
        return evaluate_numpy(model_file(nn.Sequential(head)))(x.numpy())


@pytest.mark.parametrize("bounded", [by_torch, by_numpy])
@pytest.mark.parametrize("dtype", ALL_DTYPES, ids=str)
def test_a_difference_is_rounded_once_or_not_at_all(bounded: Any, dtype: torch.dtype):
    unit = torch.finfo(dtype).eps / 2
    head = PairedHead(2, 1, bias=False, dtype=dtype).requires_grad_(False)
    head.weight.fill_(1.0)
    # 1 + u is halfway between two numbers; the others are numbers themselves.
    x = torch.tensor([[1.0, -unit], [1.0, -2 * unit], [0.0, -unit], [3.0, 3.0]], dtype=dtype)
    value, bound = bounded(head, x)
    errors = abs(exact_forward(graph.stages(head), x).fractions() - dyadic(value).fractions())
    assert errors.ravel().tolist() == [Fraction(unit), 0, 0, 0]
    assert (errors <= dyadic(bound).fractions()).all()
    # Once for the difference; what is not exact any more is taken to be rounded twice in the sum.
    assert bound[0].item() < 3.1 * unit
    assert not bound[1:].any()


@pytest.mark.parametrize("dtype", ALL_DTYPES, ids=str)
def test_a_difference_of_neighbors_is_exact(dtype: torch.dtype):
    near = 1 - torch.finfo(dtype).eps / 2
    assert not bounds_of(
        [paired([[1.0]], dtype=dtype)], [[1.0, near], [near, 1.0], [-1.0, -near]], dtype
    ).any()


@pytest.mark.parametrize("dtype", ALL_DTYPES, ids=str)
def test_equal_features_are_exact_and_the_result_is_the_bias(dtype: torch.dtype):
    stage = paired([[0.1, 0.7, -0.3], [1e4, 0.3, 9.1]], [0.2, -0.6], dtype)
    x = torch.tensor([[0.3, 0.7, 1e4, 0.3, 0.7, 1e4]], dtype=dtype)
    value, bound = running_bound([stage], x)
    assert torch.equal(value[0], stage.bias)
    assert not bound.any()
    assert running_bound([stage.folded()], x)[1].any()


@pytest.mark.parametrize("bounded", [by_torch, by_numpy])
@pytest.mark.parametrize("dtype", ALL_DTYPES, ids=str)
def test_a_difference_that_may_overflow_has_no_finite_bound(bounded: Any, dtype: torch.dtype):
    top = torch.finfo(dtype).max
    head = PairedHead(2, 1, bias=False, dtype=dtype).requires_grad_(False)
    head.weight.fill_(2.0**-9)
    x = torch.tensor([[0.75 * top, -0.75 * top], [0.75 * top, 0.75 * top]], dtype=dtype)
    assert bounded(head, x)[1].ravel().tolist() == [math.inf, 0.0]


@pytest.mark.parametrize("power", [0, 6, 12])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_bound_is_smaller_than_of_the_folded_layer_by_the_folding_bits(dtype: torch.dtype, power: int):
    half = 20
    head = PairedHead(2 * half, 3, bias=False, dtype=dtype).requires_grad_(False)
    random = torch.Generator().manual_seed(power)
    head.weight.copy_(torch.randn(3, half, generator=random))
    first, other = torch.randn(2, 10, half, generator=random, dtype=torch.float64)
    x = torch.cat([first, first * (1 + 2.0**-power * other)], 1).to(dtype)
    own, wider = (running_bound(stages, x)[1] for stages in (graph.stages(head), graph.stages(head.folded())))
    ratio = wider / own / torch.exp2(head.folding_bits(x).double())
    assert (own > 0).all()
    # Sums of 2 m terms for sums of m and, where it is rounded, a difference.
    assert ((ratio > (2 * half + 1) / (half + 2) * 0.99) & (ratio < 2.0)).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_what_hidden_layers_round_adds_up_over_both_halves(dtype: torch.dtype):
    hidden = Dense(torch.tensor([[0.1, 0.2], [0.3, -0.7]], dtype=dtype), None)
    x = torch.tensor([[1.0, 1.0]], dtype=dtype)
    first, second = running_bound([hidden], x)[1].squeeze(0).tolist()
    bound = running_bound([hidden, paired([[3.0]], dtype=dtype)], x)[1].item()
    assert first > 0
    assert second > 0
    assert 3 * (first + second) < bound < 3 * (first + second) + 3 * torch.finfo(dtype).eps * 3


# The same in NumPy.


@settings(max_examples=100, derandomize=True)
@given(
    seed=st.integers(0, 10**9),
    inputs=st.integers(1, 4),
    half=st.integers(1, 6),
    dtype=st.sampled_from(ALL_DTYPES),
    apart=st.sampled_from([None, 0.0, 1e-6, 1e-2]),
    bias=st.booleans(),
    whole=st.booleans(),
)
def test_the_bound_of_verify_holds_and_is_that_of_certify(
    seed: int, inputs: int, half: int, dtype: torch.dtype, apart: float | None, bias: bool, whole: bool
):
    model = paired_network(seed, [inputs, 2 * half, 2], dtype=dtype, apart=apart)
    if not bias:
        model[-1].bias = None
    if whole:
        for parameter in model.parameters():
            parameter.copy_((parameter * 3).round())
    x = np.random.default_rng(seed).standard_normal((4, inputs))
    x = (np.round(x * 4) if whole else x).astype(graph.dtype_name(dtype))
    output, error = evaluate_numpy(model_file(model))(x)
    stages = graph.stages(model)
    value, bound = running_bound(stages, torch.from_numpy(x))
    exact = exact_forward(stages, x).fractions()
    assert output.dtype == x.dtype
    assert np.isfinite(error).all()
    for found in (output, value.numpy(), model(torch.from_numpy(x)).numpy()):
        assert (abs(dyadic(found).fractions() - exact) <= dyadic(error).fractions()).all()
    theirs = bound.numpy()
    assert not (error[error == 0] < theirs[error == 0]).any()
    rounded = theirs > 0
    np.testing.assert_allclose(error[rounded], theirs[rounded], rtol=0.5)
    if whole:
        assert not error.any()


# Certified, saved and verified.


def classes(dtype: torch.dtype, apart: float | None = None) -> tuple[nn.Sequential, Dataset]:
    """A network and rows named by it, clearly enough for any rounding."""
    model = paired_network(3, [3, 9, 8, 3], dtype=dtype, apart=apart)
    rows = named_by(model, X, ("cat", "dog", "eel"))
    lead, spread = decision_margins(*running_bound(graph.stages(model), rows.x.to(dtype)), rows.y)
    rows = named_by(model, X[(lead > 2 * spread).all(1).numpy()], ("cat", "dog", "eel"))
    assert rows.rows > 9
    return model, rows


def values(model: nn.Module) -> tuple[Dataset, float]:
    """Rows that a network is almost right on, and a tolerance that covers that."""
    y, error = running_bound(graph.stages(model), torch.from_numpy(X).to(graph.dtype_of(model)))
    off = float(error.amax())
    noise = off * torch.linspace(-1, 1, len(X)).double()[:, None]
    return from_arrays(X, y.double() + noise, task="regression"), 8 * off


def all_agree(place: Path, data: Dataset, backends: Sequence[BackendName] = BACKENDS) -> None:
    seen = [verify(place, data, backend=backend) for backend in backends]
    for each, backend in zip(seen, backends, strict=True):
        assert (each.verified, each.proven, each.wrong, each.notes) == (True, True, 0, ())
        assert LEVELS.index(each.level) >= LEVELS.index("proven")
        if backend == "onnxruntime":  # the file's heads are folded, which costs bits
            assert each.bound >= seen[0].bound * 0.99
        else:
            assert each.bound == pytest.approx(seen[0].bound, rel=1e-2)
        assert each.max_error == pytest.approx(seen[0].max_error, abs=each.bound)
        assert each.margin == (
            None if data.task == "regression" else pytest.approx(seen[0].margin, abs=each.bound)
        )


# By dtype, by how much the halves before the head differ.
CLASSIFIERS = {torch.float64: None, torch.float32: 1e-3, torch.float16: None}


@pytest.fixture(scope="module", params=CLASSIFIERS, ids=str)
def classifier(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Saved:
    model, rows = classes(request.param, CLASSIFIERS[request.param])
    place = tmp_path_factory.mktemp("models") / "model"
    return Saved(place, model, rows, save(place, recorded(model, rows), onnx=True))


def test_a_classifier_is_proven_by_all(classifier: Saved):
    place, _, rows, certificate = classifier
    assert (certificate.level, certificate.wrong, certificate.proven_rows) == ("proven", 0, rows.rows)
    all_agree(place, rows)
    assert verify(place, rows).bound == pytest.approx(certificate.bound, rel=0.3)
    assert predict(place, rows.x.numpy()) == [rows.classes[index] for index in rows.y.tolist()]
    y = rows.y.clone()
    y[4] = (y[4] + 1) % 3
    for backend in BACKENDS:
        assert verify(place, replace(rows, y=y), backend=backend).first_wrong == (5,)


def operators(place: Path) -> list[str]:
    return [node.op_type for node in onnx.load(place / ONNX).graph.node]


def test_onnx_has_one_product_of_matrices_for_every_layer(classifier: Saved):
    assert sum(operator in {"Gemm", "MatMul"} for operator in operators(classifier.place)) == 3
    [backend] = classifier.certificate.backends
    assert (backend.name, backend.rows, backend.wrong) == ("onnxruntime", classifier.rows.rows, 0)


@pytest.mark.parametrize("dtype", ALL_DTYPES, ids=str)
def test_a_regression_is_proven(tmp_path: Path, dtype: torch.dtype):
    model = paired_network(4, [3, 9, 8, 2], dtype=dtype)
    data, tolerance = values(model)
    certificate = save(tmp_path / "m", recorded(model, data, tolerance))
    assert (certificate.level, certificate.wrong, certificate.tolerance) == ("proven", 0, tolerance)
    all_agree(tmp_path / "m", data, [backend for backend in BACKENDS if backend != "onnxruntime"])
    assert not verify(tmp_path / "m", data, tolerance=tolerance / 8).verified


def test_equal_halves_are_certified_bitwise(tmp_path: Path):
    model = paired_network(0, [3, 16, 2], apart=0.0)
    model[0].weight.copy_((model[0].weight * 4).round())
    model[0].bias.copy_((model[0].bias * 4).round())
    data = from_arrays(X, model[-1].bias.expand(len(X), 2), task="regression")
    certificate = save(tmp_path / "m", recorded(model, data, 1e-9))
    assert (certificate.level, certificate.max_error, certificate.bound) == ("bitwise", 0.0, 0.0)
    for backend in ("numpy", "torch"):
        assert verify(tmp_path / "m", data, backend=backend).level == "bitwise"


@pytest.mark.parametrize("bias", [True, False])
def test_what_is_saved_comes_back_bit_for_bit(tmp_path: Path, bias: bool):
    model, rows = classes(torch.float32)
    if not bias:
        model[-1].bias = None
        rows = named_by(model, X)
    save(tmp_path / "m", recorded(model, rows))
    before = torch.get_rng_state()
    back = load_model(tmp_path / "m")
    assert torch.equal(torch.get_rng_state(), before)
    assert [type(layer) for layer in back] == [type(layer) for layer in model]
    assert list(back.state_dict()) == list(model.state_dict())
    assert all(torch.equal(back.state_dict()[name], held) for name, held in model.state_dict().items())
    assert torch.equal(back(rows.x.float()), model(rows.x.float()))
    read = read_model(tmp_path / "m")
    assert (read.description.architecture[-1].type, read.description.widest) == ("PairedHead", 9)
    assert read.tensors["4.weight"].shape == (3, 4)
    into = paired_network(9, [3, 9, 8, 3], dtype=torch.float32)
    if not bias:
        into[-1].bias = None
    assert torch.equal(load_model(tmp_path / "m", into=into)[-1].weight, model[-1].weight)


def test_heads_inside_are_saved_and_verified_too(tmp_path: Path):
    block = Residual(nn.Linear(4, 6), nn.ReLU(), PairedHead(6, 4))
    model = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), PairedHead(8, 4), nn.ReLU(), block, PairedHead(4, 3))
    random = torch.Generator().manual_seed(1)
    for parameter in model.double().requires_grad_(False).parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=random))
    data, tolerance = values(model)
    certificate = save(tmp_path / "m", recorded(model, data, tolerance), onnx=True)
    assert certificate.level == "proven"
    assert [(backend.rows, backend.wrong) for backend in certificate.backends] == [(data.rows, 0)]
    all_agree(tmp_path / "m", data)
    back = load_model(tmp_path / "m")
    assert torch.equal(back(data.x), model(data.x))


def test_features_that_do_not_fit_are_not_certified():
    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), PairedHead(4, 2)).double()
    with pytest.raises(InputError, match="does not take inputs"):
        certify(model, named_by(paired_network(0, [3, 4, 2]), X))


# Other machines' ways of evaluating it.


def test_onnx_is_as_near_as_one_linear_layer_may_be(classifier: Saved):
    place, model, rows, _ = classifier
    x = rows.x.to(graph.dtype_of(model))
    bits = model[-1].folding_bits(model[:-1](x)).nanmedian()
    assert (bits > 9) == (x.dtype == torch.float32)
    stages = graph.stages(model)
    bound = running_bound(graph.folded(stages), x)[1]
    exact = exact_forward(stages, x).fractions()
    session = onnxruntime.InferenceSession(str(place / ONNX), providers=["CPUExecutionProvider"])
    for size in (1, 5, len(x)):
        parts = [session.run(["y"], {"x": part.numpy()})[0] for part in x.split(size)]
        assert (abs(dyadic(np.concatenate(parts)).fractions() - exact) <= dyadic(bound).fractions()).all()


def test_onnx_is_verified_where_halves_cancel(tmp_path: Path):
    # All features are exact, and so is their difference; one Linear layer rounds products of them.
    model = paired_network(0, [3, 60, 2], dtype=torch.float32, apart=0.0)
    for parameter in model[0].parameters():
        parameter.copy_((parameter * 64).round() / 64)
    y = model(torch.from_numpy(X).float()).double() + 1e-9
    data, tolerance = from_arrays(X, y, task="regression"), 0.01
    save(tmp_path / "m", recorded(model, data, tolerance), onnx=True)
    for backend in BACKENDS:
        seen = verify(tmp_path / "m", data, backend=backend)
        assert seen.wrong == 0
        assert seen.max_error < 0.01 * tolerance
        assert seen.verified, backend


def test_what_is_proven_of_the_onnx_file_holds_in_every_order_of_summation(tmp_path: Path):
    # Three pairs of units cancel; the last leads by less than one Linear layer may round.
    model = nn.Sequential(nn.Linear(1, 8, bias=False), nn.ReLU(), PairedHead(8, 2, bias=False))
    model.double().requires_grad_(False)
    features = [1.0, 1.0, 1.0, 2.0**-53, 1.0, 1.0, 1.0, 0.0]
    model[0].weight.copy_(torch.tensor(features, dtype=torch.float64)[:, None])
    model[2].weight.copy_(torch.tensor([[0.473, 0.511, 0.754, 1.0], [0.0] * 4], dtype=torch.float64))
    rows = Dataset(torch.ones(1, 1).double(), torch.tensor([0]), "classification", (0, 1))
    save(tmp_path / "m", recorded(model, rows), onnx=True)
    assert verify(tmp_path / "m", rows).level == "proven"  # the difference is exact
    stages = graph.stages(model)
    if "Sub" in operators(tmp_path / "m"):
        outputs = every_evaluation(stages, rows.x, np.random.default_rng(0), fused=True)
    else:
        outputs = [evaluate(graph.folded(stages), rows.x, order) for order in ORDERS]
    right = all(first > second for (first, second), *_ in outputs)
    assert right or not verify(tmp_path / "m", rows, backend="onnxruntime").proven


# Damaged files.


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("models") / "model"
    model = paired_network(1, [3, 8, 2])
    save(place, recorded(model, named_by(model, X)))
    return place


@pytest.fixture
def directory(original: Path, tmp_path: Path) -> Path:
    return shutil.copytree(original, tmp_path / "model")


def described(directory: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    *others, head = (layer.model_dump() for layer in read_model(directory).description.architecture)
    return others, head


@pytest.mark.parametrize(
    "changes",
    [
        {"in_features": 7},
        {"in_features": 9},
        {"in_features": 1},
        {"in_features": 0},
        {"in_features": -2},
        {"in_features": 8.5},
        {"in_features": "eight"},
        {"in_features": True},
        {"in_features": None},
        {"in_features": 1 << 40},
        {"out_features": 0},
        {"out_features": 1 << 50},
        {"bias": "perhaps"},
        {"bias": None},
        {"name": ""},
        {"weight": [1.0]},
        {"type": "Paired"},
    ],
    ids=str,
)
def test_a_head_outside_the_schema_is_refused(directory: Path, changes: dict[str, Any]):
    others, head = described(directory)
    change(directory / DESCRIPTION, architecture=[*others, {**head, **changes}])
    refused(directory, f"{DESCRIPTION}: damaged or not written by isthmus: architecture")


@pytest.mark.parametrize("option", ["in_features", "out_features", "bias", "name", "type"])
def test_a_head_without_an_option_is_refused(directory: Path, option: str):
    others, head = described(directory)
    del head[option]
    change(directory / DESCRIPTION, architecture=[*others, head])
    refused(directory, f"{DESCRIPTION}: damaged or not written by isthmus: architecture")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"in_features": 6}, "layer 2 takes 6 inputs, but gets 8"),
        ({"in_features": 16}, "layer 2 takes 16 inputs, but gets 8"),
        ({"out_features": 3}, "the last layer does not give 2 outputs"),
        ({"bias": False}, "the tensors are"),
        ({"type": "Linear"}, "the tensors are"),
        ({"name": "3"}, "the tensors are"),
        ({"name": "0"}, "repeat or are out of order"),
        ({"name": "forward"}, "the tensors are"),
    ],
    ids=str,
)
def test_a_head_that_does_not_fit_is_refused(directory: Path, changes: dict[str, Any], message: str):
    others, head = described(directory)
    reissue(directory, architecture=[*others, {**head, **changes}])
    refused(directory, message)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("2.weight", np.ones((2, 8)), "the tensors are"),  # as folded
        ("2.weight", np.ones((2, 3)), "the tensors are"),
        ("2.weight", np.ones((4, 2)), "the tensors are"),
        ("2.weight", np.ones(8), "the tensors are"),
        ("2.weight", np.ones((2, 0)), "the tensors are"),
        ("2.bias", np.ones(4), "the tensors are"),
        ("2.bias", np.ones((2, 1)), "the tensors are"),
        ("2.other", np.ones((2, 4)), "the tensors are"),
        ("2.weight", np.ones((2, 4), np.float32), "2.weight is not made of finite float64"),
        ("2.weight", np.full((2, 4), np.nan), "2.weight is not made of finite float64"),
        ("2.bias", np.array([1.0, np.inf]), "2.bias is not made of finite float64"),
    ],
)
def test_tensors_that_are_not_the_heads_are_refused(
    directory: Path, name: str, value: np.ndarray, message: str
):
    reissue(directory, tensors=load_file(directory / MODEL) | {name: value})
    refused(directory, message)


def test_other_weights_are_noticed(directory: Path):
    content = bytearray((directory / MODEL).read_bytes())
    content[-20] ^= 1
    (directory / MODEL).write_bytes(content)
    refused(directory, "digest differs")


def test_a_head_of_the_other_sign_is_another_model(directory: Path):
    tensors = load_file(directory / MODEL)
    digest = read_model(directory).certificate.model_digest
    reissue(directory, tensors=tensors | {"2.weight": -tensors["2.weight"]})
    assert read_model(directory).certificate.model_digest != digest


# Predicted errors of narrower dtypes.


@pytest.mark.parametrize("apart", [None, 1e-2])
@pytest.mark.parametrize(("dtype", "most"), [(torch.float16, 1.0), (torch.float32, 4.0)], ids=str)
def test_errors_are_as_predicted(dtype: torch.dtype, most: float, apart: float | None):
    for seed in range(30):
        random = np.random.default_rng(seed)
        widths = [int(random.integers(2, 30)), 2 * int(random.integers(2, 30)), 3]
        model = paired_network(seed, widths, apart=apart)
        for parameter in model.parameters():
            parameter.mul_(max(widths) ** -0.5)
        x = torch.from_numpy(random.normal(size=(100, widths[0])))
        predicted = SIGMAS * float(expected_error(graph.stages(model), x, dtype).amax())
        output = graph.cast(model, dtype)(x.to(dtype)).double()
        assert 0.01 <= float((output - model(x)).abs().amax()) / predicted <= most, seed


def test_a_difference_that_overflows_in_float16_is_no_number():
    model = nn.Sequential(PairedHead(2, 2, bias=False)).double().requires_grad_(False)
    model[0].weight.copy_(torch.tensor([[0.1], [-0.1]]))
    x = torch.tensor([[4e4, -4e4], [-4e4, 4e4]]).double()
    narrow = compare_precision(model, Dataset(x, torch.tensor([0, 1]), "classification", (0, 1)), "float16")
    assert (narrow.measured_error, narrow.level) == (None, "none")
    assert narrow.predicted_error is None
