"""An independent check of a saved model: it trusts the files and nothing else.

Of the rest of isthmus this shares the schema and the readers alone. Its forward pass and its rounding bound
are its own, in plain NumPy. Let e bound how far a unit's value can lie from the exact one, whatever evaluates
it in the model's dtype, and h be the value computed here. With unit roundoff u and n inputs,

    affine:   e' = sum |w| e + g (sum |w| (|h| + 2 e) + |b|) + underflow,  g = (n + 1) u / (1 - (n + 1) u)
    clipped:  e' = 0 where h is beyond the clip by 2 e or more, else e
    x + f(x): e' = e_x + e_f + u (|x + f| + 2 (e_x + e_f)), f evaluated first and added as a whole

where g covers the n + 1 roundings that a term goes through. A sum has no error where its terms have none, are
whole multiples of one power of two, and are short enough; of two terms it has the other's where one is 0.
Other backends run the same rows through PyTorch, ONNX Runtime or rational arithmetic.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import numpy as np

from isthmus._extras import require
from isthmus._types import PathLike, Progress
from isthmus.certificate import TOLERANCE, Level
from isthmus.data import Dataset, as_dataset
from isthmus.errors import InputError, ModelFileError
from isthmus.model_file import (
    ONNX,
    Dropout,
    Hardtanh,
    LeakyReLU,
    Linear,
    ModelFile,
    Plain,
    Residual,
    read_model,
)

BackendName = Literal["numpy", "torch", "onnxruntime", "exact"]
Evaluate = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]  # [n, *shape] -> outputs, errors [n, K]

WORKSPACE = 1 << 20  # activations held at a time
MOST_LISTED = 10  # wrong rows named
CLIPS = {"ReLU": (0.0, np.inf), "ReLU6": (0.0, 6.0)}
INFLATION = 1 + 2.0**-20  # covers the rounding of a bound itself, computed in float64
SMOOTH_ULPS = 4  # to which tanh and the sigmoid are trusted


@dataclass(frozen=True)
class Verification:
    """What a backend made of every row.

    Attributes:
        verified: no row is wrong; a regression's errors and bounds are within the tolerance, too.
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
        ModelFileError: the model is missing or damaged.
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
    columns = _columns(saved, data)
    label, notes = _labels(saved, data)
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
    return tally.result(backend, tolerance, tuple(notes))


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

    def result(self, backend: BackendName, tolerance: float | None, notes: tuple[str, ...]) -> Verification:
        """All rows together."""
        wrong = np.flatnonzero(~np.concatenate(self.right))
        proven = bool(np.concatenate(self.holds).all())
        equal = bool(np.concatenate(self.equal).all())
        level: Level = (
            "none" if len(wrong) else "measured" if not proven else "bitwise" if equal else "proven"
        )
        return Verification(
            verified=not len(wrong) if tolerance is None else proven,
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


# NumPy: forward pass and rounding bound ---------------------------------------------------------------------


def _numpy(saved: ModelFile) -> Evaluate:
    def evaluate(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return _chain(saved, saved.description.architecture, x, np.zeros(x.shape))

    return evaluate


def _chain(
    saved: ModelFile, layers: Sequence[Any], value: np.ndarray, error: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    for layer in layers:
        value, error = _step(saved, layer, value, error)
    return value, error


def _step(
    saved: ModelFile, layer: Any, value: np.ndarray, error: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    info = np.finfo(value.dtype)
    unit = float(info.eps) / 2
    match layer:
        case Linear():
            weight = saved.tensors[f"{layer.name}.weight"]
            bias = saved.tensors[f"{layer.name}.bias"] if layer.bias else np.zeros_like(weight[:, 0])
            return _affine(weight, bias, value, error)
        case Hardtanh():
            return _clip(value, error, layer.min_val, layer.max_val)
        case Plain(type="ReLU" | "ReLU6" as kind):
            return _clip(value, error, *CLIPS[kind])
        case LeakyReLU():
            slope = value.dtype.type(layer.negative_slope)
            result = np.where(value >= 0, value, slope * value)
            rounding = unit * (np.abs(result) + 2 * float(slope) * error) + float(info.smallest_subnormal)
            return result, np.where(value - 2 * error >= 0, error, (error + rounding) * INFLATION)
        case Plain(type="Tanh" | "Sigmoid" as kind):
            result = np.tanh(value) if kind == "Tanh" else 1 / (1 + np.exp(-value))
            rounding = 2 * SMOOTH_ULPS * unit * (np.abs(result) + 2 * error)
            return result, (error + rounding) * INFLATION + float(info.tiny)
        case Plain(type="Flatten"):
            return value.reshape(len(value), -1), error.reshape(len(error), -1)
        case Plain(type="Identity") | Dropout():
            return value, error
        case Residual():
            return _sum(value, error, *_chain(saved, layer.layers, value, error))
    raise ModelFileError(f"{saved.path}: the layer {layer.name} is not known.")


def _clip(value: np.ndarray, error: np.ndarray, low: float, high: float) -> tuple[np.ndarray, np.ndarray]:
    low, high = (float(value.dtype.type(limit)) for limit in (low, high))
    clipped = (value - 2 * error >= high) | (value + 2 * error <= low)
    return np.clip(value, value.dtype.type(low), value.dtype.type(high)), np.where(clipped, 0.0, error)


def _sum(
    left: np.ndarray, left_error: np.ndarray, right: np.ndarray, right_error: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    info = np.finfo(left.dtype)
    result, passed = left + right, left_error + right_error
    left, right = left.astype(np.float64), right.astype(np.float64)
    step = _lowest_bit(np.stack([left, right], -1))
    size = (np.abs(left) + np.abs(right)) * INFLATION
    unrounded = (passed == 0) & (size < np.exp2(step + info.nmant + 1)) & (size < float(info.max))
    unrounded |= ((left == 0) & (left_error == 0)) | ((right == 0) & (right_error == 0))
    reach = (np.abs(left + right) + 2 * passed) * INFLATION
    bound = (passed + float(info.eps) / 2 * reach) * INFLATION
    return result, np.where(unrounded, passed, np.where(reach < float(info.max), bound, np.inf))


def _affine(
    weight: np.ndarray, bias: np.ndarray, value: np.ndarray, error: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    info = np.finfo(value.dtype)
    result = value @ weight.T + bias
    value, weight, bias = (np.abs(array.astype(np.float64)) for array in (value, weight, bias))
    exact = (error == 0).all(1, keepdims=True) & _sums_exactly(weight, bias, value, info)
    if exact.all():
        return result, np.zeros(result.shape)
    terms = weight.shape[1] + 1
    roundoff = terms * float(info.eps) / 2
    if roundoff > 0.5:
        return result, np.full(result.shape, np.inf)
    reach = ((value + 2 * error) @ weight.T + bias) * INFLATION
    bound = error @ weight.T + roundoff / (1 - roundoff) * reach
    bound = bound * INFLATION + terms * float(info.smallest_subnormal)
    bound = np.where(weight.any(1), bound, 0.0)  # without weights there is no sum
    return result, np.where(exact, 0.0, np.where(2 * reach < float(info.max), bound, np.inf))


def _sums_exactly(weight: np.ndarray, bias: np.ndarray, value: np.ndarray, info: np.finfo) -> np.ndarray:
    """Where the terms are multiples of one power of two, and too few bits long for rounding [n, out]."""
    step = np.minimum(_lowest_bit(value)[:, None] + _lowest_bit(weight), _lowest_bit(bias[:, None]))
    largest = (value.sum(1)[:, None] * weight.max(1) + bias) * INFLATION
    # Nor is a sum subnormal, or too large.
    return (step >= info.minexp) & (largest < np.exp2(step + info.nmant + 1)) & (largest < float(info.max))


def _lowest_bit(values: np.ndarray) -> np.ndarray:
    """For every row the largest g for which its values [..., m] are multiples of 2^g; +inf if all are 0."""
    fraction, exponent = np.frexp(values)
    whole = np.ldexp(fraction, 53).astype(np.int64)
    return np.where(whole != 0, np.frexp(whole & -whole)[1] + exponent - 54.0, np.inf).min(-1)


# Other backends ---------------------------------------------------------------------------------------------


def _compared(saved: ModelFile, run: Callable[[np.ndarray], np.ndarray]) -> Evaluate:
    """Another evaluation in the model's dtype: what is bounded holds for it too, if it is one."""
    evaluate = _numpy(saved)

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
    runtime = require("onnxruntime", "the backend onnxruntime")
    path = saved.path / ONNX
    if not path.is_file():
        raise ModelFileError(
            f"{path}: there is no such file; isthmus export {saved.path} --onnx {path} writes it."
        )
    try:
        # As bytes, the file cannot refer to others.
        session = runtime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
        metadata = session.get_modelmeta().custom_metadata_map
        (name,) = (node.name for node in session.get_inputs())
        classes = json.loads(metadata.get("classes", "[]"))
    except Exception as error:  # ONNX Runtime raises types of its own
        raise ModelFileError(f"{path}: not a sound ONNX file ({error}).") from None
    if metadata.get("model_digest") != saved.certificate.model_digest:
        raise ModelFileError(f"{path}: not written from this model (its digest differs); export it again.")
    if classes != list(saved.description.classes):
        raise ModelFileError(f"{path}: names other classes than the model; export it again.")

    def run(x: np.ndarray) -> np.ndarray:
        try:
            return np.asarray(session.run(None, {name: x})[0])
        except Exception as reason:
            raise ModelFileError(f"{path}: does not run on the model's inputs ({reason}).") from None

    return _compared(saved, run)


def _exact(saved: ModelFile) -> Evaluate:
    import torch

    from isthmus import graph
    from isthmus.arithmetic.exact import exact_forward
    from isthmus.export import instantiate

    stages, bound = graph.stages(instantiate(saved)), _numpy(saved)

    def evaluate(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        outputs = exact_forward(stages, torch.from_numpy(x)).fractions().astype(np.float64)
        # What is reported is rounded once; what is proven holds for the model's own arithmetic.
        return outputs, bound(x)[1] + np.spacing(np.abs(outputs))

    return evaluate


_BACKENDS: dict[BackendName, Callable[[ModelFile], Evaluate]] = {
    "numpy": _numpy,
    "torch": _torch,
    "onnxruntime": _onnxruntime,
    "exact": _exact,
}
