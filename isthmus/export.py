"""Saving and loading: model directories (safetensors and JSON) and ONNX files checked with ONNX Runtime."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from isthmus import graph
from isthmus._types import PathLike, Progress
from isthmus.certificate import Backend, Certificate
from isthmus.certify import certify
from isthmus.constraints import Constraint
from isthmus.constraints.restored import restored
from isthmus.data.dataset import Dataset, as_dataset
from isthmus.errors import InputError, ModelFileError, UnsupportedModel
from isthmus.files import whole_directory, whole_file
from isthmus.model_file import (
    CERTIFICATE,
    DESCRIPTION,
    FOREIGN_DTYPES,
    MODEL,
    ONNX,
    REGIME,
    Description,
    ModelFile,
    read_model,
)
from isthmus.nets.fold import fold
from isthmus.nets.patched import Gates, Patched
from isthmus.to_onnx import run_onnx, write_onnx


@dataclass(frozen=True)
class Given:
    """A model that was made elsewhere, folded, with its certificate."""

    model: nn.Module
    certificate: Certificate
    data: Dataset
    recipe: dict[str, Any]


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
    result: Result | nn.Module,
    *,
    data: Any = None,
    tolerance: float | None = None,
    onnx: bool = False,
    force: bool = False,
    on_progress: Progress | None = None,
) -> Certificate:
    """Write a model directory, whole or not at all.

    Args:
        directory: its place; an older model directory is replaced only with ``force``.
        result: what `memorize` or `patch` returned; or a model, which is folded (`isthmus.fold`) and
            certified first. Of one with a module outside `isthmus.graph`, the tensors are saved and the name
            of its class. A result's constraint is saved beside it.
        data: a Dataset or a pair (x, y) that a model is certified on; results have their own.
        tolerance: of that, for a regression; see `certify`.
        onnx: write ``model.onnx`` too, and record in the certificate what ONNX Runtime makes of every row.
        force: replace.
        on_progress: told what is done and which part of it.

    Returns:
        The certificate as saved.

    Raises:
        InputError: the place is taken or cannot be written.
        UnsupportedModel: the model could not be read again.
        ModelFileError: the model is not the one that was certified: it was changed since.
        MissingExtra: ``onnx`` without the extra.
    """
    result = _certified(result, data, tolerance)
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
        if (constraint := getattr(result, "constraint", None)) is not None:
            described = {"constraint": json.dumps(constraint.to_dict())}
            save_file(dict(constraint.center), draft / REGIME, metadata=described)
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
        ModelFileError: missing, damaged or changed files, tensors that do not fit ``into``, or a model that
            goes only into a module of its own class, if none is given.
    """
    return instantiate(read_model(directory), into)


def load_constraint(directory: PathLike) -> Constraint | None:
    """The constraint that a saved model's weights were found under, with its center; None if there was none.

    Args:
        directory: what `save` wrote.

    Raises:
        ModelFileError: the file is damaged.
    """
    path = Path(directory) / REGIME
    if not path.exists():
        return None
    try:
        with safe_open(path, "pt") as file:
            described = json.loads((file.metadata() or {})["constraint"])
            center = {name: file.get_tensor(name) for name in file.keys()}
        return restored(described).at(center)
    except (SafetensorError, KeyError, ValueError, OSError) as error:
        raise ModelFileError(f"{path} does not hold a constraint that isthmus wrote: {error}.") from None


def instantiate(saved: ModelFile, into: nn.Module | None = None) -> nn.Module:
    """Make a network of a model directory that has been read.

    Args:
        saved: the directory's contents.
        into: a module to load the tensors into; by default the described network is built. For a repaired
            model of a foreign class it may be a module of that class: the gates are put beside it.

    Returns:
        The network in evaluation mode.

    Raises:
        ModelFileError: ``into`` is of another class, the tensors do not fit it, or would be rounded there; or
        the layers are not
            described, and there is no ``into``.
    """
    tensors = {name: torch.from_numpy(value) for name, value in saved.tensors.items()}
    if into is None:
        return _rebuild(saved, tensors)
    into = _as_saved(saved, into)
    for name, tensor in into.state_dict().items():
        if name in tensors and tensor.dtype != tensors[name].dtype:
            own, given = (graph.dtype_name(each.dtype) for each in (tensors[name], tensor))
            raise ModelFileError(
                f"{saved.path}: {name} is {own}, but the given module holds it as {given}; convert the "
                "module first, so that no weight is rounded."
            )
    try:
        into.load_state_dict(tensors)
    except RuntimeError as error:
        raise ModelFileError(f"{saved.path}: the tensors do not fit the given module: {error}.") from None
    return into.eval()


def export_onnx(
    result: Result | nn.Module,
    path: PathLike,
    *,
    data: Any = None,
    tolerance: float | None = None,
    on_progress: Progress | None = None,
) -> Backend:
    """Write an ONNX file in the model's dtype and run it on every row with ONNX Runtime.

    Args:
        result: a model with its data, as `memorize` and `patch` return them; or a model alone, which is
            folded (`isthmus.fold`) and certified first.
        path: the file's place; replaced if it exists.
        data: a Dataset or a pair (x, y) that a model is certified on; results have their own.
        tolerance: of that, for a regression; see `certify`.
        on_progress: told what is done and which part of it.

    Returns:
        What ONNX Runtime made of the rows.

    Raises:
        MissingExtra: the extra ``onnx`` is not installed.
        InputError: the file cannot be written.
        UnsupportedModel: PyTorch cannot write the model as ONNX.
    """
    result = _certified(result, data, tolerance)
    with whole_file(path) as draft:
        write_onnx(draft, result.model, result.certificate, result.data.x.shape[1:], result.data.classes)
        return run_onnx(draft, result.model, result.data, result.certificate.tolerance, on_progress)


