"""An ONNX classifier or regressor as a PyTorch module that runs in ONNX Runtime."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from isthmus._extras import require
from isthmus._types import PathLike
from isthmus.errors import InputError

if TYPE_CHECKING:
    import onnx

KINDS = {
    "tensor(float)": torch.float32,
    "tensor(double)": torch.float64,
    "tensor(float16)": torch.float16,
}
OLDEST_OPSET = 9  # has Where, and comparisons of float64


class OnnxModel(nn.Module):
    """x -> the scores or values that an ONNX graph computes; x in the dtype of the graph's input.

    A classifier gives scores (of any kind: of the classes the largest counts), with or without labels; a
    regressor one tensor of values.

    Args:
        proto: the graph: one input, whose rows are examples.
        name: of the model, for messages.

    Raises:
        InputError: not a sound graph, or one with other inputs and outputs.
        MissingExtra: the extra ``onnx`` is not installed.

    Attributes:
        proto: the graph as it was given.
        scores: the tensor in it that holds the scores or values.
        labels: the output that names the class, if there is one.
        tables: vectors of distinct names in the graph, those nearest to the labels first.
        classes: the labels in the order of the scores; empty if the graph names none.
    """

    def __init__(self, proto: onnx.ModelProto, name: str = "the ONNX model") -> None:
        super().__init__()
        self.proto, self.name = proto, name
        graph = proto.graph
        stored = {tensor.name for tensor in graph.initializer}
        inputs = [entry for entry in graph.input if entry.name not in stored]
        if len(inputs) != 1:
            names = ", ".join(entry.name for entry in inputs)
            raise InputError(f"{name} has the inputs {names}; only models of one tensor can be repaired.")
        self.input = inputs[0]
        self._element = _element(self.input, name)
        self.scores, self.labels, self.tables = _roles(proto, name)
        self.classes = self.tables[0] if self.tables else ()
        opset = next((entry.version for entry in proto.opset_import if entry.domain in {"", "ai.onnx"}), None)
        if opset is not None and opset < OLDEST_OPSET:
            raise InputError(f"{name} is of opset {opset}; convert it to {OLDEST_OPSET} or newer.")
        # Not a weight: what says in which dtype inputs are taken.
        dtype = self._element if self._element.is_floating_point else torch.float64
        self.register_parameter("dtype", nn.Parameter(torch.zeros(0, dtype=dtype), requires_grad=False))
        # So that digests cover the graph.
        self.register_buffer(
            "bytes", torch.frombuffer(bytearray(_serialized(proto, name)), dtype=torch.uint8)
        )
        self._session  # noqa: B018 - a graph that does not run is refused at once

    @cached_property
    def _session(self) -> Any:
        import onnx

        runtime = require("onnxruntime", "running an ONNX model")
        shown = onnx.ModelProto()
        shown.CopyFrom(self.proto)
        if self.scores not in {entry.name for entry in shown.graph.output}:
            shown.graph.output.append(onnx.ValueInfoProto(name=self.scores))
        options = runtime.SessionOptions()
        options.log_severity_level = 3
        try:
            return runtime.InferenceSession(
                shown.SerializeToString(), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # ONNX Runtime raises types of its own
            raise InputError(f"{self.name} does not load in ONNX Runtime: {error}") from None

    @property
    def output_dtype(self) -> torch.dtype:
        """Of the scores or values."""
        return KINDS[self._output.type]

    @property
    def flat(self) -> bool:
        """Whether the scores or values are a vector [N], rather than a matrix [N, K]."""
        return len(self._output.shape) == 1

    @property
    def _output(self) -> Any:
        return next(entry for entry in self._session.get_outputs() if entry.name == self.scores)

    @property
    def shape(self) -> tuple[int | None, ...]:
        """The shape of one row; None where the graph leaves it open."""
        dimensions = self.input.type.tensor_type.shape.dim
        return tuple(entry.dim_value or None for entry in dimensions[1:])

    def described(self, properties: Mapping[str, str]) -> bytes:
        """The file's contents, with these properties in place of older ones of their names."""
        import onnx

        proto = onnx.ModelProto()
        proto.CopyFrom(self.proto)
        for entry in [entry for entry in proto.metadata_props if entry.key in properties]:
            proto.metadata_props.remove(entry)
        for key, value in properties.items():
            proto.metadata_props.add(key=key, value=value)
        return _serialized(proto, self.name)

    def named(self, x: Tensor) -> list[str | int] | None:
        """The labels of inputs [N, *shape], as the graph itself gives them; None if it gives none."""
        if self.labels is None:
            return None
        found = self.run(x, [self.labels])[0]
        return found.squeeze(1).tolist() if isinstance(found, Tensor) else found.reshape(-1).tolist()

    def settle(self, x: Tensor) -> None:
        """Find the names of the scores: those that the graph's labels for most inputs [N, *shape] agree with.

        Raises:
            InputError: none of the vectors of names in the graph does.
        """
        if (found := self.named(x)) is None:
            return
        best = self(x)
        agreeing = {
            names: sum(
                names[place] == label for place, label in zip(best.argmax(1).tolist(), found, strict=True)
            )
            for names in self.tables
            if len(names) == best.shape[1]
        }
        self.classes = max(agreeing, key=lambda names: agreeing[names], default=())
        if 2 * agreeing.get(self.classes, 0) < len(found):
            raise InputError(
                f"{self.name}: the labels are not those of the largest of {best.shape[1]} scores, so neither "
                "can be repaired; export the model with probabilities, or without labels."
            )

    def forward(self, x: Tensor) -> Tensor:
        """Run the graph on inputs [N, *shape]; scores or values [N, K]."""
        return self.run(x, [self.scores])[0]

    def run(self, x: Tensor, names: Sequence[str]) -> list[Any]:
        """Outputs by name: tensors [N, K] for numbers, arrays for names.

        Raises:
            InputError: the graph does not run on these inputs.
        """
        rows = x.to(self._element)
        if not self._element.is_floating_point and not torch.equal(rows.to(x.dtype), x):
            raise InputError(f"{self.name} takes integers, but some inputs are not.")
        fixed = self.input.type.tensor_type.shape.dim[0].dim_value if self.shape else 0
        parts = []
        for part in rows.split(fixed or max(1, len(rows))):
            short = len(part)
            if fixed > short:  # a graph of a fixed batch size
                part = torch.cat([part, part[:1].expand(fixed - short, *part.shape[1:])])
            try:
                found = self._session.run(list(names), {self.input.name: part.numpy()})
            except Exception as error:  # ONNX Runtime raises types of its own
                raise InputError(f"{self.name} does not run on these inputs: {error}") from None
            parts.append([output[:short] for output in found])
        return [_joined(columns) for columns in zip(*parts, strict=True)]


