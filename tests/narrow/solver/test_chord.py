"""Theorem 1 executed: zero loss in the ball, worked out again in long double and to 50 digits."""

from fractions import Fraction
from math import ceil

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import isthmus
from isthmus.errors import DataError, InputError, NotCertified, WidthError
from isthmus.narrow.solver.solution import Solution
from tests.narrow.solver.problems import classes, forward, regression, relative_loss

RADII = (1e-4, 1e-3, 1e-2, 0.1, 1.0, 10.0)


def _distance(solution: Solution) -> float:
    """``|W - W0|`` in long double, of all that the ball holds."""
    assert solution.constraint is not None
    center, weights = solution.constraint.center, dict(solution.model.named_parameters())
    hidden = [name for name in center if not name.startswith("2.") and not name.startswith("3.")]
    return float(
        np.sqrt(
            sum(
                np.square(
                    weights[name].detach().numpy().astype(np.longdouble)
                    - center[name].numpy().astype(np.longdouble)
                ).sum()
                for name in hidden
            )
        )
    )


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("radius", RADII)
def test_a_zero_loss_point_in_a_ball_of_any_radius(radius: float, bias: bool) -> None:
    x, y = regression(200, 20, seed=1)
    solution = isthmus.solve((x, y), width=30, radius=radius, bias=bias)
    assert solution.constraint is not None
    # Below 1e-3 the output weights are so large that their rounding leaves more.
    assert relative_loss(solution.model, x, y) <= (1e-20 if radius >= 1e-3 else 1e-18)
    assert _distance(solution) <= radius
    hidden, head = solution.model[0], solution.model[2]
    names = set(solution.constraint.center)
    assert names == {"0.weight", "2.weight"} | ({"0.bias"} if bias else set())
    for name in names - {"2.weight"}:
        first, second = solution.constraint.center[name].chunk(2)
        assert torch.equal(first, second)
    assert hidden.out_features == 30
    v = head.weight.detach()
    assert v.shape == (1, 15)
    assert torch.equal(v, v[:, :1].expand_as(v))
    assert v[0, 0] > 0


def test_the_ball_is_used_up_but_for_a_little_where_it_binds() -> None:
    data = regression(200, 20, seed=1)
    for radius in (1e-2, 0.1):
        assert 0.8 * radius <= _distance(isthmus.solve(data, width=30, radius=radius)) <= radius


@pytest.mark.parametrize("radius", [1e-3, 0.1, 1.0])
def test_it_is_a_kkt_point_of_the_constrained_problem(radius: float) -> None:
    data = regression(100, 10, seed=2)
    solution = isthmus.solve(data, width=24, radius=radius, bias=False)
    assert solution.constraint is not None
    found = isthmus.kkt(solution.model, data, solution.constraint)
    assert found.primal == 0
    assert found.loss <= 0.5e-20 * float(data[1].square().sum())
    # The gradient is J^T r, so as small as the residual times |J|, which is of the output weights' size.
    v = float(solution.model[2].weight.max())
    assert found.stationarity <= 1e-7 * v
    assert found.complementarity <= 1e-6 * v * radius


def test_floor_and_ratio_hold_at_the_floor_stated() -> None:
    for radius in (1e-3, 1.0):
        solution = isthmus.solve(regression(60, 6, seed=3), width=24, radius=radius)
        assert solution.constraint is not None
        v = solution.model[2].weight.detach()
        described = str(solution.constraint.to_dict())
        assert "FloorAndRatio" in described
        assert "'ratio': 1.0" in described
        weights = {name: weight.detach() for name, weight in solution.model.named_parameters()}
        assert solution.constraint.distance(weights) == 0
        outside = weights | {"2.weight": v * torch.linspace(1, 1.1, v.numel(), dtype=v.dtype)}
        assert solution.constraint.distance(outside) > 0


