"""The rounding bound of gates against fractions, in every order of summation, and of single gates by hand."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import nn

from isthmus import graph
from isthmus.arithmetic.exact import exact_forward
from isthmus.arithmetic.rounding import running_bound
from isthmus.graph import Gated, Sum
from isthmus.nets.patched import Gates, Patched
from tests.arithmetic.evaluations import ORDERS, dense, evaluate, evaluate_permuted
from tests.arithmetic.gated import evaluate_gates, gates_near, in_fractions, openings_in_fractions, stage_of

DTYPES = [torch.float64, torch.float32, torch.float16]
EVALUATIONS = 6


def network(rng, dtype):
    """A random Patched model, behind another layer or not, and inputs [4, d]; gates pass near these."""
    inputs, hidden, outputs = rng.integers(1, 6, 3).tolist()
    kind = rng.integers(3)
    x = torch.from_numpy(rng.integers(-9, 10, (4, inputs)) if kind == 0 else rng.normal(size=(4, inputs)))
    x = (x.double() * (1 if kind < 2 else 10.0 ** rng.integers(-3, 3))).to(dtype)

    def linear(before, after):
        module = nn.Linear(before, after, dtype=dtype)
        for parameter in module.parameters():
            parameter.data = torch.from_numpy(rng.normal(size=tuple(parameter.shape))).to(dtype)
        return module

    before = nn.Sequential(linear(inputs, inputs), nn.Hardtanh()) if rng.random() < 0.4 else nn.Sequential()
    with torch.no_grad():
        rows = before(x).double().numpy()
    patches = [
        gates_near(rng, rows, int(rng.integers(1, 5)), outputs, bool(rng.random() < 0.4))
        for _ in range(rng.integers(1, 3))
    ]
    base = nn.Sequential(linear(inputs, hidden), nn.ReLU(), linear(hidden, outputs))
    return nn.Sequential(*before, Patched(base, patches)).requires_grad_(False), x


def run(stages, value, rng):
    """The network with orders of its own everywhere."""
    for stage in stages:
        match stage:
            case Gated():
                value = evaluate_gates(stage, value, rng)
            case Sum(branches):
                first, *others = [run(branch, value, rng) for branch in branches]
                dtype, value = value.dtype, first
                for other in others:
                    value = value.astype(other.dtype) + other
                value = value.astype(dtype)
            case _ if rng.random() < 0.5:
                value = evaluate([stage], torch.from_numpy(value), ORDERS[rng.integers(len(ORDERS))])
            case _:
                value = evaluate_permuted([stage], torch.from_numpy(value), rng)
    return value


def by_hand(stages, row):
    """One row through the network in fractions."""
    for stage in stages:
        match stage:
            case Gated():
                row = in_fractions(stage, row)
            case Sum(branches):
                row = [sum(parts) for parts in zip(*(by_hand(each, row) for each in branches), strict=True)]
            case graph.Dense(weight, bias):
                row = [
                    sum((Fraction(w) * v for w, v in zip(ws, row, strict=True)), Fraction(b))
                    for ws, b in zip(weight.tolist(), bias.tolist(), strict=True)
                ]
            case graph.Clip(low, high):
                row = [Fraction(low) if v < low else Fraction(high) if v > high else v for v in row]
    return row


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("part", range(4))
def test_every_evaluation_is_within_the_bound(dtype, part):
    rng = np.random.default_rng([7, part, DTYPES.index(dtype)])
    finite = []
    for _ in range(60):
        model, x = network(rng, dtype)
        stages = graph.stages(model)
        value, bound = running_bound(stages, x)
        assert value.dtype == dtype
        assert not bound.isnan().any()
        rows = [[Fraction(v) for v in row] for row in x.double().tolist()]
        exact = [by_hand(stages, row) for row in rows]
        assert exact_forward(stages, x).fractions().tolist() == exact
        with np.errstate(all="ignore"):
            evaluations = [run(stages, x.numpy(), rng) for _ in range(EVALUATIONS)]
        for output in [value.numpy(), model(x).numpy(), *evaluations]:
            for found, wanted, own, most in zip(output, exact, value, bound, strict=True):
                for each, true, here, error in zip(
                    found.tolist(), wanted, own.tolist(), most.tolist(), strict=True
                ):
                    if math.isfinite(error):
                        assert abs(Fraction(each) - true) <= Fraction(error)
                        assert abs(Fraction(each) - Fraction(here)) <= 2 * Fraction(error)
        finite.append(bound.isfinite().double().mean())
    assert np.mean(finite) > (0.6 if dtype == torch.float16 else 0.95)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_gate_said_to_be_settled_is_exactly_0_or_1_in_every_evaluation(dtype):
    rng = np.random.default_rng([8, DTYPES.index(dtype)])
    open_, shut, unsure = 0, 0, 0
    for _ in range(300):
        inputs = int(rng.integers(1, 9))
        x = torch.from_numpy(rng.normal(size=(3, inputs)) * 10.0 ** rng.integers(-2, 3)).to(dtype)
        gate = gates_near(rng, x.numpy(), 1, 1, False)
        gate.shift.fill_(1.0)
        stage = stage_of(gate)
        value, bound = running_bound([stage], x)
        with np.errstate(all="ignore"):
            found = [evaluate_gates(stage, x.numpy(), rng) for _ in range(EVALUATIONS)]
        for row in range(3):
            if bound[row, 0] > 0:
                unsure += 1
                continue
            assert value[row, 0].item() in {0, 1}
            assert all(output[row, 0] == value[row, 0] for output in found)
            assert openings_in_fractions(stage, [Fraction(v) for v in x[row].double().tolist()]) == [
                int(value[row, 0])
            ]
            open_, shut = open_ + int(value[row, 0] == 1), shut + int(value[row, 0] == 0)
    assert min(open_, shut, unsure) > 50


def gate(normal, center=0.0, curvature=0.0, plateau=1.0, slope=1.0, shift=(1.0,), tilt=None):
    """One gate by hand."""
    made = Gates(len(normal), 1, len(shift), tilt is not None)
    values = {"normal": [normal], "center": [center], "curvature": [curvature], "plateau": [plateau]}
    values |= {"slope": [slope], "shift": [shift]} | ({} if tilt is None else {"tilt": [tilt]})
    for name, value in values.items():
        getattr(made, name).copy_(torch.tensor(value, dtype=torch.float64))
    return stage_of(made)


def bound_of(stages, x, dtype=torch.float64):
    return running_bound(stages, torch.tensor(x, dtype=dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_outside_every_gate_the_bound_is_that_of_the_base(dtype):
    base = (dense([[0.1, 0.2], [0.3, -0.7]], [0.1, 0.2], dtype),)
    far = gate([1.0, 0.0], center=9.0, shift=(0.3, 0.7))
    tilted = gate([0.0, 1.0], center=-9.0, shift=(0.3, 0.7), tilt=[[0.1, 0.2], [0.3, 0.4]])
    x = [[1.0, 1.5], [-2.25, 0.5]]
    alone, patched = bound_of(base, x, dtype), bound_of([Sum((base, (far,), (tilted,)))], x, dtype)
    assert torch.equal(alone[0], patched[0])
    assert torch.equal(alone[1], patched[1])
    assert (alone[1] > 0).all()


def test_one_open_gate_adds_its_shift_exactly():
    x = [[0.3, 0.1], [0.2, 0.7]]
    value, error = bound_of([gate([1.0, 1.0], shift=(0.1, -7.3))], x)
    assert value.tolist() == [[0.1, -7.3]] * 2
    assert not error.any()
    # In a narrower dtype, the sum is off by what its rounding takes.
    nothing = (dense([[0.0, 0.0], [0.0, 0.0]], [0.0, 0.0], torch.float32),)
    value, error = bound_of([Sum((nothing, (gate([1.0, 1.0], shift=(0.1, 0.5)),)))], x, torch.float32)
    assert error.tolist() == [[abs(value[0, 0].double().item() - 0.1), 0.0]] * 2
    # A tilted one has the error of its affine function; rows of zeros have none.
    value, error = bound_of([gate([1.0, 1.0], shift=(0.1, 0.1), tilt=[[0.1, 0.3], [0.0, 0.0]])], x)
    assert (error[:, 0] > 0).all()
    assert (error[:, 0] < 1e-15).all()
    assert error[:, 1].tolist() == [0.0, 0.0]
    assert value[:, 1].tolist() == [0.1, 0.1]


def test_two_open_gates_are_rounded():
    both = Gated(
        None,
        *(torch.cat([one, one]) for one in vars(gate([1.0], shift=(0.1,))).values() if one is not None),
        None,
    )
    _, error = bound_of([both], [[0.5], [3.0]])
    assert error[0, 0] > 0 == error[1, 0]


@pytest.mark.parametrize("curvature", [0.0, 1.0])
def test_where_a_square_may_overflow_nothing_is_bounded(curvature):
    # 0 times infinity is no number, so that a plane overflows as a sphere does.
    far = gate([1.0], curvature=curvature)
    _, error = bound_of([Sum(((dense([[0.0]]),), (far,)))], [[1e160], [1e150]])
    assert error[0, 0] == math.inf
    assert error[1, 0] == 0


def test_what_a_shut_gate_may_overflow_with_is_not_bounded():
    shut = gate([1.0], center=9.0, shift=(1.0,), tilt=[[1e300]])
    _, error = bound_of([shut], [[1.0], [1e9]])
    assert error.squeeze(1).tolist() == [0.0, math.inf]
    narrow = gate([1.0], shift=(1e300,))
    nothing = (dense([[0.0]], [0.0], torch.float32),)
    assert bound_of([Sum((nothing, (narrow,)))], [[0.0]], torch.float32)[1].item() == math.inf
    assert bound_of([narrow], [[0.0]])[1].item() == 0


def test_a_roof_that_rises_is_bounded_too():
    # A slope below 0 opens a gate further out: it is never settled beyond the plateau.
    rising = gate([1.0], slope=-5.0)
    value, error = bound_of([dense([[0.1]]), rising], [[0.1], [20.0], [300.0]])
    assert value[0, 0] == 1
    assert error[0, 0] == 0
    assert (error[1:] > 0).all()
    huge = bound_of([dense([[1.0, 1e17, -1e17]]), rising], [[1.0, 1.0, 1.0]])
    assert huge[1].item() > 5


def test_errors_of_inputs_pass_through_an_edge_only():
    first = dense([[0.1, 0.2]], [0.3])
    x = [[1.0, 1.0]]  # 0.6
    _, error = bound_of([first], x)
    edge = gate([1.0], plateau=0.2, slope=2.0)
    _, through = bound_of([first, edge], x)
    assert 2 * error.item() < through.item() < 40 * error.item()
    inside, outside = gate([1.0], plateau=0.7), gate([1.0], plateau=0.1, slope=4.0)
    assert [bound_of([first, each], x)[1].item() for each in (inside, outside)] == [0.0, 0.0]


def test_both_the_roof_and_what_it_weighs_are_rounded():
    rng = np.random.default_rng(0)
    x = rng.uniform(1e-15, 1e-9, 300)
    for shift in 1 + rng.random(20) / 8:
        flat = gate([1.0], plateau=0.0, slope=0.03, shift=(float(shift),))
        value, error = bound_of([flat], x[:, None].tolist())
        for row, found, most in zip(
            x.tolist(), value.flatten().tolist(), error.flatten().tolist(), strict=True
        ):
            (exact,) = in_fractions(flat, [Fraction(row)])
            assert abs(Fraction(found) - exact) <= Fraction(most) < 5 * Fraction(2) ** -52


def test_a_distance_within_its_error_of_the_plateau_is_not_settled():
    level = 0.1 * 3.0
    for plateau in (math.nextafter(level, 0.0), level, math.nextafter(level, 1.0)):
        steep = gate([0.1], plateau=plateau, slope=1e15)
        value, error = bound_of([steep], [[3.0]])
        (exact,) = openings_in_fractions(steep, [Fraction(3)])
        assert error.item() > 0.1
        assert abs(Fraction(value.item()) - exact) <= Fraction(error.item())
