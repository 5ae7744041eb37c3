"""Every theorem applied to one data set."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from isthmus.bounds import assumptions as assume
from isthmus.bounds import theorems
from isthmus.bounds.assumptions import Assumption
from isthmus.bounds.converse import PieceCount, largest_failing, pieces_by_layer, pieces_by_unit
from isthmus.bounds.deep import deep_problem, smallest_deep
from isthmus.bounds.result import Bound, BoundsTable, DataSummary, Direction
from isthmus.bounds.theorems import Activation, Grid, Rule, Widths
from isthmus.data.dataset import Dataset, Shape, as_dataset
from isthmus.errors import DataError

YUN = "Yun, Sra, Jadbabaie 2019"
NEW = "isthmus, after Yun, Sra, Jadbabaie 2019"
SECOND_HAND = "(quoted second-hand)"
DEPTH = 10  # layers of the deep networks in the table


def bounds(data: Dataset | Shape | tuple[Any, Any]) -> BoundsTable:
    """Widths that suffice to fit a data set exactly and widths that cannot, theorem by theorem.

    Args:
        data: a data set or a pair ``(x, y)``, on which the assumptions are checked; or only its size.

    Raises:
        DataError: not a data set, or a size below 1.
    """
    if isinstance(data, Shape):
        shape, distinct, rank = data, None, None
        if min(shape.rows, shape.inputs, shape.outputs) < 1:
            raise DataError(f"{shape}: rows, inputs and outputs must all be at least 1.")
        checks = assume.without_rows(shape)
    else:
        data = as_dataset(data)
        shape, distinct = data.shape, len(data.first_rows)
        merged = data if distinct == data.rows else data.take(data.first_rows)
        rank = assume.affine_rank(merged)
        checks = assume.checked(data, merged, rank)
    problem = _Problem(
        distinct or shape.rows, shape.inputs, shape.outputs, {check.name: check for check in checks}
    )
    classes = shape.task == "classification"
    rows = (
        *_grids(problem),
        *(_classifiers(problem) if classes else ()),
        *_deep(problem, classes),
        *(_gates(problem) if classes else ()),
        *_earlier(problem, real_outputs=1 if classes else shape.outputs),
        *_asymptotic(problem),
        *_converse(problem),
    )
    return BoundsTable(DataSummary(shape.rows, shape.inputs, shape.outputs, shape.task, distinct, rank), rows)


@dataclass(frozen=True)
class _Problem:
    """N distinct rows, d inputs, K outputs, and what is known about the assumptions, by name."""

    rows: int
    inputs: int
    outputs: int
    checks: dict[str, Assumption]

    def bound(
        self,
        id: str,
        paper: str,
        network: str,
        direction: Direction,
        condition: str,
        *assumptions: str,
        widths: Widths | None = None,
        parameters: int | None = None,
    ) -> Bound:
        hidden_units = None if widths is None else sum(widths)
        found = tuple(self.checks[name] for name in assumptions)
        return Bound(id, paper, network, direction, widths, hidden_units, parameters, condition, found)

    def dense(
        self,
        id: str,
        paper: str,
        network: str,
        widths: Widths,
        condition: str,
        *assumptions: str,
        outputs: int | None = None,
    ) -> Bound:
        parameters = theorems.dense_parameters((self.inputs, *widths, outputs or self.outputs))
        return self.bound(
            id, paper, network, "sufficient", condition, *assumptions, widths=widths, parameters=parameters
        )

    def grid(self, id: str, paper: str, network: str, grid: Grid) -> Bound:
        widths = grid.smallest(self.rows, self.outputs, self.inputs)
        condition = f"{grid.formula(self.outputs)} >= {self.rows}"
        return self.dense(id, paper, f"3 layers, {network}", widths, condition, "distinct rows")

    def classifier(self, id: str, paper: str, network: str, activation: Activation, rule: Rule) -> Bound:
        widths = theorems.smallest_classifier(self.rows, self.outputs, activation, rule, self.inputs)
        condition = f"{theorems.grid(activation, rule).formula(1)} >= {self.rows} and d3 >= {widths[2]}"
        return self.dense(id, paper, f"4 layers, {network}", widths, condition, "distinct rows")

    def deep(self, id: str, network: str, activation: Activation, gates: bool) -> Bound:
        """The narrowest network of `DEPTH` layers."""
        asked = deep_problem(self.rows, self.inputs, self.outputs, activation, "paper", gates)
        widths = smallest_deep(asked, DEPTH, "width")
        held = asked.grid.formula(asked.carried, "(d_l - r)", "(d_(l+1) - r)")
        condition = f"sum over blocks of {held} >= {self.rows}"
        condition += f", then a layer of {asked.gate}" if gates else ""
        return self.dense(id, YUN, f"{DEPTH} layers, {network}", widths, condition, "distinct rows")

    def gates(self, id: str, paper: str, network: str, gate: int) -> Bound:
        widths = (theorems.smallest_gates(self.rows, self.inputs, self.outputs, gate),)
        condition = f"d1 >= {self.gate_units(gate)}"
        return self.dense(
            id, paper, f"2 layers, {network}", widths, condition, "distinct rows", "general position"
        )

    def residual_gates(self, id: str, network: str, gate: int) -> Bound:
        widths = theorems.smallest_residual(self.rows, self.inputs, self.outputs, gate)
        condition = f"d1 + ... + d(L-1) >= {self.gate_units(gate)} and dL >= {widths[-1]}"
        return self.bound(
            id,
            YUN,
            f"residual, {network}",
            "sufficient",
            condition,
            "distinct rows",
            "general position",
            "inputs >= classes",
            widths=widths,
            parameters=theorems.residual_parameters(self.inputs, widths, self.outputs),
        )

    def gate_units(self, gate: int) -> str:
        return f"{gate}*({self.rows}/{self.inputs} + {self.outputs})"

    def converse(self, id: str, paper: str, layers: int, p: int, count: PieceCount, formula: str) -> Bound:
        """The largest equal widths that fail, for one output and the activation with p pieces."""
        widths = largest_failing(self.rows, layers - 1, p, count)
        return self.bound(
            id,
            paper,
            f"{layers} layers, {'ReLU' if p == 2 else 'hard-tanh'}, one output",
            "impossible",
            f"{formula} < {self.rows}" + (" (at d1 = d2)" if layers > 2 else ""),
            widths=widths,
            parameters=None if widths is None else theorems.dense_parameters((self.inputs, *widths, 1)),
        )


def _grids(problem: _Problem) -> Iterable[Bound]:
    """Theorem 3.1 and what improves on it: any targets."""
    return (
        problem.grid("3.1 H", YUN, "hard-tanh", theorems.PAPER_HARDTANH),
        problem.grid("3.1 R", YUN, "ReLU", theorems.PAPER_RELU),
        problem.grid("3.1 H tight", NEW, "hard-tanh", theorems.TIGHT_HARDTANH),
        problem.grid("3.1 R tight", NEW, "ReLU twins", theorems.TIGHT_RELU),
        problem.grid("3.1 R shared", NEW, "ReLU, shared knots", theorems.SHARED_KNOTS),
        problem.grid("3.1 R zigzag", NEW, "ReLU zigzag", theorems.ZIGZAG),
    )


def _classifiers(problem: _Problem) -> Iterable[Bound]:
    """Proposition 3.2 as stated; and with any parity and a thermometer as decoder."""
    return (
        problem.classifier("3.2 H", YUN, "hard-tanh", "hardtanh", "paper"),
        problem.classifier("3.2 R", YUN, "ReLU", "relu", "paper"),
        problem.classifier("3.2 H tight", NEW, "hard-tanh", "hardtanh", "tight"),
        problem.classifier("3.2 R tight", NEW, "ReLU twins", "relu", "tight"),
    )


def _deep(problem: _Problem, classes: bool) -> Iterable[Bound]:
    """Proposition 3.4 and Corollaries A.1 to A.3: narrower where there are more layers."""
    return (
        problem.deep("3.4 H", "hard-tanh", "hardtanh", gates=False),
        problem.deep("A.1 R", "ReLU", "relu", gates=False),
        *((problem.deep("A.2 H", "hard-tanh", "hardtanh", gates=True),) if classes else ()),
        *((problem.deep("A.3 R", "ReLU", "relu", gates=True),) if classes else ()),
    )


def _gates(problem: _Problem) -> Iterable[Bound]:
    """Classes told apart by hyperplanes through d rows; and the residual network of Hardt and Ma."""
    n, d, k = problem.rows, problem.inputs, problem.outputs
    hardt_ma = theorems.hardt_ma(n, k)
    return (
        problem.residual_gates("4.1 H", "hard-tanh", theorems.HARDTANH_GATE),
        problem.residual_gates("4.1 R", "ReLU", theorems.RELU_GATE),
        problem.gates("4.2 H", YUN, "hard-tanh", theorems.HARDTANH_GATE),
        problem.gates("4.2 R", YUN, "ReLU", theorems.RELU_GATE),
        problem.gates("4.2 R hat", NEW, "ReLU hats", theorems.HAT_GATE),
        problem.bound(
            "Hardt-Ma 2017",
            "Hardt, Ma 2017",
            "residual, ReLU",
            "sufficient",
            f"d1 + ... + d(L-1) >= {n} and dL >= {k}",
            "distinct rows",
            "unit norm",
            widths=hardt_ma,
            parameters=theorems.residual_parameters(d, hardt_ma, k, shifts=False),
        ),
        problem.dense(
            "Baum 1988",
            "Baum 1988",
            "2 layers, threshold",
            (theorems.baum(n, d),),
            f"d1 >= {n}/{d}",
            "distinct rows",
            "general position",
            "two classes",
            outputs=1,
        ),
    )


def _earlier(problem: _Problem, real_outputs: int) -> Iterable[Bound]:
    """Earlier results for real targets; Bubeck et al. fit one output, for classes their number."""
    n, d, k = problem.rows, problem.inputs, problem.outputs
    return (
        problem.dense(
            "Zhang 2017",
            "Zhang, Bengio, Hardt, Recht, Vinyals 2017",
            "2 layers, ReLU",
            (theorems.zhang(n),),
            f"d1 >= {n}",
            "distinct rows",
        ),
        problem.dense(
            "Bubeck 2020",
            "Bubeck, Eldan, Lee, Mikulincer 2020",
            f"2 layers, ReLU, {real_outputs} real output(s)",
            (theorems.bubeck(n, d, real_outputs),),
            f"d1 >= 4*ceil({n}/{d}) for each output",
            "distinct rows",
            "general position",
            outputs=real_outputs,
        ),
        problem.dense(
            "Huang 2003",
            "Huang 2003",
            "3 layers, sigmoid",
            theorems.huang(n, k),
            f"d1 + d2 about 2*sqrt({k + 2}*{n}): arbitrarily small error, not exact {SECOND_HAND}",
            "distinct rows",
        ),
    )


def _asymptotic(problem: _Problem) -> Iterable[Bound]:
    """Statements about numbers of parameters, most of them up to constants."""
    spread = ("distinct rows", "separated rows")
    return (
        problem.bound(
            "Park 2021",
            "Park, Lee, Yun, Shin 2021",
            "deep, ReLU",
            "sufficient",
            f"O(N^(2/3)) parameters up to logarithms, depth beyond constant {SECOND_HAND}",
            *spread,
        ),
        problem.bound(
            "Vardi 2022",
            "Vardi, Yehudai, Shamir 2022",
            "deep, ReLU",
            "sufficient",
            "O(sqrt(N)) parameters up to logarithms, with weights of about sqrt(N) bits",
            *spread,
        ),
        problem.bound(
            "Bartlett 2019",
            "Bartlett, Harvey, Liaw, Mehrabian 2019",
            "L layers, piecewise linear",
            "impossible",
            "N beyond O(W L log W), the VC dimension for W parameters",
        ),
        problem.bound(
            "Sontag 1997",
            "Sontag 1997",
            "analytic activations",
            "impossible",
            f"parameters < ({problem.rows} - 1)/2, rows in general position {SECOND_HAND}",
            parameters=theorems.sontag(problem.rows),
        ),
    )


def _converse(problem: _Problem) -> Iterable[Bound]:
    """Theorem 3.3 and the sharper count of pieces, which is the same for one hidden layer."""
    return (
        problem.converse("3.3 R 2 layers", YUN, 2, 2, pieces_by_unit, "d1 + 2"),
        problem.converse("3.3 H 2 layers", YUN, 2, 3, pieces_by_unit, "2*d1 + 2"),
        problem.converse("3.3 R 3 layers", YUN, 3, 2, pieces_by_unit, "2*d1*d2 + d2 + 2"),
        problem.converse("3.3 H 3 layers", YUN, 3, 3, pieces_by_unit, "6*d1*d2 + 2*d2 + 2"),
        problem.converse("3.3 R sharper", NEW, 3, 2, pieces_by_layer, "(d1 + 1)*(d2 + 1) + 1"),
        problem.converse("3.3 H sharper", NEW, 3, 3, pieces_by_layer, "(2*d1 + 1)*(2*d2 + 1) + 1"),
    )
