"""Saving and loading: model directories (safetensors and JSON) and ONNX files checked with ONNX Runtime."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import warnings
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from isthmus import graph
from isthmus._extras import require
from isthmus._types import PathLike, Progress
from isthmus.certificate import Backend, Certificate
from isthmus.data.dataset import Dataset
from isthmus.errors import InputError, ModelFileError, UnsupportedModel
from isthmus.files import whole_directory, whole_file
from isthmus.model_file import (
    CERTIFICATE,
    DESCRIPTION,
    MODEL,
    ONNX,
    Description,
    ModelFile,
    read_model,
)
from isthmus.nets.residual import Residual

ONNX_INPUT, ONNX_OUTPUT = "x", "y"
WORKSPACE = 1 << 22  # activations that ONNX Runtime holds at a time


class Result(Protocol):
    """What can be saved: a model with its certificate, the data it was issued on, and how it was made."""

    @property
    def model(self) -> nn.Module:
        """The network."""

    @property
    def certificate(self) -> Certificate:
        """What was checked of it."""

    @property
    def data(self) -> Dataset:
        """The rows it was checked on."""

    @property
    def recipe(self) -> dict[str, Any]:
        """What rebuilds it."""


def save(
    directory: PathLike,
    result: Result,
    *,
    onnx: bool = False,
    force: bool = False,
    on_progress: Progress | None = None,
) -> Certificate:
    """Write a model directory, whole or not at all.

    Args:
        directory: its place; an older model directory is replaced only with ``force``.
        result: what `memorize` returned.
        onnx: write ``model.onnx`` too, and record in the certificate what ONNX Runtime makes of every row.
        force: replace.
        on_progress: told what is done and which part of it.

    Returns:
        The certificate as saved.

    Raises:
        InputError: the place is taken or cannot be written.
        UnsupportedModel: the model has a module outside `isthmus.graph`.
        ModelFileError: the model is not the one that was certified: it was changed since.
        MissingExtra: ``onnx`` without the extra.
    """
    certificate = result.certificate
    description = _describe(result)
    with whole_directory(directory, DESCRIPTION, replace=force) as draft:
        if onnx:
            backend = export_onnx(result, draft / ONNX, on_progress=on_progress)
            certificate = certificate.model_copy(update={"backends": (*certificate.backends, backend)})
        try:
            save_file(_tensors(result.model), draft / MODEL, metadata={"digest": certificate.model_digest})
        except SafetensorError as error:
            raise InputError(f"{directory} cannot be written: {error}.") from None
        (draft / DESCRIPTION).write_text(description.model_dump_json(indent=2) + "\n", encoding="utf-8")
        (draft / CERTIFICATE).write_text(certificate.model_dump_json(indent=2) + "\n", encoding="utf-8")
        read_model(draft)  # nothing takes an older model's place that could not be opened again
    return certificate


def load_model(directory: PathLike, into: nn.Module | None = None) -> nn.Module:
    """Open a model directory.

    Args:
        directory: what `save` wrote.
        into: a module to load the tensors into; by default the described network is built.

    Returns:
        The network in evaluation mode.

    Raises:
        ModelFileError: missing, damaged or changed files, or tensors that do not fit ``into``.
    """
    return instantiate(read_model(directory), into)


def instantiate(saved: ModelFile, into: nn.Module | None = None) -> nn.Module:
    """Make a network of a model directory that has been read.

    Args:
        saved: the directory's contents.
        into: a module to load the tensors into; by default the described network is built.

    Returns:
        The network in evaluation mode.

    Raises:
        ModelFileError: the tensors do not fit ``into``, or would be rounded there.
    """
    tensors = {name: torch.from_numpy(value) for name, value in saved.tensors.items()}
    if into is None:
        return _rebuild(saved, tensors)
    dtypes = {graph.dtype_name(tensor.dtype) for tensor in into.state_dict().values()}
    if dtypes - {saved.description.dtype}:
        raise ModelFileError(
            f"{saved.path}: the model is {saved.description.dtype}, but the given module holds "
            f"{', '.join(sorted(dtypes))}; convert the module first, so that no weight is rounded."
        )
    try:
        into.load_state_dict(tensors)
    except RuntimeError as error:
        raise ModelFileError(f"{saved.path}: the tensors do not fit the given module: {error}.") from None
    return into.eval()


def export_onnx(result: Result, path: PathLike, *, on_progress: Progress | None = None) -> Backend:
    """Write an ONNX file in the model's dtype and run it on every row with ONNX Runtime.

    Args:
        result: a model with its data.
        path: the file's place; replaced if it exists.
        on_progress: told what is done and which part of it.

    Returns:
        What ONNX Runtime made of the rows.

    Raises:
        MissingExtra: the extra ``onnx`` is not installed.
        InputError: the file cannot be written.
        UnsupportedModel: the model has a module outside `isthmus.graph`.
    """
    with whole_file(path) as draft:
        write_onnx(draft, result.model, result.certificate, result.data.x.shape[1:], result.data.classes)
        return run_onnx(draft, result.model, result.data, result.certificate.tolerance, on_progress)


def write_onnx(
    path: Path,
    model: nn.Module,
    certificate: Certificate,
    input_shape: Sequence[int],
    classes: Sequence[str | int],
) -> None:
    """Write a model as ONNX, with its digests and class names in the file's metadata.

    Args:
        path: where to.
        model: a model that `graph` understands.
        certificate: the model's.
        input_shape: of one row.
        classes: names of the outputs; empty for regression.

    Raises:
        MissingExtra: the extra ``onnx`` is not installed.
        UnsupportedModel: the model has a module outside `isthmus.graph`.
    """
    onnx = require("onnx", "ONNX export")
    require("onnxscript", "ONNX export")
    example = torch.zeros(2, *input_shape, dtype=_dtype(model))
    # torch's exporter talks on stdout and warns of its own internals.
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            program = torch.onnx.export(
                _portable(model),
                (example,),
                input_names=[ONNX_INPUT],
                output_names=[ONNX_OUTPUT],
                dynamic_shapes=({0: torch.export.Dim("N")},),
                dynamo=True,
                verbose=False,
            )
        finally:
            logging.disable(logging.NOTSET)
    assert program is not None  # only None when torch.onnx.export is given a file name
    proto = program.model_proto
    for key, value in {
        "model_digest": certificate.model_digest,
        "data_digest": certificate.data_digest,
        "classes": json.dumps(classes),
    }.items():
        proto.metadata_props.add(key=key, value=value)
    onnx.checker.check_model(proto, full_check=True)
    onnx.save(proto, path)


def run_onnx(
    path: Path,
    model: nn.Module,
    data: Dataset,
    tolerance: float | None,
    on_progress: Progress | None = None,
) -> Backend:
    """Run an ONNX file on every row with ONNX Runtime.

    Args:
        path: the file.
        model: what it was written from.
        data: the rows.
        tolerance: of a regression, in units of the target.
        on_progress: told what is done and which part of it.

    Raises:
        MissingExtra: the extra ``onnx`` is not installed.
    """
    runtime = require("onnxruntime", "checking an ONNX file")
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    dtype = _dtype(model)
    wrong, error, difference = 0, 0.0, 0.0
    step = max(1, WORKSPACE // max(data.inputs, data.outputs, *graph.widths(graph.stages(model))))
    for start in range(0, data.rows, step):
        rows = slice(start, min(start + step, data.rows))
        x = data.x[rows].to(dtype)
        output = torch.from_numpy(session.run([ONNX_OUTPUT], {ONNX_INPUT: x.numpy()})[0]).double()
        distance = (output - data.targets(rows)).abs().amax(1)
        right = _leads(output, data.y[rows]) if tolerance is None else distance <= tolerance
        wrong += int((~right).sum())
        error = max(error, float(distance.amax()))
        with torch.no_grad():
            difference = max(difference, float((output - model(x).double()).abs().amax()))
        if on_progress is not None:
            on_progress("running ONNX Runtime", rows.stop / data.rows)
    return Backend(
        name="onnxruntime",
        version=runtime.__version__,
        dtype=graph.dtype_name(dtype),
        rows=data.rows,
        wrong=wrong,
        max_error=error,
        max_difference=difference,
    )


def _leads(output: Tensor, label: Tensor) -> Tensor:
    """Whether the class at ``label`` [N] has the strictly largest output [N, K]."""
    own = output.gather(1, label[:, None])
    others = output.scatter(1, label[:, None], -torch.inf)
    return own.squeeze(1) > others.amax(1)


# An activation's constants are tensors of the model's dtype: plain numbers reach ONNX as float32.


class _PortableLeakyReLU(nn.Module):
    """Leaky ReLU as max(x, slope x): ONNX Runtime has no float64 kernel for LeakyRelu."""

    slope: Tensor

    def __init__(self, slope: Tensor) -> None:
        super().__init__()
        self.register_buffer("slope", slope)

    def forward(self, x: Tensor) -> Tensor:
        """Apply to x of any shape."""
        return torch.maximum(x, self.slope * x)


class _PortableHardtanh(nn.Module):
    """Hard-tanh as min(max(x, low), high)."""

    low: Tensor
    high: Tensor

    def __init__(self, low: Tensor, high: Tensor) -> None:
        super().__init__()
        self.register_buffer("low", low)
        self.register_buffer("high", high)

    def forward(self, x: Tensor) -> Tensor:
        """Apply to x of any shape."""
        return torch.minimum(torch.maximum(x, self.low), self.high)


def _portable(model: nn.Module) -> nn.Sequential:
    """The same function out of operators that ONNX Runtime has in the model's dtype."""
    return nn.Sequential(*_portable_layers(graph.layers(model), _dtype(model)))


