"""What a network gives on every row in rational arithmetic, where nothing is rounded."""

from fractions import Fraction

import numpy as np

from isthmus import graph
from isthmus.arithmetic.exact import exact_forward

ROWS = 100  # evaluated at a time: every number is a Python object


def rational_outputs(model, x):
    """The outputs as they are for the weights as they are, one chunk of rows after the other."""
    stages = graph.stages(model)
    for start in range(0, len(x), ROWS):
        yield exact_forward(stages, x[start : start + ROWS])


def rational_error(model, x, y):
    """The largest distance of an output from its target, rounded once."""
    outputs = np.concatenate([part.fractions() for part in rational_outputs(model, x)])
    targets = np.array([Fraction(value) for value in y.reshape(-1).tolist()], dtype=object)
    return float(max(abs(outputs.reshape(-1) - targets)))


def rational_wrong(model, x, y):
    """How many rows' classes do not have the strictly largest output."""
    winners = np.concatenate([part.winners() for part in rational_outputs(model, x)])
    return int((winners != y).sum())
