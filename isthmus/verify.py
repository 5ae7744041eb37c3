"""An independent check of a saved model: it trusts the files and nothing else.

Of the rest of isthmus this shares the schema and the readers alone. The forward pass and the rounding bound
are those of `isthmus.verify_numpy`; other backends run the same rows through PyTorch, ONNX Runtime or
rational arithmetic. Of a foreign model, whose layers are not described, only the ONNX file can be run, and
nothing bounds its rounding.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import numpy as np

from isthmus._types import PathLike, Progress
from isthmus.certificate import TOLERANCE, Level
from isthmus.data import Dataset, as_dataset
from isthmus.errors import InputError, ModelFileError
from isthmus.model_file import ONNX, ModelFile, read_model
from isthmus.onnx_file import Run, open_onnx
from isthmus.verify_numpy import INFLATION, Evaluate, evaluate_numpy, folded

BackendName = Literal["numpy", "torch", "onnxruntime", "exact"]

WORKSPACE = 1 << 20  # activations held at a time
MOST_LISTED = 10  # wrong rows named


@dataclass(frozen=True)
class Verification:
    """What a backend made of every row.

    Attributes:
        verified: no row is wrong; a regression's errors and bounds are within the tolerance, too, unless
            the model is foreign, and nothing bounds its rounding.
        rows, wrong: counts.
        max_error: largest distance of an output from its target; None if not finite.
        margin: smallest lead of a row's class; None for regression.
        bound: largest amount by which two evaluations may differ in what decides a row; None if not finite.
        proven: every row stays right whatever the rounding.
        level: as in `isthmus.certificate`.
        backend: what evaluated the rows.
        tolerance: of a regression.
        first_wrong: numbers of the first wrong rows, from 1.
        notes: what a reader should know.
    """

    verified: bool
    rows: int
    wrong: int
    max_error: float | None
    margin: float | None
    bound: float | None
    proven: bool
    level: Level
    backend: BackendName
    tolerance: float | None
    first_wrong: tuple[int, ...]
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """The result, ready for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        lines = [f"{'verified' if self.verified else 'NOT verified'} ({self.level}) by {self.backend}"]
        lines.append(f"rows        {self.rows:,}, of which {self.wrong:,} wrong")
        if self.first_wrong:
            lines.append(
                f"wrong rows  {', '.join(map(str, self.first_wrong))}{', ...' * (self.wrong > MOST_LISTED)}"
            )
        named = {
            "margin": self.margin,
            "error": self.max_error,
            "bound": self.bound,
            "tolerance": self.tolerance,
        }
        lines += [f"{name:11} {value:.3g}" for name, value in named.items() if value is not None]
        return "\n".join([*lines, *(f"note        {note}" for note in self.notes)])