def _portable_layers(leaves: Iterable[graph.Leaf], dtype: torch.dtype) -> Iterator[nn.Module]:
    constant = partial(torch.tensor, dtype=dtype)
    for _, module, _ in leaves:
        match module:
            case nn.LeakyReLU():
                yield _PortableLeakyReLU(constant(module.negative_slope))
            case nn.Hardtanh():
                yield _PortableHardtanh(constant(module.min_val), constant(module.max_val))
            case Residual():
                yield Residual(*_portable_layers(graph.inner_layers(module), dtype))
            case _:
                yield module


def _dtype(model: nn.Module) -> torch.dtype:
    dtypes = {parameter.dtype for parameter in model.parameters()} or {torch.float64}
    if len(dtypes) > 1 or not dtypes <= set(graph.DTYPES.values()):
        found = ", ".join(sorted(map(str, dtypes)))
        raise InputError(f"models are saved in {', '.join(graph.DTYPES)}, not in {found}; convert it first.")
    return dtypes.pop()


def _describe(result: Result) -> Description:
    if not isinstance(result.model, nn.Sequential) or isinstance(result.model, Residual):
        raise UnsupportedModel(
            f"a {type(result.model).__name__} is not saved by itself; put it into a torch.nn.Sequential."
        )
    data = result.data
    try:
        return Description.model_validate({
            "kind": result.recipe["plan"]["method"],
            "task": data.task,
            "architecture": graph.describe(result.model),
            "dtype": graph.dtype_name(_dtype(result.model)),
            "input_shape": tuple(data.x.shape[1:]),
            "outputs": data.outputs,
            "columns": data.columns,
            "classes": data.classes,
            "recipe": result.recipe,
        })
    except ValidationError as error:
        reason = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise UnsupportedModel(f"the model is not saved, for it could not be read again: {reason}.") from None


