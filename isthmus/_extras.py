"""Optional dependencies, imported in one place with one message."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType
from typing import Final

from isthmus.errors import MissingExtra

_EXTRA: Final = {
    "onnx": "onnx",
    "onnxscript": "onnx",
    "onnxruntime": "onnx",
    "flint": "exact",
    "sklearn": "sklearn",
    "pyarrow": "data",
    "PIL": "data",
    "matplotlib": "plots",
}


def require(module: str, purpose: str) -> ModuleType:
    """Import an optional module, or say which extra brings it.

    Args:
        module: dotted name, for example ``"sklearn.datasets"``.
        purpose: what it is needed for; opens the message.

    Raises:
        MissingExtra: the module is not installed.
    """
    try:
        return import_module(module)
    except ImportError as error:
        extra = _EXTRA[module.partition(".")[0]]
        raise MissingExtra(f'{purpose} needs an extra: pip install "isthmus[{extra}]".') from error
