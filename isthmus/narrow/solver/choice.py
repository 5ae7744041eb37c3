"""Which method, targets and width, where they were left open; and which do not go together."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from numbers import Integral, Real
from typing import Final, Literal, get_args

from isthmus.data.coerce import require_choice
from isthmus.data.dataset import Dataset
from isthmus.errors import InputError
from isthmus.narrow.solver.attempt import least_chord_width, least_width
from isthmus.narrow.solver.problem import ACTIVATIONS, SHARP, Problem, SolverActivation, Targets

Method = Literal["chord", "lm"]
Width = int | Literal["smallest"] | None

AT_ONCE: Final = 4000  # equations up to which one factorization takes less than the products of all steps
RECOMMENDED: Final = 1.1  # of h p / (N K)
AMPLE: Final = 1.25  # of as many parameters as equations, likewise for Levenberg-Marquardt


def is_whole(value: object, least: int) -> bool:
    """Whether a value is an integer of at least so much; True and False are none."""
    return isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= least


@dataclass(frozen=True)
class Choice:
    """What was asked for; None is left open.

    Attributes:
        width: m.
        radius: ε.
        method: how to solve.
        targets: of classes.
        activation: σ.
    """

    width: Width
    radius: float | None
    method: Method | None
    targets: Targets | None
    activation: SolverActivation

    def require_together(self, data: Dataset) -> None:
        """Refuse options that do not exist or do not go together.

        Raises:
            InputError: which.
        """
        require_choice(self.activation, tuple(ACTIVATIONS), "activation")
        if self.method is not None:
            require_choice(self.method, get_args(Method), "method")
        if self.targets is not None:
            require_choice(self.targets, get_args(Targets), "targets")
            if (data.task == "regression") != (self.targets == "values"):
                kinds = "values" if data.task == "regression" else "codes, dead-zone, one-hot or softmax"
                raise InputError(
                    f"{data.source} is for {data.task}: its targets are {kinds}, not {self.targets}."
                )
        number = is_whole(self.width, 1)
        if not (number or self.width is None or self.width == "smallest"):
            raise InputError(f"a width is a number of units, 1 or more, or 'smallest', not {self.width!r}.")
        real = isinstance(self.radius, Real) and not isinstance(self.radius, bool)
        if self.radius is not None and not (real and 0 < self.radius < math.inf):
            raise InputError(
                f"a radius is above 0 and finite, not {self.radius!r}; leave it out for no limit."
            )
        if self.radius is None and self.method != "chord":
            return
        asked = "method='chord'" if self.radius is None else "a radius"
        for option, given in (
            (f"activation={self.activation!r}", self.activation in SHARP),
            (f"targets={self.targets!r}", self.targets in {"dead-zone", "softmax"}),
            ("width='smallest'", self.width == "smallest"),
            ("method='lm'", self.method == "lm"),
        ):
            if given:
                raise InputError(
                    f"{asked} is for the one-factorization solve of Theorem 1, which {option} is not for; "
                    "leave one of them out."
                )

    def settled(self, problem: Problem, *, exact: bool) -> Choice:
        """With method, targets and, unless it is the smallest, a width.

        Args:
            problem: at the targets asked for, or codes.
            exact: whether a loss was asked for, which rules the cross entropy out.
        """
        targets = self.targets or problem.targets
        kinked = self.activation in SHARP
        least = least_width(problem, kinked=kinked)
        smooth = not kinked and targets not in {"dead-zone", "softmax"}
        mirrored = self.radius is not None or self.method == "chord"
        width = self.width
        if isinstance(width, Integral):
            width = int(width)
        if width is None:
            by_chord = mirrored or (smooth and self.method is None)
            width = least_chord_width(problem, RECOMMENDED) if by_chord else math.ceil(AMPLE * least)
        method = self.method or ("chord" if mirrored else "lm")
        if width != "smallest":
            width = int(width)
            even_and_ample = width % 2 == 0 and width >= least_chord_width(problem)
            if self.method is None and smooth and even_and_ample and problem.equations <= AT_ONCE:
                method = "chord"
            few = width < least and problem.data.task == "classification"
            if self.targets is None and few and not (mirrored or exact):
                targets = "softmax"
        return replace(self, width=width, method=method, targets=targets)
