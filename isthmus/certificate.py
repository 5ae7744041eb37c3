"""The certificate: what was checked about one network on one data set, in a form that a machine can read.

The JSON schema is ``Certificate.model_json_schema()``. Levels, each including those before it:

    none      a row is wrong
    measured  the forward pass of this very module got every row right, at two batch sizes
    proven    and every row's margin (or tolerance) exceeds a bound on the rounding error of any evaluation
    bitwise   and every output equals its target bit for bit
"""

from __future__ import annotations

import hashlib
import json
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, NonNegativeInt

from isthmus._types import Task

Level = Literal["none", "measured", "proven", "bitwise"]
LEVELS: tuple[Level, ...] = ("none", "measured", "proven", "bitwise")

SCHEMA_VERSION = 1
TOLERANCE = 1e-8  # of a regression, as a part of the target range


class Backend(BaseModel):
    """What one evaluator of a saved file made of the same rows."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    version: str
    dtype: str
    rows: NonNegativeInt
    wrong: NonNegativeInt
    max_error: float | None
    max_difference: float | None


class Certificate(BaseModel):
    """One network on one data set.

    Attributes:
        level: see the module's docstring.
        rows, wrong, proven_rows, bitwise_rows: counts of rows.
        max_error: largest distance of an output from its target (one-hot for classes); None if not finite.
        margin: smallest lead of a row's own class over any other; None for regression.
        bound: largest amount by which two evaluations can differ in what decides a row: twice the rounding
            error of an output (regression), or of the two outputs compared (classification); None if unknown.
        tolerance: largest error allowed, in units of the target; None for classification.
        merged: rows that repeat an earlier one.
        arithmetic: what the bound assumes.
        notes: what a reader should know about the data or the model.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = SCHEMA_VERSION
    level: Level
    task: Task
    dtype: str
    rows: NonNegativeInt
    wrong: NonNegativeInt
    proven_rows: NonNegativeInt
    bitwise_rows: NonNegativeInt
    max_error: float | None
    margin: float | None
    bound: float | None
    tolerance: float | None
    merged: NonNegativeInt
    batch_sizes: tuple[int, int]
    arithmetic: str
    notes: tuple[str, ...] = ()
    data_digest: str
    model_digest: str
    versions: dict[str, str]
    backends: tuple[Backend, ...] = ()

    def __str__(self) -> str:
        figures = {"margin": self.margin, "error": self.max_error, "bound": self.bound}
        known = ", ".join(f"{name} {value:.2g}" for name, value in figures.items() if value is not None)
        return f"{self.level}: {self.wrong} of {self.rows:,} rows wrong in {self.dtype}; {known}"

    def reaches(self, level: Level) -> bool:
        """Whether this certificate is of the given level or above."""
        return LEVELS.index(self.level) >= LEVELS.index(level)


def model_digest(architecture: list[dict[str, Any]], tensors: dict[str, np.ndarray]) -> str:
    """SHA-256 of an architecture and its tensors: names, dtypes, shapes and little-endian bytes, by name."""
    sha = hashlib.sha256(json.dumps(architecture, sort_keys=True, allow_nan=False).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        sha.update(f"{name} {tensor.dtype.name} {tensor.shape}".encode())
        sha.update(np.ascontiguousarray(tensor).astype(tensor.dtype.newbyteorder("<"), copy=False).tobytes())
    return sha.hexdigest()