def verify(
    directory: PathLike,
    data: Any,
    *,
    backend: BackendName = "numpy",
    tolerance: float | None = None,
    on_progress: Progress | None = None,
) -> Verification:
    """Check a saved model on every row of a data set.

    Args:
        directory: a model directory.
        data: a Dataset or a pair (x, y); classes and columns are matched by name.
        backend: ``numpy``, ``torch``, ``onnxruntime`` (runs the directory's ``model.onnx``) or ``exact``.
        tolerance: largest error of a regression, in units of the target; by default the certificate's on the
            rows it was issued for, and 1e-8 of the target range on others.
        on_progress: told what is done and which part of it.

    Raises:
        ModelFileError: the model is missing or damaged, or foreign and the backend is not ``onnxruntime``.
        InputError: the model takes other inputs or gives other outputs than the data has, the backend is
            unknown, or a tolerance is given for classes.
        UnsupportedModel: the model has tanh or sigmoid, and the backend is ``exact``.
        MissingExtra: the backend is not installed.
    """
    if backend not in get_args(BackendName):
        raise InputError(f"unknown backend '{backend}'; choose one of {', '.join(get_args(BackendName))}.")
    data = as_dataset(data)
    if data.task == "classification" and tolerance is not None:
        raise InputError("a tolerance is for regression; a class is right or wrong.")
    saved = read_model(directory)
    foreign = saved.description.foreign
    if foreign is not None and backend != "onnxruntime":
        raise ModelFileError(
            f"{saved.path}: the layers of a {foreign} are not described; use --backend onnxruntime, which "
            f"needs the {ONNX} that saving with --onnx (or onnx=True) writes."
        )
    columns = _columns(saved, data)
    label, notes = _labels(saved, data)
    if foreign is not None:
        notes.append(f"nothing bounds the rounding of a {foreign}, whose layers are not described")
    same = data.digest == saved.certificate.data_digest
    if not same:
        notes.append("these are other rows than the certificate was issued for")
    if data.task == "regression" and tolerance is None:
        tolerance = saved.certificate.tolerance if same else TOLERANCE * data.target_range()
    evaluate = _BACKENDS[backend](saved)

    tally = _Tally([], [], [], [], [], [])
    flat, values = data.flat.numpy(), data.y.numpy()
    step = max(1, WORKSPACE // saved.description.widest)
    for start in range(0, data.rows, step):
        rows = slice(start, min(start + step, data.rows))
        x = flat[rows] if columns is None else flat[rows][:, columns]
        x = x.astype(saved.description.dtype).reshape(-1, *saved.description.input_shape)
        with np.errstate(all="ignore"):  # what overflows is infinite, and so not proven
            output, error = evaluate(x)
            tally.add(
                output.astype(np.float64),
                error,
                values[rows] if label is None else label[rows],
                tolerance,
                saved.description.dtype,
            )
        if on_progress is not None:
            on_progress("verifying", rows.stop / data.rows)
    return tally.result(backend, tolerance, tuple(notes), bounded=foreign is None)


@dataclass
class _Tally:
    """Row by row: error, smallest lead of its class, what rounding could take, right, proven, bit-equal."""

    error: list[np.ndarray]
    lead: list[np.ndarray]
    spread: list[np.ndarray]
    right: list[np.ndarray]
    holds: list[np.ndarray]
    equal: list[np.ndarray]

    def add(
        self,
        output: np.ndarray,
        error: np.ndarray,
        wanted: np.ndarray,
        tolerance: float | None,
        dtype: str,
    ) -> None:
        """Judge outputs and errors [n, K] by class indices [n] or, with a tolerance, values [n, K]."""
        if tolerance is not None:
            target = wanted
            leads = tolerance - np.abs(output - target)
            spreads = 2 * error
            right = (leads >= 0).all(1)
            holds = ((np.abs(output - target) + spreads) * INFLATION <= tolerance).all(1)
        else:
            own = np.arange(len(output)), np.maximum(wanted, 0)
            target = np.zeros_like(output)
            target[own] = 1.0
            leads = output[own][:, None] - output
            spreads = 2 * (error + error[own][:, None])
            leads[own], spreads[own] = np.inf, 0.0
            right = (leads > 0).all(1) & (wanted >= 0) & np.isfinite(output).all(1)
            holds = right & (spreads < leads).all(1)
        self.error.append(np.abs(output - target).max(1))
        self.lead.append(leads.min(1))
        self.spread.append(spreads.max(1))
        self.right.append(np.asarray(right))
        self.holds.append(np.asarray(holds))
        self.equal.append((output == target.astype(dtype)).all(1))

    def result(
        self, backend: BackendName, tolerance: float | None, notes: tuple[str, ...], bounded: bool
    ) -> Verification:
        """All rows together; what no bound is known of is verified as it is measured."""
        wrong = np.flatnonzero(~np.concatenate(self.right))
        proven = bounded and bool(np.concatenate(self.holds).all())
        equal = bool(np.concatenate(self.equal).all())
        level: Level = (
            "none" if len(wrong) else "measured" if not proven else "bitwise" if equal else "proven"
        )
        return Verification(
            verified=not len(wrong) if tolerance is None or not bounded else proven,
            rows=sum(map(len, self.right)),
            wrong=len(wrong),
            max_error=_finite(np.concatenate(self.error).max()),
            margin=_finite(np.concatenate(self.lead).min()) if tolerance is None else None,
            bound=_finite(np.concatenate(self.spread).max()),
            proven=proven,
            level=level,
            backend=backend,
            tolerance=tolerance,
            first_wrong=tuple(int(row) + 1 for row in wrong[:MOST_LISTED]),
            notes=notes,
        )


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _columns(saved: ModelFile, data: Dataset) -> list[int] | None:
    """Where the model's inputs are among the data's columns; None if they stand in order.

    Raises:
        InputError: one of them is not there, or their number differs.
    """
    wanted, there = saved.description.columns, list(data.columns)
    if wanted and there and list(wanted) != there:
        missing = [name for name in wanted if name not in there]
        if missing:
            raise InputError(
                f"{data.source}: there is no input column {missing[0]!r}, which the model takes."
            )
        return [there.index(name) for name in wanted]
    if data.inputs != saved.description.inputs:
        raise InputError(
            f"{data.source}: {data.inputs} inputs in a row, but the model takes {saved.description.inputs}."
        )
    return None


def _labels(saved: ModelFile, data: Dataset) -> tuple[np.ndarray | None, list[str]]:
    """Every row's class among the model's outputs, by name, or -1; None for regression. With notes.

    Raises:
        InputError: the data is for another task, or has another number of targets.
    """
    described = saved.description
    if data.task != described.task:
        raise InputError(
            f"{data.source} was read as {data.task}, but the model is for {described.task}; choose the task."
        )
    if data.task == "regression":
        if data.outputs != described.outputs:
            raise InputError(
                f"{data.source}: {data.outputs} targets, but the model has {described.outputs} outputs."
            )
        return None, []
    place = {str(name): index for index, name in enumerate(described.classes)}
    index = np.array([place.get(str(name), -1) for name in data.classes])[data.y.numpy()]
    strange = sorted({str(data.classes[c]) for c in set(data.y[index < 0].tolist())})
    if not strange:
        return index, []
    return index, [f"the model knows no class {strange[0]!r}: {int((index < 0).sum())} row(s) count as wrong"]


# Backends ---------------------------------------------------------------------------------------------------


def _compared(saved: ModelFile, run: Run) -> Evaluate:
    """Another evaluation in the model's dtype: what is bounded holds for it too, if it is one."""
    evaluate = evaluate_numpy(saved)

    def compared(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        output, (own, error) = run(x), evaluate(x)
        if output.shape != own.shape or output.dtype != own.dtype:
            raise ModelFileError(f"{saved.path / ONNX}: gives other outputs than the model; export it again.")
        # Two evaluations of one network are this close; what is not is of another network.
        near = np.abs(output.astype(np.float64) - own) <= 2 * error
        return output, np.where(near, error, np.inf)

    return compared


def _torch(saved: ModelFile) -> Evaluate:
    import torch

    from isthmus.export import instantiate

    model = instantiate(saved)
    return _compared(saved, lambda x: model(torch.from_numpy(x.copy())).numpy())


def _onnxruntime(saved: ModelFile) -> Evaluate:
    run = open_onnx(saved, "the backend onnxruntime")
    if saved.description.foreign is None:
        return _compared(folded(saved), run)

    def measured(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        output = run(x)
        return output, np.full(output.shape, np.inf)

    return measured


def _exact(saved: ModelFile) -> Evaluate:
    import torch

    from isthmus import graph
    from isthmus.arithmetic.exact import exact_forward
    from isthmus.export import instantiate

    stages, bound = graph.stages(instantiate(saved)), evaluate_numpy(saved)

    def evaluate(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        outputs = exact_forward(stages, torch.from_numpy(x)).fractions().astype(np.float64)
        # What is reported is rounded once; what is proven holds for the model's own arithmetic.
        return outputs, bound(x)[1] + np.spacing(np.abs(outputs))

    return evaluate


_BACKENDS: dict[BackendName, Callable[[ModelFile], Evaluate]] = {
    "numpy": evaluate_numpy,
    "torch": _torch,
    "onnxruntime": _onnxruntime,
    "exact": _exact,
}
