"""The saved files in a process that cannot import isthmus: torch + safetensors, and ONNX Runtime alone.

Both must give every row the class that the certificate was issued for.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from table import Table

import isthmus

BLOCK = "import sys; sys.modules['isthmus'] = None\n"
READERS = {
    "torch and safetensors": """
import json, numpy as np, torch
from safetensors.torch import load_file
layers = json.load(open("model.json"))["architecture"]
modules = []
for layer in layers:
    kind, _ = layer.pop("type"), layer.pop("name")
    modules.append(getattr(torch.nn, kind)(**layer))
model = torch.nn.Sequential(*modules).double()
model.load_state_dict(load_file("model.safetensors"))
x = torch.from_numpy(np.load("rows.npy"))
with torch.no_grad():
    labels = torch.cat([model(part.double()).argmax(1) for part in x.split(4000)]).numpy()
np.save("labels.npy", labels)
""",
    "onnxruntime alone": """
import numpy as np, onnxruntime
assert "torch" not in sys.modules
session = onnxruntime.InferenceSession("model.onnx")
x = np.load("rows.npy")
parts = [part.astype(np.float64) for part in np.array_split(x, 1 + len(x) // 4000)]
np.save("labels.npy", np.concatenate([session.run(None, {"x": part})[0].argmax(1) for part in parts]))
""",
}


def main() -> None:
    table = Table("Rows that other tools get wrong from the saved files")
    for name in ("digits", "breast-cancer", "fashion-mnist"):
        for activation in ("hardtanh", "leaky_relu") if name != "fashion-mnist" else ("hardtanh",):
            data = isthmus.load(name)
            with tempfile.TemporaryDirectory() as folder:
                place = Path(folder) / "model"
                isthmus.save(place, isthmus.memorize(data, activation=activation), onnx=True)
                np.save(place / "rows.npy", data.x.numpy())
                for reader, script in READERS.items():
                    subprocess.run([sys.executable, "-c", BLOCK + script], cwd=place, check=True)
                    wrong = int((np.load(place / "labels.npy") != data.y.numpy()).sum())
                    table.row(f"{name}, {activation}, {reader}", wrong, 0, f"{data.rows:,} rows")


if __name__ == "__main__":
    main()