def open_onnx(path: PathLike) -> OnnxModel:
    """Read an ONNX file, with weights that stand in files beside it.

    Raises:
        InputError: no sound ONNX file, or a model that `OnnxModel` does not take.
        MissingExtra: the extra ``onnx`` is not installed.
    """
    onnx = require("onnx", "reading an ONNX file")
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: there is no such file.")
    try:
        proto = onnx.load(str(path))
        onnx.checker.check_model(proto)
    except Exception as error:  # protobuf, onnx and the system each raise types of their own
        raise InputError(f"{path}: not a sound ONNX file ({str(error).splitlines()[0]}).") from None
    return OnnxModel(proto, str(path))


def _serialized(proto: onnx.ModelProto, name: str) -> bytes:
    try:
        return proto.SerializeToString(deterministic=True)
    except Exception as error:  # protobuf holds 2 GiB at most
        raise InputError(f"{name} is too large to be repaired as one file ({error}).") from None


def _joined(parts: Sequence[Any]) -> Any:
    array = np.concatenate([np.asarray(part) for part in parts])
    if array.dtype.kind not in "fiu":
        return array
    return torch.from_numpy(array.reshape(len(array), -1))


def _element(entry: onnx.ValueInfoProto, name: str) -> torch.dtype:
    import onnx

    kinds = {
        onnx.TensorProto.FLOAT: torch.float32,
        onnx.TensorProto.DOUBLE: torch.float64,
        onnx.TensorProto.FLOAT16: torch.float16,
        onnx.TensorProto.INT64: torch.int64,
        onnx.TensorProto.INT32: torch.int32,
    }
    kind = entry.type.tensor_type.elem_type
    if kind not in kinds or not entry.type.tensor_type.shape.dim:
        raise InputError(f"{name}: the input {entry.name} is not a tensor of numbers with a row per example.")
    return kinds[kind]