def test_the_ball_of_the_constraint_has_the_radius_asked_for() -> None:
    solution = isthmus.solve(regression(60, 6, seed=3), width=24, radius=0.25)
    assert solution.constraint is not None
    weights = {name: weight.detach() for name, weight in solution.model.named_parameters()}
    start = solution.constraint.center
    away = torch.randn(24, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    moved = weights | {
        "0.weight": start["0.weight"] + 0.75 * away / away.norm(),
        "0.bias": start["0.bias"],
    }
    assert solution.constraint.distance(moved) == pytest.approx(0.5, rel=1e-12)


@given(
    rows=st.integers(1, 60),
    inputs=st.integers(4, 8),
    outputs=st.integers(1, 2),
    seed=st.integers(0, 2**20),
    radius=st.sampled_from([None, 0.05, 1.0]),
    activation=st.sampled_from(["tanh", "sigmoid"]),
)
@settings(max_examples=30)
def test_random_problems_at_ample_width(
    rows: int, inputs: int, outputs: int, seed: int, radius: float | None, activation: str
) -> None:
    x, y = regression(rows, inputs, outputs, seed=seed)
    width = 2 * ceil(1.5 * rows * outputs / inputs) + 4
    data = isthmus.from_arrays(x, y, task="regression")
    solution = isthmus.solve(data, width=width, radius=radius, activation=activation)
    assert solution.recipe["plan"]["method"] in ({"chord"} if radius else {"chord", "lm"})
    assert np.abs(forward(solution.model, x) - y.numpy()).max() <= 1e-8 * data.target_range()
    if radius is not None:
        assert _distance(solution) <= radius


@pytest.mark.parametrize("bias", [True, False])
def test_several_outputs_share_one_ball(bias: bool) -> None:
    x, y = regression(40, 8, 3, seed=4)
    solution = isthmus.solve((x, y), width=40, radius=0.5, bias=bias)
    assert relative_loss(solution.model, x, y) <= 1e-20
    assert _distance(solution) <= 0.5
    assert solution.constraint is not None
    assert set(solution.constraint.center) == {"0.weight"} | ({"0.bias"} if bias else set())
    assert solution.model[2].weight.shape == (3, 20)


def test_classes_in_a_ball_are_right_and_the_loss_is_that_of_their_codes() -> None:
    x, label = classes(50, 6, 4, seed=5)
    solution = isthmus.solve((x, label), width=24, radius=0.3)
    output = forward(solution.model, x)
    assert (output.argmax(1) == label.numpy()).all()
    assert _distance(solution) <= 0.3
    paired = torch.nn.Sequential(*list(solution.model)[:-1])
    assert relative_loss(paired, x, label.double() - 1.5) <= 1e-20


def test_without_a_radius_the_network_is_plain_and_has_biases() -> None:
    x, y = regression(100, 10, seed=6)
    solution = isthmus.solve((x, y), width=24)
    assert solution.constraint is None
    assert solution.recipe["plan"]["method"] == "chord"
    assert [type(layer).__name__ for layer in solution.model] == ["Linear", "Tanh", "Linear"]
    assert relative_loss(solution.model, x, y, float(y.mean())) <= 1e-20
    assert solution.loss == pytest.approx(relative_loss(solution.model, x, y, float(y.mean())), abs=1e-20)


def test_the_default_width_is_a_tenth_more_than_the_theorems() -> None:
    x, y = regression(200, 9, seed=7)
    assert isthmus.solve((x, y)).width == 2 * ceil(1.1 * 200 / 10)
    assert isthmus.solve((x, y), bias=False).width == 2 * ceil(1.1 * 200 / 9)
    assert isthmus.solve((x, y), radius=1.0).width == 2 * ceil(1.1 * 200 / 10)


def test_the_same_seed_gives_the_same_weights_and_another_does_not() -> None:
    data = regression(50, 5, seed=8)
    one, two, other = (isthmus.solve(data, radius=0.1, seed=seed) for seed in (3, 3, 4))
    for a, b, c in zip(one.model.parameters(), two.model.parameters(), other.model.parameters(), strict=True):
        assert torch.equal(a, b)
        assert not torch.equal(a, c)


def test_a_tiny_network_nearly_interpolates_to_fifty_digits() -> None:
    """W, v and the data are taken as the rationals that they are; tanh to 50 digits."""
    x, y = regression(4, 2, seed=9)
    solution = isthmus.solve((x, y), width=6, radius=0.5, bias=False)
    weight, v = solution.model[0].weight.tolist(), solution.model[2].weight[0].tolist()
    with mpmath.workdps(50):
        residuals = []
        for row, target in zip(x.tolist(), y.tolist(), strict=True):
            before = [
                sum(Fraction(w) * Fraction(value) for w, value in zip(unit, row, strict=True))
                for unit in weight
            ]
            after = [mpmath.tanh(mpmath.mpf(z.numerator) / z.denominator) for z in before]
            output = sum(
                mpmath.mpf(u) * (first - second)
                for u, first, second in zip(v, after[:3], after[3:], strict=True)
            )
            residuals.append(mpmath.mpf(target) - output)
        relative = sum(r**2 for r in residuals) / sum(mpmath.mpf(t) ** 2 for t in y.tolist())
    assert relative <= 1e-20
    outputs = y.numpy() - np.array([float(r) for r in residuals])
    np.testing.assert_allclose(forward(solution.model, x)[:, 0].astype(float), outputs, rtol=1e-13)


def test_a_scale_that_is_too_small_is_raised_until_the_way_is_short() -> None:
    """At ε = 10 nothing forces the output weights up, but the chord method would diverge with small ones."""
    x, y = regression(100, 10, seed=10)
    solution = isthmus.solve((x, 5 * y), width=22, radius=10.0)
    assert relative_loss(solution.model, x, 5 * y) <= 1e-20
    assert _distance(solution) <= 10
    scales = [step.damping for step in solution.history]
    assert scales == sorted(scales)
    assert {step.factorizations for step in solution.history} == {1}


@pytest.mark.parametrize("radius", [None, 10.0])
def test_progress_is_a_part(radius: float | None) -> None:
    """Even where the first scale is too small, and the loss grows."""
    for rows, inputs, seed in ((60, 2, 2), (10, 3, 1), (30, 50, 3)):
        told: list[float] = []
        isthmus.solve(
            regression(rows, inputs, seed=seed),
            radius=radius,
            method="chord",
            on_progress=lambda _, part, told=told: told.append(part),
            raise_on_failure=False,
        )
        assert told
        assert all(0 <= part <= 1 for part in told)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"width": 25, "radius": 1.0}, ("even", "20", "25")),
        ({"width": 18, "radius": 1.0}, ("20", "18", "100 / 10")),
        ({"width": 18, "method": "chord"}, ("20", "18", "100 / 10")),
        ({"width": 19, "method": "chord"}, ("20", "19")),
        ({"width": 22, "radius": 1.0, "bias": False}, ("24", "22", "100 / 9")),
    ],
)
def test_widths_below_the_theorems_are_refused_with_the_numbers(
    options: dict, words: tuple[str, ...]
) -> None:
    with pytest.raises(WidthError) as raised:
        isthmus.solve(regression(100, 9, seed=11), **options)
    for word in (*words, "method='lm'"):
        assert word in str(raised.value)