def _rebuild(saved: ModelFile, tensors: dict[str, Tensor]) -> nn.Module:
    """The described network; every layer under its own name, nested as the names say.

    Raises:
        ModelFileError: PyTorch does not take a layer's name.
    """
    root = nn.Sequential()
    # Without storage no random weights are drawn: the caller's random state stays as it is.
    with torch.device("meta"):
        _place(root, saved.description.layers(), saved.path)
    root.load_state_dict(tensors, assign=True)
    return root.requires_grad_(False).eval()


def _place(root: nn.Sequential, layers: Iterable[dict[str, Any]], place: Path) -> None:
    for layer in layers:
        name, kind, within = layer.pop("name"), layer.pop("type"), layer.pop("layers", ())
        parent = root
        *path, last = name.split(".")
        try:
            for part in path:
                if part not in dict(parent.named_children()):
                    parent.add_module(part, nn.Sequential())
                parent = parent.get_submodule(part)
            parent.add_module(last, graph.LAYERS[kind].module(**layer))
        except KeyError as error:
            raise ModelFileError(f"{place}: no layer can be named {name!r}: {error}.") from None
        _place(root, within, place)


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    # Copies: safetensors refuses tensors that share memory, as those of a repeated layer do.
    return {name: tensor.cpu().clone().contiguous() for name, tensor in model.state_dict().items()}
