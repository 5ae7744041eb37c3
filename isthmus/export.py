"""Saving and loading: model directories (safetensors and JSON) and ONNX files checked with ONNX Runtime."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from isthmus import graph
from isthmus._extras import require
from isthmus._types import PathLike, Progress
from isthmus.certificate import Backend, Certificate
from isthmus.data.dataset import Dataset
from isthmus.errors import InputError, ModelFileError
from isthmus.files import whole_directory, whole_file
from isthmus.model_file import CERTIFICATE, DESCRIPTION, MODEL, ONNX, Description, read_model

ONNX_INPUT, ONNX_OUTPUT = "x", "y"
CHUNK_VALUES = 1 << 23  # inputs handed to ONNX Runtime at a time


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
        MissingExtra: ``onnx`` without the extra.
    """
    certificate = result.certificate
    description = _describe(result)
    with whole_directory(directory, DESCRIPTION, replace=force) as draft:
        if onnx:
            backend = export_onnx(result, draft / ONNX, on_progress=on_progress)
            certificate = certificate.model_copy(update={"backends": (*certificate.backends, backend)})
        save_file(_tensors(result.model), draft / MODEL, metadata={"digest": certificate.model_digest})
        (draft / DESCRIPTION).write_text(description.model_dump_json(indent=2) + "\n")
        (draft / CERTIFICATE).write_text(certificate.model_dump_json(indent=2) + "\n")
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
    saved = read_model(directory)
    tensors = {name: torch.from_numpy(value) for name, value in saved.tensors.items()}
    if into is None:
        into = _rebuild(saved.description)
    try:
        into.load_state_dict(tensors)
    except RuntimeError as error:
        raise ModelFileError(f"{directory}: the tensors do not fit the given module: {error}.") from None
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
    example = torch.zeros(2, *input_shape, dtype=next(model.parameters()).dtype)
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
    dtype = next(model.parameters()).dtype
    wrong, error, difference = 0, 0.0, 0.0
    step = max(1, CHUNK_VALUES // data.inputs)
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
        dtype=str(dtype).removeprefix("torch."),
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


class _PortableLeakyReLU(nn.Module):
    """Leaky ReLU as max(x, slope x): ONNX Runtime has no float64 kernel for LeakyRelu."""

    def __init__(self, slope: float) -> None:
        super().__init__()
        self.slope = slope

    def forward(self, x: Tensor) -> Tensor:
        """Apply to x of any shape."""
        return torch.maximum(x, self.slope * x)


def _portable(model: nn.Module) -> nn.Module:
    """The same function out of operators that ONNX Runtime has in float64."""
    layers = [module for _, module, _ in graph.layers(model)]
    return nn.Sequential(
        *(_PortableLeakyReLU(m.negative_slope) if isinstance(m, nn.LeakyReLU) else m for m in layers)
    ).eval()


def _describe(result: Result) -> Description:
    data = result.data
    dtype = next((p.dtype for p in result.model.parameters()), torch.float64)
    if dtype not in {torch.float64, torch.float32}:
        raise InputError(f"models are saved in float64 or float32, not {dtype}; convert it first.")
    return Description.model_validate({
        "kind": result.recipe["plan"]["method"],
        "task": data.task,
        "architecture": graph.describe(result.model),
        "dtype": str(dtype).removeprefix("torch."),
        "input_shape": tuple(data.x.shape[1:]),
        "outputs": data.outputs,
        "columns": data.columns,
        "classes": data.classes,
        "recipe": result.recipe,
    })


def _rebuild(description: Description) -> nn.Module:
    """The described network; every layer under its own name, nested as the names say."""
    dtype = getattr(torch, description.dtype)
    root = nn.Sequential()
    for layer in description.layers():
        name, kind = layer.pop("name"), layer.pop("type")
        options = {"dtype": dtype} if kind == "Linear" else {}
        parent = root
        *path, last = name.split(".")
        for part in path:
            if part not in dict(parent.named_children()):
                parent.add_module(part, nn.Sequential())
            parent = parent.get_submodule(part)
        parent.add_module(last, graph.LAYERS[kind].module(**layer, **options))
    return root.requires_grad_(False)


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.contiguous().cpu() for name, tensor in model.state_dict().items()}