@pytest.mark.parametrize("targets", [2, 3])
def test_several_outputs_need_as_many_times_the_width(targets: int) -> None:
    with pytest.raises(WidthError, match=rf"ceil\({100 * targets} / 10\) = {20 * targets}, not 10"):
        isthmus.solve(regression(100, 9, targets, seed=11), width=10, radius=1.0)


@pytest.mark.parametrize("bias", [True, False])
def test_rank_counts_not_columns(bias: bool) -> None:
    x, y = regression(60, 4, seed=12)
    wide = torch.cat([x, x @ torch.randn(4, 6, generator=torch.Generator().manual_seed(0)).double()], 1)
    rank = 5 if bias else 4
    least = 2 * ceil(60 / rank)
    with pytest.raises(WidthError, match=rf"ceil\(60 / {rank}\) = {least}, not {least - 2}"):
        isthmus.solve((wide, y), width=least - 2, radius=0.1, bias=bias)
    solution = isthmus.solve((wide, y), width=least + 4, radius=0.1, bias=bias)
    assert relative_loss(solution.model, wide, y) <= 1e-18


def test_zero_targets_return_the_start() -> None:
    x, _ = regression(20, 3, seed=13)
    data = isthmus.from_arrays(x, torch.zeros(20), task="regression")
    solution = isthmus.solve(data, radius=0.5)
    assert solution.constraint is not None
    assert solution.loss == 0
    assert torch.equal(solution.model[0].weight, solution.constraint.center["0.weight"])
    assert (forward(solution.model, x) == 0).all()
    assert solution.certificate.level == "bitwise"


