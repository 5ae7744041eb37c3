"""Gates merged into an ONNX graph: new nodes beside the old ones, whose weights stay byte for byte.

The tensors that say what the model thinks, its scores and its label, are intercepted: what computed them goes
on under another name, and the new nodes give what was added to it under the old one. So whatever reads the
model's outputs finds them where they were. All that is new has a name that begins with `PREFIX`, and can be
taken out again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from isthmus.errors import InputError
from isthmus.graph import dtype_name
from isthmus.nets.patched import Gates

if TYPE_CHECKING:
    import onnx

    from isthmus.nets.onnx_model import OnnxModel

PREFIX = "isthmus/patch"  # and a number, and a slash
OPSET = 13  # of the standard operators, in graphs that use none


def graft(model: OnnxModel, gates: Gates, shares: bool) -> onnx.ModelProto:
    """The graph with gates beside it.

    Args:
        model: what is repaired.
        gates: what is added to its scores or values.
        shares: whether these are shares of 1, see `isthmus.nets.patched.Patched`.

    Raises:
        InputError: a tensor to be intercepted is computed by no node.
    """
    import onnx

    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    graph = proto.graph
    prefix = f"{PREFIX}{patches(proto) + 1}/"
    if not any(entry.domain in {"", "ai.onnx"} for entry in proto.opset_import):
        proto.opset_import.append(onnx.helper.make_opsetid("", OPSET))
    readers = [node for node in graph.node if node.op_type == "ZipMap" and model.scores in node.input]
    for node in readers:  # they come after what is new
        graph.node.remove(node)
    new = _Nodes(proto, prefix)
    scores = _intercept(graph, model.scores, prefix)
    label = None if model.labels is None else _intercept(graph, model.labels, prefix)
    opening, added = _gates(new, model.input.name, gates)
    wide = new("Cast", [scores], to=onnx.TensorProto.DOUBLE)
    total = added = new("Reshape", [added, new("Shape", [scores])]) if model.flat else added
    result = new("Add", [wide, added])
    if shares:
        total = new("MatMul", [added, new.constant("ones", np.ones((gates.outputs, 1)))])
        result = new("Div", [result, new("Add", [new.constant("one", np.ones(1)), total])])
    changed = new("Greater", [new("Abs", [total]), new.constant("nothing", np.zeros(1))])
    kind = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype_name(model.output_dtype)))
    result = new("Cast", [new("Where", [changed, result, wide])], to=kind)
    new("Identity", [result], model.scores)
    if label is not None:
        _relabel(new, model, label, result, opening, gates)
    graph.node.extend(readers)
    onnx.checker.check_model(proto)
    return proto


def ungraft(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The graph without the patch that was added last."""
    import onnx

    proto_ = onnx.ModelProto()
    proto_.CopyFrom(proto)
    graph, prefix = proto_.graph, f"{PREFIX}{patches(proto)}/"
    for node in [node for node in graph.node if node.name.startswith(prefix)]:
        graph.node.remove(node)
    for tensor in [tensor for tensor in graph.initializer if tensor.name.startswith(prefix)]:
        graph.initializer.remove(tensor)
    base = f"{prefix}base/"
    for node in _nodes(graph):
        for names in (node.input, node.output):
            for place, name in enumerate(names):
                if name.startswith(base):
                    names[place] = name.removeprefix(base)
    return proto_


def patches(proto: onnx.ModelProto) -> int:
    """How many patches a graph has."""
    numbers = [node.name.removeprefix(PREFIX) for node in proto.graph.node if node.name.startswith(PREFIX)]
    return max((int(number.partition("/")[0]) for number in numbers), default=0)


class _Nodes:
    """Adds nodes to a graph; every one has the prefix and a number, and one output."""

    def __init__(self, proto: onnx.ModelProto, prefix: str) -> None:
        self._graph, self._prefix = proto.graph, prefix

    def __call__(self, kind: str, inputs: Sequence[str], output: str | None = None, **options: Any) -> str:
        import onnx

        name = f"{self._prefix}{kind}{len(self._graph.node)}"
        output = output or f"{name}:0"
        self._graph.node.append(onnx.helper.make_node(kind, list(inputs), [output], name=name, **options))
        return output

    def constant(self, name: str, value: np.ndarray) -> str:
        import onnx

        name = f"{self._prefix}{name}{len(self._graph.initializer)}"
        self._graph.initializer.append(onnx.numpy_helper.from_array(value, name))
        return name


