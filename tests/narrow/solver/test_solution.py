"""A solution saved, loaded, verified, evaluated and exported; what it says of itself; other dtypes."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import isthmus
from isthmus.errors import InputError, ModelFileError, NotCertified
from isthmus.export import load_constraint
from isthmus.narrow.solver.solution import Solution, Status
from tests.narrow.solver.problems import classes, forward, regression, wrong

SOLVED: dict[str, tuple[Any, dict[str, Any]]] = {
    "chord": (regression(30, 4, seed=1), {}),
    "lm": (regression(30, 4, 2, seed=2), {"width": 12, "method": "lm"}),
    "ball": (regression(30, 4, seed=3), {"radius": 0.2}),
    "ball without biases": (regression(30, 4, seed=3), {"radius": 0.2, "bias": False}),
    "ball of outputs": (regression(20, 4, 2, seed=4), {"radius": 0.2}),
    "codes": (classes(30, 4, 3, seed=5), {}),
    "codes in a ball": (classes(30, 4, 3, seed=5), {"radius": 0.2}),
    "softmax": (classes(30, 4, 3, seed=5), {"targets": "softmax", "width": 10}),
    "smallest": (classes(20, 4, 3, seed=5), {"width": "smallest"}),
    "sigmoid": (regression(20, 4, seed=6), {"activation": "sigmoid"}),
    "relu": (regression(20, 4, seed=6), {"activation": "relu", "width": 20}),
    "single": (classes(30, 4, 3, seed=5), {"dtype": torch.float32}),
    "half": (classes(15, 4, 2, seed=5), {"dtype": torch.float16}),
}


def _solved(name: str) -> Solution:
    data, options = SOLVED[name]
    return isthmus.solve(data, **options)


@pytest.mark.parametrize("name", SOLVED)
def test_saved_loaded_verified_and_evaluated(name: str, tmp_path: Path) -> None:
    solution, (x, y) = _solved(name), SOLVED[name][0]
    saved = isthmus.save(tmp_path / "model", solution)
    assert saved.wrong == 0
    loaded = isthmus.load_model(tmp_path / "model")
    for one, two in zip(solution.model.parameters(), loaded.parameters(), strict=True):
        assert torch.equal(one, two)
    assert torch.equal(loaded(x.to(one.dtype)), solution.model(x.to(one.dtype)))
    seen = isthmus.verify(tmp_path / "model", (x, y))
    assert seen.verified
    assert seen.wrong == 0
    predicted = isthmus.predict(tmp_path / "model", x)
    if solution.data.task == "classification":
        assert predicted == y.tolist()
    else:
        np.testing.assert_allclose(
            np.array(predicted).reshape(len(x), -1),
            y.reshape(len(x), -1),
            atol=solution.certificate.tolerance,
        )
    with pytest.raises(InputError, match="exists already"):
        isthmus.save(tmp_path / "model", solution)


@pytest.mark.parametrize("name", ["codes in a ball"])
def test_exported_as_onnx(name: str, tmp_path: Path) -> None:
    solution = _solved(name)
    seen = isthmus.export_onnx(solution, tmp_path / "net.onnx")
    assert (seen.rows, seen.wrong) == (solution.data.rows, 0)
    assert (tmp_path / "net.onnx").stat().st_size > 100


def test_saved_with_onnx_and_verified_by_it(tmp_path: Path) -> None:
    solution = _solved("ball")
    isthmus.save(tmp_path / "model", solution, onnx=True)
    assert isthmus.verify(tmp_path / "model", solution.data, backend="onnxruntime").verified


@pytest.mark.parametrize("name", ["ball", "ball of outputs", "codes in a ball"])
def test_the_constraint_is_saved_with_its_center(name: str, tmp_path: Path) -> None:
    solution = _solved(name)
    isthmus.save(tmp_path / "model", solution)
    constraint = load_constraint(tmp_path / "model")
    assert constraint is not None
    assert solution.constraint is not None
    assert constraint.to_dict() == solution.constraint.to_dict()
    for key, value in solution.constraint.center.items():
        assert torch.equal(constraint.center[key], value)
    weights = dict(isthmus.load_model(tmp_path / "model").named_parameters())
    assert constraint.distance({key: weights[key] for key in constraint.center}) == 0


def test_no_constraint_is_saved_where_there_is_none(tmp_path: Path) -> None:
    isthmus.save(tmp_path / "model", _solved("chord"))
    assert load_constraint(tmp_path / "model") is None


def test_a_change_of_the_file_is_noticed(tmp_path: Path) -> None:
    isthmus.save(tmp_path / "model", _solved("chord"))
    file = tmp_path / "model" / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(ModelFileError):
        isthmus.load_model(tmp_path / "model")


def test_other_rows_are_verified_as_such(tmp_path: Path) -> None:
    x, y = SOLVED["chord"][0]
    isthmus.save(tmp_path / "model", _solved("chord"))
    assert not isthmus.verify(tmp_path / "model", (x, y + 1)).verified


@pytest.mark.parametrize("name", SOLVED)
def test_what_it_says_of_itself(name: str) -> None:
    solution = _solved(name)
    data, options = SOLVED[name]
    plain = json.loads(json.dumps(solution.to_dict()))
    assert plain["model"]["hidden_units"] == solution.width == plain["model"]["widths"][0]
    numbers = [p.numel() for p in solution.model.parameters()]
    assert plain["model"]["parameters"] == solution.parameters == sum(numbers)
    assert plain["model"]["activation"] == options.get("activation", "tanh")
    assert plain["final"] == {"loss": solution.loss, "accuracy": 1.0}
    assert plain["status"] == "SOLVED"
    assert len(plain["history"]) == len(solution.history)
    assert plain["certificate"]["wrong"] == 0
    assert set(plain["seconds"]) == {"prepare", "solve", "certify"}
    assert all(value >= 0 for value in plain["seconds"].values())
    text = repr(solution)
    assert f"{data[0].shape[1]}-{solution.width}-{solution.data.outputs}" in text
    assert "\n" not in text
    hidden = next(module for module in solution.model if isinstance(module, torch.nn.Linear))
    assert hidden.out_features == solution.width


@pytest.mark.parametrize("name", ["chord", "lm", "ball", "softmax", "smallest"])
def test_the_recipe_rebuilds_it_bit_for_bit(name: str) -> None:
    solution = _solved(name)
    recipe = json.loads(json.dumps(solution.recipe))
    plan = recipe["plan"]
    assert recipe["data"] == solution.data.digest
    again = isthmus.solve(
        solution.data,
        seed=recipe["seed"],
        dtype=getattr(torch, recipe["dtype"]),
        **({key: plan[key] for key in plan} if name != "smallest" else {"width": "smallest"}),
    )
    assert all(map(torch.equal, solution.model.state_dict().values(), again.model.state_dict().values()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_classes_in_narrower_dtypes(dtype: torch.dtype) -> None:
    x, label = classes(40, 6, 3, seed=7)
    solution = isthmus.solve((x, label), dtype=dtype, width=40)
    assert {parameter.dtype for parameter in solution.model.parameters()} == {dtype}
    assert wrong(solution.model, x.to(dtype), label) == 0
    assert solution.certificate.wrong == 0
    assert solution.precision == ()


def test_values_in_float32_need_a_tolerance() -> None:
    x, y = regression(40, 6, seed=8)
    with pytest.raises(NotCertified, match=r"error in float32 is .*Choose float64, or a larger tolerance"):
        isthmus.solve((x, y), dtype=torch.float32)
    solution = isthmus.solve((x, y), dtype=torch.float32, tolerance=1e-3)
    assert solution.certificate.tolerance == 1e-3
    error = np.abs(forward(solution.model, x.float())[:, 0] - y.numpy()).max()
    assert 1e-8 < error <= 1e-3
    assert solution.loss <= 1e-20  # of the solver, in float64


def test_output_weights_beyond_a_dtype_are_not_certified() -> None:
    x, y = regression(40, 6, seed=8)
    with pytest.raises(NotCertified, match="float16"):
        isthmus.solve((x, 1e8 * y), dtype=torch.float16, tolerance=1e7)
    solution = isthmus.solve((x, 1e8 * y), dtype=torch.float16, tolerance=1e7, raise_on_failure=False)
    assert solution.status is Status.NOT_CONVERGED
    assert solution.certificate.wrong == 40
    json.dumps(solution.to_dict(), allow_nan=False)
    x, label = classes(40, 6, 3, seed=8)
    with pytest.raises(NotCertified, match="float16"):
        isthmus.solve((x + 2000, label), dtype=torch.float16)


def test_float32_of_a_float64_network_is_measured() -> None:
    x, y = regression(40, 6, seed=9)
    solution = isthmus.solve((x, y))
    (narrow,) = solution.precision
    assert narrow.dtype == "float32"
    single = solution.model.float()(x.float()).double()
    difference = np.abs(single.numpy() - forward(_solved_again(x, y).model, x)).max()
    assert narrow.measured_error == pytest.approx(difference, rel=1e-3)
    assert narrow.predicted_error is not None
    assert narrow.measured_error <= narrow.predicted_error <= 100 * narrow.measured_error


def _solved_again(x: Any, y: Any) -> Solution:
    return isthmus.solve((x, y))


@pytest.mark.parametrize("radius", [0.5, 0.05])
def test_a_ball_in_float32_is_one_in_float32(radius: float) -> None:
    x, y = regression(40, 6, seed=10)
    solution = isthmus.solve((x, y), radius=radius, dtype=torch.float32, tolerance=0.1)
    assert solution.constraint is not None
    weights = dict(solution.model.named_parameters())
    assert {tensor.dtype for tensor in solution.constraint.center.values()} == {torch.float32}
    assert solution.constraint.distance(weights) == 0
    assert isthmus.kkt(solution.model, (x, y), solution.constraint).primal == 0


def test_tolerances_and_their_certificates() -> None:
    x, y = regression(30, 4, seed=11)
    solution = isthmus.solve((x, y))
    assert solution.certificate.tolerance == pytest.approx(1e-8 * float(y.max() - y.min()))
    error = np.abs(forward(solution.model, x)[:, 0] - y.numpy()).max()
    assert solution.certificate.max_error == pytest.approx(float(error), rel=1e-3, abs=1e-13)
    assert solution.certificate.level == "proven"
    with pytest.raises(NotCertified):
        isthmus.solve((x, y), tolerance=0.0)
    assert isthmus.solve((x, y), tolerance=0.0, raise_on_failure=False).certificate.wrong > 0


def test_the_solution_is_frozen_and_the_model_is_plain() -> None:
    solution = _solved("chord")
    with pytest.raises(AttributeError):
        solution.loss = 1.0
    assert type(solution.model) is torch.nn.Sequential
    assert not solution.model.training
    assert not any(parameter.requires_grad for parameter in solution.model.parameters())


def test_pairs_datasets_and_paths_are_the_same(tmp_path: Path) -> None:
    x, y = regression(20, 3, seed=12)
    np.savez(tmp_path / "data.npz", x=x.numpy(), y=y.numpy())
    sources = ((x, y), (x.numpy(), y.numpy()), isthmus.from_arrays(x, y), isthmus.load(tmp_path / "data.npz"))
    solutions = [isthmus.solve(source) for source in sources]
    for solution in solutions[1:]:
        assert torch.equal(solution.model[0].weight, solutions[0].model[0].weight)
        assert solution.recipe["data"] == solutions[0].recipe["data"]