def test_equal_rows_with_equal_targets_count_once() -> None:
    x, y = regression(30, 5, seed=14)
    solution = isthmus.solve((torch.cat([x, x[:7]]), torch.cat([y, y[:7]])), radius=0.5)
    assert solution.width == 2 * ceil(1.1 * 30 / 6)
    assert solution.certificate.merged == 7
    assert solution.certificate.rows == 37


@pytest.mark.parametrize("activation", ["tanh", "sigmoid"])
def test_what_no_network_without_biases_can_do_is_refused(activation: str) -> None:
    """Differences of σ(w · x) with equal output weights are 0 at 0 for any σ, and odd for sigmoid, too."""
    x, y = regression(6, 3, seed=15)
    rows = torch.cat([x, torch.zeros(1, 3, dtype=torch.float64)])
    with pytest.raises(DataError, match="row 7 is 0"):
        isthmus.solve((rows, torch.cat([y, y[:1]])), radius=1.0, bias=False, activation=activation)
    rows = torch.cat([x, -x[2:3]])
    with pytest.raises(DataError, match="row 7 is the opposite of row 3"):
        isthmus.solve((rows, torch.cat([y, y[2:3]])), radius=1.0, bias=False, activation=activation)
    solution = isthmus.solve((rows, torch.cat([y, -y[2:3]])), radius=1.0, method="chord", width=12)
    assert relative_loss(solution.model, rows, torch.cat([y, -y[2:3]])) <= 1e-20


def test_rows_in_messages_are_the_users_rows() -> None:
    """Repeated rows before the one that is named are not left out of the count."""
    x, y = regression(3, 3, seed=16)
    rows = torch.cat([x[:1], x[:1], x, torch.zeros(1, 3, dtype=torch.float64)])
    target = torch.cat([y[:1], y[:1], y, torch.ones(1, dtype=torch.float64)])
    with pytest.raises(DataError, match="row 6 is 0"):
        isthmus.solve((rows, target), radius=1.0, bias=False)


@pytest.mark.parametrize("radius", [0.0, -1.0, float("nan"), float("inf")])
def test_a_radius_is_positive_and_finite(radius: float) -> None:
    with pytest.raises(InputError, match="radius"):
        isthmus.solve(regression(10, 3), radius=radius)


@pytest.mark.parametrize("radius", [1e-9, 1e-14])
def test_a_radius_too_small_for_float64_says_so(radius: float) -> None:
    with pytest.raises((NotCertified, InputError), match="float64") as raised:
        isthmus.solve(regression(40, 5, seed=17), radius=radius)
    assert "more units" not in str(raised.value)


@pytest.mark.parametrize("radius", [1e-5, 1e-6])
def test_a_radius_too_small_for_the_default_loss_may_still_do_for_the_certificate(radius: float) -> None:
    x, y = regression(40, 5, seed=17)
    solution = isthmus.solve((x, y), width=20, radius=radius)
    assert _distance(solution) <= radius
    assert solution.certificate.wrong == 0
    assert np.abs(forward(solution.model, x)[:, 0] - y.numpy()).max() <= solution.certificate.tolerance


def test_a_loss_that_rounding_rules_out_is_missed_with_the_best_there_is() -> None:
    data = regression(40, 5, seed=18)
    with pytest.raises(NotCertified):
        isthmus.solve(data, method="chord", target_loss=1e-40)
    solution = isthmus.solve(data, method="chord", target_loss=1e-40, raise_on_failure=False)
    assert relative_loss(solution.model, *data, float(data[1].mean())) < 1e-20
    assert solution.status.name == "NOT_CONVERGED"
    assert solution.certificate.wrong == 0