def _certified(result: Result | nn.Module, data: Any, tolerance: float | None) -> Result:
    """A result as it is, and of a model one.

    Raises:
        InputError: a model without data, or a result with other data.
    """
    if not isinstance(result, nn.Module):
        if data is not None or tolerance is not None:
            raise InputError(
                "data and tolerance are for a model alone; a result has been certified on its own."
            )
        return result
    if data is None:
        raise InputError("a model is certified on the way: give its data too, data=(x, y).")
    model, data = fold(result), as_dataset(data)
    certificate = certify(model, data, tolerance=tolerance)
    return Given(model, certificate, data, {"plan": {"method": "given"}})


def _describe(result: Result) -> Description:
    model, data = result.model, result.data
    dtype = graph.dtype_of(model)
    if dtype not in graph.DTYPES.values():
        raise InputError(f"models are saved in {', '.join(graph.DTYPES)}, not in {dtype}; convert it first.")
    with graph.evaluating(model):
        architecture = graph.architecture(model)
    if architecture and not architecture[0]["name"] and not isinstance(model, Patched):
        raise UnsupportedModel(
            f"a {type(model).__name__} is not saved by itself; put it into a torch.nn.Sequential."
        )
    try:
        return Description.model_validate({
            "kind": result.recipe["plan"]["method"],
            "task": data.task,
            "architecture": architecture,
            "dtype": graph.dtype_name(dtype),
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
        ModelFileError: the layers are not described, or PyTorch does not take a layer's name.
    """
    if saved.description.foreign is not None:
        raise ModelFileError(
            f"{saved.path}: the model is a {saved.description.foreign}, whose layers are not described; give "
            "load_model a module of that class, into=module."
        )
    # Without storage no random weights are drawn: the caller's random state stays as it is.
    with torch.device("meta"):
        root = _placed(nn.Sequential(), saved.description.layers(), saved)
    root.load_state_dict(tensors, assign=True)
    return root.requires_grad_(False).eval()


def _placed(root: nn.Module, layers: Iterable[dict[str, Any]], saved: ModelFile) -> nn.Module:
    """The root with all layers in their places; a Patched without a name is a root of its own.

    Raises:
        ModelFileError: PyTorch does not take a layer's name.
    """
    for layer in layers:
        name, kind, within = layer.pop("name"), layer.pop("type"), layer.pop("layers", ())
        if kind == "Patched":
            within = layer["base"]
            module = Patched(nn.Sequential(), [_gates(gates) for gates in layer["patches"]])
        else:
            module = graph.LAYERS[kind].module(**layer)
        if name:
            _put(root, name, module, saved)
        else:
            root = module
        _placed(root, within, saved)
    return root


def _put(root: nn.Module, name: str, module: nn.Module, saved: ModelFile) -> None:
    """Add a module to the root under a dotted name.

    Raises:
        ModelFileError: PyTorch does not take the name.
    """
    *path, last = name.split(".")
    try:
        for part in path:
            if part not in dict(root.named_children()):
                root.add_module(part, nn.Sequential())
            root = root.get_submodule(part)
        root.add_module(last, module)
    except KeyError as error:
        raise ModelFileError(f"{saved.path}: no layer can be named {name!r}: {error}.") from None


def _as_saved(saved: ModelFile, into: nn.Module) -> nn.Module:
    """A module of the saved model's class: itself, or with as many gates beside it as were saved.

    Raises:
        ModelFileError: it is of another class.
    """
    name = saved.description.foreign
    if name is None:
        return into
    shapes = {key: value.shape for key, value in saved.tensors.items()}
    beside: list[Gates] = []
    while (shift := shapes.get(f"patches.{len(beside)}.shift")) is not None:
        of = f"patches.{len(beside)}."
        frame = shapes.get(f"{of}frame", (0,))
        inputs = shapes[f"{of}normal"][-1] if frame == (0,) else frame[-1]
        beside.append(Gates(inputs, *shift, tilted=f"{of}tilt" in shapes, directions=frame[0]))
    whole = Patched(into, beside, shares=name.endswith(", shares)"))
    for module in (into, whole):
        if graph.foreign(module)[0]["module"] == name:
            return module
    raise ModelFileError(
        f"{saved.path}: the model is a {name}, but the given module a {type(into).__qualname__}."
    )


def _gates(described: dict[str, Any]) -> Gates:
    return Gates(**{
        option: described[option] for option in ("inputs", "gates", "outputs", "tilted", "directions")
    })


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    """What the state dict holds.

    Raises:
        UnsupportedModel: an entry is no tensor, or one of a dtype that is not saved.
    """
    state = model.state_dict()
    for name, tensor in state.items():
        dtype = graph.dtype_name(tensor.dtype) if isinstance(tensor, Tensor) else type(tensor).__name__
        if dtype not in FOREIGN_DTYPES:
            raise UnsupportedModel(
                f"the model is not saved: {name} is {dtype}, not one of {', '.join(FOREIGN_DTYPES)}."
            )
    # Copies: safetensors refuses tensors that share memory, as those of a repeated layer do.
    return {name: tensor.cpu().clone().contiguous() for name, tensor in state.items()}