Names = tuple[str | int, ...]


def _roles(proto: onnx.ModelProto, name: str) -> tuple[str, str | None, list[Names]]:
    """The tensor of scores or values, the output of labels, and what may be the classes' names.

    Raises:
        InputError: the graph has other outputs.
    """
    import onnx

    scores: list[str] = []
    labels: list[str] = []
    tables: list[Names] = []
    for entry in proto.graph.output:
        kind = entry.type.tensor_type.elem_type
        if entry.type.HasField("sequence_type"):
            zipped = next((node for node in proto.graph.node if entry.name in node.output), None)
            if zipped is None or zipped.op_type != "ZipMap":
                raise InputError(f"{name}: the output {entry.name} is a sequence that no ZipMap makes.")
            scores.append(zipped.input[0])
            tables = _named_in(zipped)
        elif kind in {onnx.TensorProto.INT64, onnx.TensorProto.INT32, onnx.TensorProto.STRING}:
            labels.append(entry.name)
        elif kind in {onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE, onnx.TensorProto.FLOAT16}:
            scores.append(entry.name)
    if len(scores) != 1 or len(labels) > 1:
        found = ", ".join(entry.name for entry in proto.graph.output)
        raise InputError(
            f"{name} has the outputs {found}; what can be repaired has one of scores or values, and at most "
            "one of labels."
        )
    if labels and not tables:
        tables = _tables(proto, labels[0])
        if not tables:
            raise InputError(f"{name}: no node says which labels there are, so they cannot be repaired.")
    return scores[0], labels[0] if labels else None, tables


def _tables(proto: onnx.ModelProto, output: str) -> list[Names]:
    """The vectors of names that nodes hold or look up on the way to an output, the nearest first."""
    makers = {name: node for node in proto.graph.node for name in node.output}
    stored = {tensor.name: tensor for tensor in proto.graph.initializer}
    found: list[Names] = []
    ahead, seen = deque([output]), {output}
    while ahead:
        node = makers.get(ahead.popleft())
        if node is None:
            continue
        found += _named_in(node)
        if node.op_type in {"ArrayFeatureExtractor", "Gather"} and node.input[0] in stored:
            found += _vector(stored[node.input[0]])
        fresh = [name for name in node.input if name not in seen]
        seen.update(fresh)
        ahead += fresh
    return [names for names in found if len(set(names)) == len(names)]


def _named_in(node: onnx.NodeProto) -> list[Names]:
    """The class labels that a classifier's node holds."""
    return [
        tuple(attribute.ints) or tuple(text.decode() for text in attribute.strings)
        for attribute in node.attribute
        if attribute.name.startswith(("classlabels_", "classes_")) and (attribute.ints or attribute.strings)
    ]


def _vector(table: onnx.TensorProto) -> list[Names]:
    """A tensor as names, if it is a vector of ints or strings."""
    import onnx

    values = onnx.numpy_helper.to_array(table).reshape(-1)
    if values.dtype.kind in "iu":
        return [tuple(values.tolist())]
    if values.dtype.kind in "OSU":
        return [tuple(text.decode() if isinstance(text, bytes) else text for text in values.tolist())]
    return []
