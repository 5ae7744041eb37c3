"""The ONNX file of a model directory, run by ONNX Runtime after its metadata has been checked."""

from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np

from isthmus._extras import require
from isthmus.errors import ModelFileError
from isthmus.model_file import ONNX, ModelFile

Run = Callable[[np.ndarray], np.ndarray]  # [n, *shape] -> [n, K]


def open_onnx(saved: ModelFile, purpose: str) -> Run:
    """What evaluates a model's ONNX file on inputs in the model's dtype.

    Args:
        saved: the directory's contents.
        purpose: what ONNX Runtime is needed for.

    Raises:
        ModelFileError: there is no file, it is damaged, or it is not the model's; on evaluation, too, if it
            does not run on the inputs or gives no [n, K].
        MissingExtra: ONNX Runtime is not installed.
    """
    runtime = require("onnxruntime", purpose)
    path, described = saved.path / ONNX, saved.description
    if not path.is_file():
        how = f"isthmus export {saved.path} --onnx {path} writes it"
        if described.foreign is not None:
            how = f"save the {described.foreign} again with --onnx (or onnx=True)"
        raise ModelFileError(f"{path}: there is no such file; {how}.")
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
    if classes != list(described.classes):
        raise ModelFileError(f"{path}: names other classes than the model; export it again.")

    def run(x: np.ndarray) -> np.ndarray:
        try:
            output = np.asarray(session.run(None, {name: x})[0])
        except Exception as reason:
            raise ModelFileError(f"{path}: does not run on the model's inputs ({reason}).") from None
        if output.shape != (len(x), described.outputs) or output.dtype.kind != "f":
            raise ModelFileError(f"{path}: gives other outputs than the model; export it again.")
        return output

    return run
