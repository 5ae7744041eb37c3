"""60,000 images of Fashion-MNIST with random labels: what gets all right, how fast, and how large it is.

A decision tree, the nearest neighbor and a network trained by Adam beside networks written down. Stored sizes
are of the pickled estimator, of the trained tensors and of the saved model directory.
"""

from __future__ import annotations

import io
import pickle
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.neighbors import KNeighborsClassifier
from sklearn.tree import DecisionTreeClassifier
from torch import nn

import isthmus
from isthmus.memorize import Memorized

BATCH = 256
PATIENCE = 900.0  # seconds after which training counts as not finished
ASKED = 10_000  # rows predicted


def report(name: str, seconds: float, wrong: int, size: int, predict: Callable[[], object]) -> None:
    """Print one line."""
    start = time.perf_counter()
    predict()
    asked = time.perf_counter() - start
    print(f"{name:44} {seconds:10.1f} {wrong:8} {size:14,} {asked:12.3f}", flush=True)


def directory_size(found: Memorized) -> int:
    """Bytes of the saved model with description and certificate."""
    with tempfile.TemporaryDirectory() as folder:
        isthmus.save(Path(folder) / "model", found)
        return sum(file.stat().st_size for file in (Path(folder) / "model").iterdir())


def train(x: torch.Tensor, y: torch.Tensor) -> tuple[nn.Sequential, float, int]:
    """Adam on cross-entropy until no row is wrong: the network, seconds and rows wrong."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(784, 1024), nn.ReLU(), nn.Linear(1024, 1024), nn.ReLU(), nn.Linear(1024, 10)
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-4)
    wrong, start = len(x), time.perf_counter()
    while wrong and time.perf_counter() - start < PATIENCE:
        for rows in torch.randperm(len(x)).split(BATCH):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
            optimizer.step()
        with torch.no_grad():
            wrong = sum(
                int((model(a).argmax(1) != b).sum())
                for a, b in zip(x.split(5000), y.split(5000), strict=True)
            )
    return model, time.perf_counter() - start, wrong


def main() -> None:
    data = isthmus.load("fashion-mnist", labels="random")
    x, y = data.flat, data.y
    print(f"\n{'on random labels':44} {'seconds':>10} {'wrong':>8} {'bytes':>14} {'s per 10,000':>12}")

    written: tuple[tuple[str, dict[str, Any]], ...] = (
        ("isthmus, gates, hard-tanh", {"method": "gates"}),
        ("isthmus, gates, ReLU", {"method": "gates", "activation": "relu"}),
        ("isthmus, two hidden layers, hard-tanh", {"method": "three-layer"}),
    )
    for name, options in written:
        start = time.perf_counter()
        found = isthmus.memorize(data, **options)
        seconds = time.perf_counter() - start
        inputs = data.x[:ASKED].double()
        shape = "-".join(map(str, found.widths))
        report(
            f"{name}, {shape} ({found.certificate.level})",
            seconds,
            found.certificate.wrong,
            directory_size(found),
            lambda model=found.model, inputs=inputs: model(inputs).argmax(1),
        )

    for name, estimator in (
        ("DecisionTreeClassifier", DecisionTreeClassifier(random_state=0)),
        ("1-nearest neighbor (10,000 rows asked)", KNeighborsClassifier(n_neighbors=1)),
    ):
        features, labels = x.numpy(), y.numpy()
        start = time.perf_counter()
        estimator.fit(features, labels)
        seconds = time.perf_counter() - start
        # The neighbor takes a second for a thousand rows, so it is asked some of them only.
        some = slice(ASKED) if isinstance(estimator, KNeighborsClassifier) else slice(None)
        wrong = int(np.sum(estimator.predict(features[some]) != labels[some]))
        report(
            name,
            seconds,
            wrong,
            len(pickle.dumps(estimator)),
            lambda estimator=estimator, features=features: estimator.predict(features[:ASKED]),
        )

    scaled = x.float() / 255
    model, seconds, wrong = train(scaled, y)
    stored = io.BytesIO()
    torch.save(model.state_dict(), stored)
    report("MLP 1024-1024, Adam", seconds, wrong, stored.tell(), lambda: model(scaled[:ASKED]).argmax(1))


if __name__ == "__main__":
    main()
