"""Which networks `memorize` may build for a data set, fewest hidden units first.

A plan is decided by counting alone; whether its network survives rounding is seen when it is certified.
"""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from typing import Final, get_args

import torch

from isthmus.bounds.deep import MINIMIZE
from isthmus.data.dataset import Shape
from isthmus.errors import InputError
from isthmus.memorize.plan import Method, Plan, Wish
from isthmus.memorize.plan_deep import deep_plans
from isthmus.memorize.plan_gates import gates_plan, real_gates_plans, residual_plans
from isthmus.memorize.plan_layers import at_widths, ladder, zigzag_plan

AFFINE_COST = 2 * 10**9  # N d (d + K) up to which a least-squares fit is tried
INTERPOLANT_ROWS = 20_000  # beyond them N - 1 hidden units are no answer
ZIGZAG_ROWS = 2000  # beyond them slopes are too steep for float64
GATES_INPUTS = 4096  # up to which a covariance matrix is factored
GATES_COST = 10**11  # N d G up to which margins are measured for G gates
REAL_GATES_COST = 10**9  # the same for real targets, where more often than not they are too narrow

HIDDEN: Final[dict[Method, str]] = {  # how many hidden layers a method has, for those that take widths
    "gates": "1",
    "three-layer": "2",
    "zigzag": "2",
    "classifier": "3",
    "residual": "2 or more",
    "deep": "2 or more",
    "deep-classifier": "3 or more",
}
DEEP: Final = ("deep", "deep-classifier")


def plans(shape: Shape, wish: Wish, class_rows: Sequence[int] = ()) -> list[Plan]:
    """The networks to try, in the order to try them.

    Without widths, by hidden units; gates may need more than is planned, as their margins decide. With
    widths there is one size, tried in several ways.

    Args:
        shape: of the distinct rows.
        wish: what the caller fixed.
        class_rows: how many rows every class that occurs has; gates are counted by them.

    Raises:
        InputError: a method, widths or a depth that do not suit the task or each other.
        WidthError: widths or a depth that miss the theorem's condition.
    """
    method = _method(shape, wish)
    match method:
        case "affine":
            return [_affine(wish)]
        case "interpolant":
            return [_interpolant(shape, wish)]
        case "gates" if shape.task == "regression":
            return list(real_gates_plans(shape, wish))
        case "gates":
            return [gates_plan(shape, wish, class_rows)]
        case "residual":
            return list(residual_plans(shape, wish, class_rows))
        case "zigzag":
            return [zigzag_plan(shape, wish)]
        case "deep" | "deep-classifier":
            return list(deep_plans(shape, wish, method))
        case "three-layer" | "classifier" if wish.widths is not None or wish.rule == "paper":
            found = list(at_widths(shape, wish, method))
            return found if wish.widths is not None else sorted(found, key=lambda plan: plan.hidden_units)
        case "three-layer" | "classifier":
            found = list(ladder(shape, wish, method))
        case None:
            found = _all_methods(shape, wish, class_rows)
    return sorted(found, key=lambda plan: plan.hidden_units)


def _all_methods(shape: Shape, wish: Wish, class_rows: Sequence[int]) -> list[Plan]:
    found: list[Plan] = []
    relu = wish.activation != "hardtanh"
    if shape.rows * shape.inputs * (shape.inputs + shape.outputs) <= AFFINE_COST:
        found.append(_affine(wish))
    if relu and shape.rows <= INTERPOLANT_ROWS:
        found.append(_interpolant(shape, wish))
    if shape.task == "regression":
        gates, limit = list(real_gates_plans(shape, wish)), REAL_GATES_COST
    else:
        gates, limit = [gates_plan(shape, wish, class_rows)] * (len(class_rows) != 1), GATES_COST
    if shape.inputs <= GATES_INPUTS:
        found += [plan for plan in gates if shape.rows * shape.inputs * plan.groups <= limit]
    # A zigzag is fragile: in narrow dtypes it is right in one order of summation, and wrong in the next.
    fragile = shape.rows > ZIGZAG_ROWS or wish.dtype != torch.float64
    if relu and not wish.one_hot and wish.rule == "tight" and not fragile:
        found.append(zigzag_plan(shape, wish))
    method = "classifier" if wish.one_hot and shape.task == "classification" else "three-layer"
    walk = at_widths if wish.rule == "paper" else ladder
    return [*found, *walk(shape, wish, method)]


def _affine(wish: Wish) -> Plan:
    return Plan("affine", wish.activation, ())


def _interpolant(shape: Shape, wish: Wish) -> Plan:
    return Plan("interpolant", wish.activation, (max(1, shape.rows - 1),))


def _method(shape: Shape, wish: Wish) -> Method | None:
    """The one method to use, or None for all.

    Raises:
        InputError: wishes that do not go together.
    """
    classes = shape.task == "classification"
    if wish.method is not None and wish.method not in get_args(Method):
        raise InputError(f"unknown method '{wish.method}'; choose one of {', '.join(get_args(Method))}.")
    if wish.minimize not in MINIMIZE:
        raise InputError(f"'{wish.minimize}' cannot be minimized; choose one of {', '.join(MINIMIZE)}.")
    if wish.widths is not None and wish.depth is not None:
        raise InputError("give widths or a depth, not both: widths have a depth.")
    method = wish.method or _by_widths(classes, wish)
    if method in {"classifier", "deep-classifier", "residual"} and not classes:
        raise InputError(
            f"the method '{method}' is for class labels; use 'three-layer' or 'deep' for values."
        )
    if method in {"interpolant", "zigzag"} and wish.activation == "hardtanh":
        raise InputError(f"the method '{method}' is made of ReLUs; choose activation 'relu' or 'leaky_relu'.")
    if wish.minimize != "units" and (method not in DEEP or wish.depth is None):
        raise InputError("what to minimize is for the methods 'deep' and 'deep-classifier' with a depth.")
    if wish.depth is not None and method not in {*DEEP, "residual"}:
        raise InputError(
            f"a depth is for the methods 'deep', 'deep-classifier' and 'residual', not '{method}'."
        )
    if method in DEEP and wish.widths is None and wish.depth is None:
        raise InputError(f"the method '{method}' needs a depth, or widths.")
    if wish.widths is not None and method is not None:
        _require_widths(method, wish.widths)
    return method


def _by_widths(classes: bool, wish: Wish) -> Method | None:
    """The method that a number of widths, or a depth, stands for."""
    if wish.depth is not None:
        return "deep-classifier" if classes else "deep"
    if wish.widths is None:
        return None
    match len(wish.widths):
        case 1:
            return "gates"
        case 2:
            return "three-layer"
        case 3 if classes:
            return "classifier"
        case _:
            return "deep-classifier" if classes else "deep"


def _require_widths(method: Method, widths: tuple[int, ...]) -> None:
    hidden = HIDDEN.get(method)
    if hidden is None:
        raise InputError(f"the method '{method}' chooses its own width; leave widths out.")
    fewest, more = int(hidden.split()[0]), " " in hidden
    if len(widths) < fewest or (len(widths) > fewest and not more):
        raise InputError(
            f"the method '{method}' has {hidden} hidden layer(s), but {len(widths)} width(s) are given."
        )
    if not all(isinstance(width, Integral) and width > 0 for width in widths):
        raise InputError("widths are positive integers.")