def _gates(new: _Nodes, source: str, gates: Gates) -> tuple[str, str]:
    """The formula of `Gates`: the openings [N, G] and what they add [N, K], in float64."""
    import onnx

    def held(name: str) -> str:
        return new.constant(name, getattr(gates, name).numpy())

    def times(left: str, name: str, matrix: np.ndarray) -> str:
        return new("MatMul", [left, new.constant(name, np.ascontiguousarray(matrix))])

    rows = new("Cast", [source], to=onnx.TensorProto.DOUBLE)
    rows = new("Flatten", [rows], axis=1)
    place = rows if gates.frame is None else times(rows, "frame", gates.frame.numpy().T)
    level = new("Sub", [times(place, "normal", gates.normal.numpy().T), held("center")])
    if gates.curvature.any():
        square = new("Mul", [place, place])
        bent = times(square, "curvature", np.tile(gates.curvature.numpy(), (gates.normal.shape[1], 1)))
        level = new("Add", [level, bent])
    beyond = new("Relu", [new("Sub", [new("Abs", [level]), held("plateau")])])
    roof = new("Sub", [new.constant("open", np.ones(1)), new("Mul", [beyond, held("slope")])])
    opening = new("Relu", [roof])
    opening = _where_open(new, opening, opening)
    if gates.tilt is None:
        return opening, times(opening, "shift", gates.shift.numpy())
    # [N, G K]: every value times its gate, and the sum over gates.
    spread = np.kron(np.eye(gates.gates), np.ones((1, gates.outputs)))
    gather = np.kron(np.ones((gates.gates, 1)), np.eye(gates.outputs))
    values = times(rows, "tilt", gates.tilt.flatten(0, 1).numpy().T)
    values = new("Add", [values, new.constant("shift", gates.shift.flatten().numpy())])
    opened = times(opening, "spread", spread)
    return opening, times(_where_open(new, opened, new("Mul", [opened, values])), "gather", gather)


def _where_open(new: _Nodes, opening: str, value: str) -> str:
    """A value, or 0 where a gate is not open, and be it because the inputs are no numbers."""
    nothing = new.constant("closed", np.zeros(1))
    return new("Where", [new("Greater", [opening, nothing]), value, nothing])


def _relabel(new: _Nodes, model: OnnxModel, label: str, scores: str, opening: str, gates: Gates) -> None:
    """The label is read off the new scores where a gate is open, and what it was elsewhere."""
    names = np.array(model.classes)
    kind = next(
        entry.type.tensor_type.elem_type for entry in model.proto.graph.output if entry.name == model.labels
    )
    if names.dtype.kind in "iu":
        import onnx

        names = names.astype(onnx.helper.tensor_dtype_to_np_dtype(kind))
    best = new("ArgMax", [scores], axis=1, keepdims=0)
    named = new(
        "Gather", [new.constant("classes", names.astype(object) if names.dtype.kind == "U" else names), best]
    )
    openings = new("MatMul", [opening, new.constant("gates", np.ones((gates.gates, 1)))])
    open_ = new("Greater", [openings, new.constant("shut", np.zeros(1))])
    shape = new("Shape", [label])
    new("Where", [new("Reshape", [open_, shape]), new("Reshape", [named, shape]), label], model.labels)


def _intercept(graph: onnx.GraphProto, name: str, prefix: str) -> str:
    """Give a tensor another name wherever nodes compute or read it, and return that name.

    Raises:
        InputError: no node computes it.
    """
    base = f"{prefix}base/{name}"
    if not any(name in node.output for node in graph.node):
        raise InputError(f"the output {name} is computed by no node of the graph, so it cannot be repaired.")
    for node in _nodes(graph):
        for names in (node.input, node.output):
            for place, found in enumerate(names):
                if found == name:
                    names[place] = base
    for entry in [entry for entry in graph.value_info if entry.name == name]:
        graph.value_info.remove(entry)
    return base


def _nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """Walk over all nodes.

    Yields:
        Each, those of inner graphs too, which see the names of the outer one.
    """
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                yield from _nodes(inner)
