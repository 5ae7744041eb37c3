"""Networks that are as small as they can be and still fit their data exactly.

    import isthmus

    data = isthmus.load("digits")
    print(isthmus.bounds(data))
    found = isthmus.memorize(data)
    isthmus.save("model/", found)
    isthmus.verify("model/", data)

Names are imported when they are first used; their types are in the stub beside this file.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import Any

__version__ = "0.1.0"

_HOME = {
    "Ball": "isthmus.constraints",
    "Box": "isthmus.constraints",
    "Certificate": "isthmus.certificate",
    "Dataset": "isthmus.data",
    "FloorAndRatio": "isthmus.constraints",
    "PairedHead": "isthmus.nets.paired",
    "Product": "isthmus.constraints",
    "Regime": "isthmus.narrow",
    "Shape": "isthmus.data",
    "attach": "isthmus.narrow",
    "bounds": "isthmus.bounds",
    "certify": "isthmus.certify",
    "export_onnx": "isthmus.export",
    "fold": "isthmus.nets.fold",
    "from_arrays": "isthmus.data",
    "kkt": "isthmus.narrow.kkt",
    "GaussNewton": "isthmus.narrow.gauss_newton",
    "linear_pieces": "isthmus.bounds.pieces",
    "load": "isthmus.data",
    "load_model": "isthmus.export",
    "loss_against_radius": "isthmus.narrow.solver.radii",
    "margins": "isthmus.margins",
    "memorize": "isthmus.memorize",
    "newton_kantorovich": "isthmus.narrow.interpolation",
    "mirror": "isthmus.narrow",
    "pair": "isthmus.narrow",
    "patch": "isthmus.patch",
    "predict": "isthmus.predict",
    "save": "isthmus.export",
    "solve": "isthmus.narrow.solver",
    "spectrum": "isthmus.jacobian.spectrum",
    "verify": "isthmus.verify",
}

__all__ = list(_HOME)


class _Package(ModuleType):
    """Keeps `isthmus.memorize` the function: importing the submodule of that name would bind the module."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _HOME and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'isthmus' has no attribute '{name}'")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])


sys.modules[__name__].__class__ = _Package
