"""ONNX files: written by PyTorch's exporter, and run on every row with ONNX Runtime."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from isthmus import graph
from isthmus._extras import require
from isthmus._types import Progress
from isthmus.certificate import Backend, Certificate
from isthmus.data.dataset import Dataset
from isthmus.errors import UnsupportedModel
from isthmus.nets.fold import fold
from isthmus.nets.onnx_model import OnnxModel, open_onnx
from isthmus.nets.paired import PairedHead
from isthmus.nets.patched import Gates, Patched
from isthmus.nets.residual import Residual

ONNX_INPUT, ONNX_OUTPUT = "x", "y"
WORKSPACE = 1 << 22  # activations that ONNX Runtime holds at a time


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
        model: a model; one that `graph` does not understand is exported as it is, an ONNX graph written.
        certificate: the model's.
        input_shape: of one row.
        classes: names of the outputs; empty for regression.

    Raises:
        MissingExtra: the extra ``onnx`` is not installed.
        UnsupportedModel: PyTorch cannot write the model as ONNX.
    """
    onnx = require("onnx", "ONNX export")
    properties = {
        "model_digest": certificate.model_digest,
        "data_digest": certificate.data_digest,
        "classes": json.dumps(classes),
    }
    if isinstance(model, OnnxModel):
        path.write_bytes(model.described(properties))
        return
    require("onnxscript", "ONNX export")
    example = torch.zeros(2, *input_shape, dtype=graph.dtype_of(model))
    # torch's exporter talks on stdout and warns of its own internals.
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings(), graph.evaluating(model):
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            program = torch.onnx.export(
                _portable(model).eval(),
                (example,),
                input_names=[ONNX_INPUT],
                output_names=[ONNX_OUTPUT],
                dynamic_shapes=({0: torch.export.Dim("N")},),
                dynamo=True,
                verbose=False,
            )
        except torch.onnx.OnnxExporterError as error:
            first = str(error).strip().splitlines()[0]
            raise UnsupportedModel(f"PyTorch cannot write the model as ONNX: {first}") from None
        finally:
            logging.disable(logging.NOTSET)
    assert program is not None  # only None when torch.onnx.export is given a file name
    proto = program.model_proto
    for key, value in properties.items():
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
        UnsupportedModel: ONNX Runtime has no kernels for the model, as for convolutions in float64.
    """
    runtime = require("onnxruntime", "checking an ONNX file")
    if isinstance(model, OnnxModel):
        evaluate: Callable[[Tensor], Tensor] = open_onnx(path)
    else:
        try:
            session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime raises types of its own
            raise UnsupportedModel(f"ONNX Runtime does not run this model: {error}") from None

        def evaluate(x: Tensor) -> Tensor:
            return torch.from_numpy(session.run([ONNX_OUTPUT], {ONNX_INPUT: x.numpy()})[0])

    dtype = graph.dtype_of(model)
    wrong, error, difference = 0, 0.0, 0.0
    step = max(1, WORKSPACE // max(data.inputs, data.outputs, _widest(model)))
    for start in range(0, data.rows, step):
        rows = slice(start, min(start + step, data.rows))
        x = data.x[rows].to(dtype)
        output = evaluate(x).double()
        distance = (output - data.targets(rows)).abs().amax(1)
        right = _leads(output, data.y[rows]) if tolerance is None else distance <= tolerance
        wrong += int((~right).sum())
        error = max(error, float(distance.amax()))
        with torch.no_grad(), graph.evaluating(model):
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


def _widest(model: nn.Module) -> int:
    try:
        return graph.widest(graph.stages(model))
    except UnsupportedModel:
        return 0


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


def _portable(model: nn.Module) -> nn.Module:
    """The same function of operators that ONNX Runtime has in the model's dtype; if foreign, folded only."""
    try:
        layers = graph.layers(model)
        return nn.Sequential(*_portable_layers(layers, graph.dtype_of(model)))
    except UnsupportedModel:
        return fold(model)


def _portable_layers(leaves: Iterable[graph.Leaf], dtype: torch.dtype) -> Iterator[nn.Module]:
    constant = partial(torch.tensor, dtype=dtype)
    for _, module, _ in leaves:
        match module:
            case nn.LeakyReLU():
                yield _PortableLeakyReLU(constant(module.negative_slope))
            case nn.Hardtanh():
                yield _PortableHardtanh(constant(module.min_val), constant(module.max_val))
            case PairedHead():
                yield module.folded()
            case Residual():
                yield Residual(*_portable_layers(graph.inner_layers(module), dtype))
            case Patched():
                base = nn.Sequential(*_portable_layers(graph.inner_layers(module), dtype))
                yield Patched(base, [patch for patch in module.patches if isinstance(patch, Gates)])
            case _:
                yield module
