"""``isthmus doctor``: versions, devices, threads and optional parts."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

from isthmus.cli import options
from isthmus.cli.output import emit

REQUIRED = ("isthmus", "torch", "numpy", "safetensors", "pydantic", "typer")
OPTIONAL = {
    "onnx": ("onnx", "onnxscript", "onnxruntime"),
    "exact": ("python-flint",),
    "data": ("pyarrow", "pillow"),
    "sklearn": ("scikit-learn",),
    "plots": ("matplotlib",),
}


def command(json: options.Json = False) -> None:
    """Say what is installed here, and what each optional part would add."""
    import torch

    versions = {name: _version(name) for name in REQUIRED}
    extras = {extra: {name: _version(name) for name in names} for extra, names in OPTIONAL.items()}
    devices = [
        "cpu",
        *(f"cuda:{i} {torch.cuda.get_device_name(i)}" for i in range(torch.cuda.device_count())),
    ]
    result = {
        "python": platform.python_version(),
        "versions": versions,
        "extras": extras,
        "devices": devices,
        "threads": torch.get_num_threads(),
    }
    lines = [f"python        {platform.python_version()}"]
    lines += [f"{name:13} {found or 'missing'}" for name, found in versions.items()]
    for extra, names in extras.items():
        missing = [name for name, found in names.items() if found is None]
        state = ", ".join(f"{name} {found}" for name, found in names.items() if found)
        advice = f'missing {", ".join(missing)}: pip install "isthmus[{extra}]"' if missing else ""
        lines.append(f"[{extra}]".ljust(14) + "; ".join(filter(None, (state, advice))))
    lines += [f"devices       {', '.join(devices)}", f"threads       {torch.get_num_threads()}"]
    emit(result, "\n".join(lines), json)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
