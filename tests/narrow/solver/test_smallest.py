"""The search for the fewest units: what it returns fits, and what it says of its trials is so."""

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch

import isthmus
from isthmus.errors import InputError, NotCertified
from isthmus.narrow.solver.solution import Solution
from tests.narrow.solver.problems import classes, regression, relative_loss, wrong


def _consistent(solution: Solution) -> None:
    """The network returned is of the smallest width that a trial solved."""
    solved = [trial for trial in solution.tried if trial.solved]
    used = [trial for trial in solved if trial.targets == solution.recipe["plan"]["targets"]]
    assert solution.width == min(trial.width for trial in used)
    best = min(used, key=lambda trial: trial.width)
    assert best.loss == solution.loss
    assert best.iterations == len(solution.history)
    assert all(trial.seconds >= 0 and trial.width >= 1 for trial in solution.tried)
    assert len(solution.model[int(isinstance(solution.model[0], torch.nn.Flatten))].weight) == solution.width
    narrower = [
        trial
        for trial in solution.tried
        if trial.width == solution.width - 1 and trial.targets == best.targets
    ]
    assert not any(trial.solved for trial in narrower)
    # One unit less was tried, unless it would have nine tenths of as many parameters as equations at most.
    data = solution.data
    outputs = data.y.shape[1] if data.task == "regression" else 1
    equations, unit = data.rows * outputs, data.inputs + 1 + outputs
    assert narrower or solution.width <= max(1, 0.9 * -(-equations // unit))


def test_generic_targets_take_as_many_parameters_as_equations() -> None:
    x, y = regression(60, 5, seed=1)
    solution = isthmus.solve((x, y), width="smallest")
    _consistent(solution)
    assert relative_loss(solution.model, x, y, float(y.mean())) <= 1e-19
    # 60 numbers cannot be met by fewer than 60 parameters, 7 a unit and the output's bias.
    assert math.ceil(59 / 7) <= solution.width <= 12
    assert solution.certificate.wrong == 0


def test_several_outputs() -> None:
    x, y = regression(30, 4, 2, seed=2)
    solution = isthmus.solve((x, y), width="smallest")
    _consistent(solution)
    assert relative_loss(solution.model, x, y, y.mean(0).numpy()) <= 1e-19
    assert math.ceil(58 / 7) <= solution.width <= 11


@pytest.mark.parametrize("targets", [None, "codes", "dead-zone", "softmax"])
def test_classes(targets: Any) -> None:
    x, label = classes(24, 5, 3, seed=3)
    solution = isthmus.solve((x, label), width="smallest", targets=targets)
    _consistent(solution)
    assert wrong(solution.model, x, label) == 0
    assert solution.width <= 5
    if targets is not None:
        assert {trial.targets for trial in solution.tried} == {targets}


def test_classes_that_have_to_do_with_inputs_take_few_units() -> None:
    g = torch.Generator().manual_seed(4)
    x = torch.randn(150, 3, generator=g, dtype=torch.float64)
    label = (x[:, 0] > 0).long() + (x[:, 0] > 0.8).long()
    solution = isthmus.solve((x, label), width="smallest")
    _consistent(solution)
    assert wrong(solution.model, x, label) == 0
    assert solution.recipe["plan"]["targets"] == "softmax"
    assert solution.width <= 2


def _separable(x: np.ndarray, label: np.ndarray) -> bool:
    """Whether one line has all of one class strictly on its side: then one unit does, and else none."""
    points = [*x, *(x + 0.5)]
    for a, b in itertools.combinations(range(len(x)), 2):
        along = x[b] - x[a]
        for sign in (1, -1):
            normal = sign * np.array([-along[1], along[0]])
            for tilt in (1e-6, -1e-6):
                for shift in (1e-6, -1e-6):
                    turned = normal + tilt * along
                    level = turned @ x[a] + shift
                    side = x @ turned > level
                    if (side == (label == 1)).all():
                        return True
    return len(set(label.tolist())) == 1 or not len(points)


@pytest.mark.parametrize("seed", range(4))
def test_eight_points_of_two_classes_against_every_line(seed: int) -> None:
    """One hidden unit tells two classes apart if and only if a line does (the unit is monotone along one)."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(8, 2, generator=g, dtype=torch.float64)
    normal = torch.randn(2, generator=g, dtype=torch.float64)
    label = (x @ normal > 0.1).long()
    if seed % 2:
        label = torch.randint(0, 2, (8,), generator=g)
    label[:2] = torch.tensor([0, 1])
    solution = isthmus.solve((x, label), width="smallest")
    _consistent(solution)
    assert wrong(solution.model, x, label) == 0
    if not _separable(x.numpy(), label.numpy()):
        assert solution.width >= 2
    else:
        assert solution.width == 1


@pytest.mark.parametrize("rows", [1, 2, 3])
def test_the_smallest_tables(rows: int) -> None:
    x, y = regression(rows, 2, seed=5)
    solution = isthmus.solve((x, y), width="smallest")
    assert solution.width == 1
    for activation in ("relu", "leaky_relu"):
        found = isthmus.solve(
            (x, y), width="smallest", activation=activation, bias=False, raise_on_failure=False
        )
        assert found.tried
    x, label = classes(rows, 2, min(rows, 2), seed=5)
    assert isthmus.solve((x, label), width="smallest").width == 1


def test_one_class_takes_one_unit() -> None:
    x, _ = classes(9, 3, 1)
    solution = isthmus.solve((x, torch.zeros(9, dtype=torch.int64)), width="smallest")
    assert solution.width == 1
    assert solution.certificate.wrong == 0


def test_other_activations() -> None:
    data = regression(30, 4, seed=6)
    for activation in ("sigmoid", "leaky_relu"):
        solution = isthmus.solve(data, width="smallest", activation=activation)
        _consistent(solution)
        assert relative_loss(solution.model, *data, float(data[1].mean())) <= 1e-19


def test_seeds_repeat_bit_for_bit() -> None:
    data = classes(16, 4, 3, seed=7)
    one, two = (isthmus.solve(data, width="smallest", seed=1) for _ in range(2))
    assert all(map(torch.equal, one.model.state_dict().values(), two.model.state_dict().values()))
    assert [(t.width, t.solved, t.loss) for t in one.tried] == [
        (t.width, t.solved, t.loss) for t in two.tried
    ]


def test_where_nothing_fits_all_trials_are_reported() -> None:
    data = regression(40, 3, seed=8)
    solution = isthmus.solve(data, width="smallest", iterations=1, raise_on_failure=False)
    assert solution.status.name == "NOT_CONVERGED"
    assert not any(trial.solved for trial in solution.tried)
    assert len({trial.width for trial in solution.tried}) >= 3
    with pytest.raises(NotCertified):
        isthmus.solve(data, width="smallest", iterations=1)


@pytest.mark.parametrize("options", [{"radius": 1.0}, {"method": "chord"}])
def test_it_is_not_for_the_one_factorization_solve(options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="width='smallest'"):
        isthmus.solve(regression(10, 3), width="smallest", **options)
