"""Repairing a deployed classifier: `isthmus.patch` beside fine-tuning and the linear program of PRDNN.

A model is trained on the 60,000 images of Fashion-MNIST; the cases are all test images that it gets wrong.
Every method is given the same cases and, as what should stay as it is, the first 20,000 training images. What
a repair costs is measured on two sets that no method sees:

    fresh: the other 40,000 training images. The model was trained on them, as on the reference.
    kept: the test images that were right before. The model was not trained on them, and can only lose them.

The columns: accuracy lost on both (below 0: gained); of the cases under noise and of those shifted by a
pixel, what the model gets wrong as well, the part that is right after the repair; the parts of the fresh
images whose outputs and whose class are not what they were; numbers that come to the model's weights; and
seconds, which depend on what else the processor does, as does how far training and linear programs get in
their time.

The linear program is what PRDNN (Sotoudeh and Thakur, PLDI 2021) solves if the last layer alone may move: the
change of its weights and biases of least L1 norm with which every case's logit leads all others by a margin.
L1 has less drawdown here than the maximum norm. Whether there is any such change does not depend on the
margin, as all weights can be scaled. Where there is none, or none is found in time, half as many of the cases
are tried, the first ones, and so on.

At last, scikit-learn models exported to ONNX, patched as files. This needs skl2onnx.
"""

from __future__ import annotations

import copy
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnxruntime
import skl2onnx
import torch
from scipy import sparse
from scipy.optimize import linprog
from sklearn.ensemble import GradientBoostingClassifier
from sklearn.neural_network import MLPClassifier
from table import Table
from torch import Tensor, nn

import isthmus
from isthmus.patch import Repaired
from isthmus.patch.attach import open_model
from isthmus.patch.cases import Cases, Others, is_right, read_cases
from isthmus.patch.graft import PREFIX
from isthmus.patch.measures import elsewhere, generalization, similar_cases
from isthmus.patch.running import outputs

REFERENCE = 20_000  # training images that every method is given; the others are fresh
RATE = 1e-3  # of Adam
BATCH = 128
EPOCHS = {"MLP": 1000, "CNN": 250}  # of fine-tuning, at most
PATIENCE = 120.0  # seconds of fine-tuning, at most
LP_PATIENCE = 60.0  # seconds of one linear program
MARGIN = 1e-2  # by which a logit leads, in a linear program
TRAINED_DIGITS = 1000
METHODS = ("patch, slabs", "patch, balls", "fine-tuning", "fine-tuning with replay", "last-layer LP, L1")


@dataclass(frozen=True)
class Problem:
    """A model, its errors, and the rows beside them."""

    name: str
    model: nn.Sequential
    cases: Cases
    reference: tuple[Tensor, Tensor]
    fresh: Others
    fresh_right: int
    kept: Others
    similar: dict[str, tuple[Tensor, Tensor]] = field(repr=False)

    @property
    def rows(self) -> tuple[Tensor, Tensor]:
        """The cases and their classes."""
        return self.cases.data.x, self.cases.data.y


@dataclass(frozen=True)
class Outcome:
    """A repaired model, and how it came about."""

    model: nn.Module
    seconds: float
    note: str
    added: int = 0
    units: int = 0


@dataclass(frozen=True)
class Figures:
    """What a method reached on one problem."""

    method: str
    right: int
    drawdown: float
    lost: float
    touched: float
    outcome: Outcome


def main() -> None:
    problems = [problem("MLP", mlp, (28, 28), 6), problem("CNN", cnn, (1, 28, 28), 3)]
    found = {task.name: compared(task) for task in problems}
    ratios(found)
    exported()
    targets(problems[0], found["MLP"][0])


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 64), nn.ReLU(), nn.Linear(64, 10))


def cnn() -> nn.Sequential:
    first = (nn.Conv2d(1, 8, 3), nn.ReLU(), nn.MaxPool2d(2))
    second = (nn.Conv2d(8, 16, 3), nn.ReLU(), nn.MaxPool2d(2))
    return nn.Sequential(*first, *second, nn.Flatten(), nn.Linear(400, 10))


def problem(name: str, build: Callable[[], nn.Sequential], shape: tuple[int, ...], epochs: int) -> Problem:
    """Train a model, and find its errors."""
    (x, y), (asked, wanted) = images("fashion-mnist", shape), images("fashion-mnist:split=test", shape)
    torch.manual_seed(0)
    model = build()
    optimizer = torch.optim.Adam(model.parameters(), lr=RATE)
    for _ in range(epochs):
        for rows in torch.randperm(len(x)).split(BATCH):
            step(model, optimizer, x[rows], y[rows])
    model.eval()
    right = outputs(model, asked).argmax(1) == wanted
    cases = read_cases(open_model(model), (asked[~right], wanted[~right]), None, "error")
    return Problem(
        name,
        model,
        cases,
        (x[:REFERENCE], y[:REFERENCE]),
        Others(x[REFERENCE:], y[REFERENCE:], 0),
        int((outputs(model, x[REFERENCE:]).argmax(1) == y[REFERENCE:]).sum()),
        Others(asked[right], wanted[right], 0),
        similar_cases(cases, torch.Generator().manual_seed(0)),
    )


def images(source: str, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Images in [0, 1] and their classes."""
    data = isthmus.load(source)
    return data.x.float().reshape(-1, *shape) / 255, data.y


def step(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor) -> None:
    """One step down the cross-entropy."""
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(x), y).backward()
    optimizer.step()


def compared(task: Problem) -> list[Figures]:
    """Repair by every method, and print a table of what came of it."""
    weights = sum(weight.numel() for weight in task.model.parameters())
    similar = " and ".join(f"{len(x):,} by {kind}" for kind, (x, _) in task.similar.items())
    print(
        f"\n{task.name}, {weights:,} weights: {task.cases.data.rows:,} test images wrong, "
        f"{len(task.kept.x):,} right (kept); {task.fresh_right:,} of {len(task.fresh.x):,} fresh images "
        f"right; similar inputs: {similar}"
    )
    lost, right, new = (
        ("fresh lost", "kept lost"),
        ("noise right", "shift right"),
        ("outputs new", "class new"),
    )
    line(("", "cases right", *lost, *right, *new, "added", "seconds", "note"))
    return [measured(task, method) for method in METHODS]


def measured(task: Problem, method: str) -> Figures:
    """Repair by one method, measure what came of it, and print a line."""
    torch.manual_seed(0)
    match method:
        case "patch, slabs":
            outcome = patched(task)
        case "patch, balls":
            outcome = patched(task, gates="ball")
        case "fine-tuning":
            outcome = tuned(task, replay=False)
        case "fine-tuning with replay":
            outcome = tuned(task, replay=True)
        case _:
            outcome = programmed(task)
    model = outcome.model.eval()
    fresh, kept = (elsewhere(task.model, model, task.cases, rows) for rows in (task.fresh, task.kept))
    general = generalization(task.model, model, task.cases, task.similar)
    right, touched = int(repaired(task, model).sum()), fresh["touched"].fraction
    line((
        method,
        f"{right} of {task.cases.data.rows}",
        f"{fresh['drawdown']:+.5f}",
        f"{kept['drawdown']:.5f}",
        f"{general['noise']:.3f}",
        f"{general['shift']:.3f}",
        f"{touched:.5f}",
        f"{fresh['changed'].fraction:.5f}",
        f"{outcome.added:,}",
        f"{outcome.seconds:.1f}",
        outcome.note,
    ))
    return Figures(method, right, fresh["drawdown"], kept["drawdown"], touched, outcome)


def line(parts: Sequence[str]) -> None:
    """Print one line of a table: a name, figures, and a note."""
    name, *figures, note = parts
    print(f"{name:29}{''.join(f'{figure:>13}' for figure in figures)}  {note}".rstrip(), flush=True)


def repaired(task: Problem, model: nn.Module) -> Tensor:
    """Which cases a model gets right [P]."""
    return is_right(outputs(model, task.cases.data.x), task.cases.data, None)


def patched(task: Problem, **options: Any) -> Outcome:
    """`isthmus.patch`; seconds are of the whole call, with all that it measures on the fresh images."""
    start = time.perf_counter()
    found: Repaired = isthmus.patch(
        task.model, task.rows, reference=task.reference, held_out=(task.fresh.x, task.fresh.y), **options
    )
    seconds = time.perf_counter() - start
    measures = found.measures
    note = f"{found.gates} gates, {found.proven} proven; {measures.seconds:.1f} s without measuring"
    return Outcome(found.model, seconds, note, measures.added_parameters, measures.added_units)


def tuned(task: Problem, replay: bool) -> Outcome:
    """Train all weights on the cases, with as many reference images if wanted, until every case is right."""
    x, y = task.rows
    model, epochs, start = copy.deepcopy(task.model), 0, time.perf_counter()
    optimizer = torch.optim.Adam(model.parameters(), lr=RATE)
    while not repaired(task, model).all():
        if epochs == EPOCHS[task.name] or time.perf_counter() - start > PATIENCE:
            break
        epochs += 1
        for rows in torch.randperm(len(x)).split(BATCH):
            inputs, labels = x[rows], y[rows]
            if replay:
                others = torch.randint(REFERENCE, (len(rows),))
                inputs = torch.cat([inputs, task.reference[0][others]])
                labels = torch.cat([labels, task.reference[1][others]])
            step(model, optimizer, inputs, labels)
    return Outcome(model, time.perf_counter() - start, f"{epochs} epochs")


def programmed(task: Problem) -> Outcome:
    """Move the last layer by a linear program, for as many of the first cases as it can."""
    count, tried, start = task.cases.data.rows, [], time.perf_counter()
    while True:
        since = time.perf_counter()
        change, said = least_change(task, count)
        tried.append(f"{count}: {said} in {time.perf_counter() - since:.0f} s")
        if change is not None or count == 1:
            break
        count //= 2
    model = copy.deepcopy(task.model)
    last = model[-1]
    if change is not None and isinstance(last, nn.Linear):
        with torch.no_grad():
            last.weight.add_(torch.from_numpy(change[:, :-1]))
            last.bias.add_(torch.from_numpy(change[:, -1]))
    return Outcome(model, time.perf_counter() - start, "; ".join(tried))


def least_change(task: Problem, count: int) -> tuple[np.ndarray | None, str]:
    """The least change D [K, m + 1] of the last layer's weights and biases that gets the first cases right.

    With h = (the last layer's input, 1), z the logits and y the class: (D_k - D_y) h <= z_y - z_k - margin
    for all k but y, where D = P - N with P, N >= 0, and the sum of P and N is least.
    """
    x, label = (part[:count] for part in task.rows)
    hidden = nn.functional.pad(outputs(task.model[:-1], x), (0, 1), value=1.0).double().numpy()
    logits, label = task.cases.before[:count].double().numpy(), label.numpy()
    size, classes = hidden.shape[1], logits.shape[1]
    row, rival = np.nonzero(np.arange(classes) != label[:, None])
    value = np.hstack([-hidden[row], hidden[row]])
    place = np.hstack([own[:, None] * size + np.arange(size) for own in (label[row], rival)])
    start = np.arange(len(row) + 1) * 2 * size
    leads = sparse.csr_matrix((value.ravel(), place.ravel(), start), shape=(len(row), classes * size))
    leads.eliminate_zeros()
    found = linprog(
        np.ones(2 * classes * size),
        A_ub=sparse.hstack([leads, -leads]).tocsr(),
        b_ub=logits[row, label[row]] - logits[row, rival] - MARGIN,
        bounds=(0, None),
        method="highs-ipm",
        options={"time_limit": LP_PATIENCE},
    )
    if found.status:
        known = {1: "not solved", 2: "infeasible"}
        return None, known.get(found.status, f"no answer (status {found.status})")
    return np.subtract(*np.split(found.x, 2)).reshape(classes, size), "solved"


def ratios(found: dict[str, list[Figures]]) -> None:
    """Print what the other methods cost, as multiples of what slabs do."""
    print("\nThe figures of the other methods, divided by those of the patch with slabs")
    line(("", "fresh lost", "kept lost", "seconds", "note"))
    for name, (slabs, *others) in found.items():
        for other in others:
            lost = (times(other.drawdown, slabs.drawdown), times(other.lost, slabs.lost))
            seconds = times(other.outcome.seconds, slabs.outcome.seconds)
            part = f"repairs {other.right / slabs.right:.1%} of what slabs do"
            line((f"{name}, {other.method}", *lost, seconds, part))


def times(figure: float, over: float) -> str:
    """A ratio, where there is one."""
    return f"{figure / over:.3g}" if over > 0 else f"patch: {over:.2g}"


def exported() -> None:
    """Patch ONNX files made from scikit-learn models, and print what ONNX Runtime makes of them."""
    data = isthmus.load("digits")
    x, y = data.flat.float(), data.y
    first, rest = slice(TRAINED_DIGITS), slice(TRAINED_DIGITS, None)
    print(f"\nONNX: scikit-learn on the first {TRAINED_DIGITS} digits, patched on errors on the others")
    line(("", "labels right", "weights kept", "nodes kept", "ReLUs added", "seconds", "note"))
    for model in (
        MLPClassifier(max_iter=500, random_state=0),
        GradientBoostingClassifier(random_state=0),
    ):
        proto = written(model, x[first], y[first])
        wrong = labels(proto, x[rest]) != y[rest]
        cases = (x[rest][wrong], y[rest][wrong])
        start = time.perf_counter()
        found: Repaired = isthmus.patch(proto, cases, reference=x[first])
        seconds = time.perf_counter() - start
        new = found.model.proto
        if not isinstance(new, onnx.ModelProto):
            raise TypeError(f"the patched {type(model).__name__} is no ONNX model")
        right = int((labels(new, cases[0]) == cases[1]).sum())
        lost = int((labels(new, x[rest][~wrong]) != y[rest][~wrong]).sum())
        weights, nodes = (list(part(proto)) == list(part(new)) for part in (stored, settings))
        line((
            type(model).__name__,
            f"{right} of {len(cases[0])}",
            f"{weights}",
            f"{nodes}",
            f"{found.measures.added_units}",
            f"{seconds:.2f}",
            f"{found.gates} gates; {lost} of {int((~wrong).sum())} other digits lost",
        ))


def written(model: Any, x: Tensor, y: Tensor) -> onnx.ModelProto:
    """A scikit-learn classifier, trained on rows and written as an ONNX graph of float32."""
    rows = x.numpy()
    model.fit(rows, y.numpy())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        proto: Any = skl2onnx.to_onnx(model, rows[:1], options={"zipmap": False})
    return proto


def labels(proto: onnx.ModelProto, x: Tensor) -> Tensor:
    """The label output of a file in ONNX Runtime, for rows [N, d]."""
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    (found,) = session.run(["label"], {session.get_inputs()[0].name: x.numpy()})
    return torch.from_numpy(np.asarray(found))


def stored(proto: onnx.ModelProto) -> Iterator[bytes]:
    """The initializers of a graph, byte for byte, without those of a patch."""
    for tensor in proto.graph.initializer:
        if not tensor.name.startswith(PREFIX):
            yield tensor.SerializeToString(deterministic=True)


def settings(proto: onnx.ModelProto) -> Iterator[tuple[str, list[bytes]]]:
    """The kind and the attributes of every node, byte for byte, without those of a patch."""
    for node in proto.graph.node:
        if not node.name.startswith(PREFIX):
            yield node.op_type, [entry.SerializeToString(deterministic=True) for entry in node.attribute]


def targets(task: Problem, slabs: Figures) -> None:
    """What the patch of the MLP is to reach."""
    table = Table("The MLP, patched with slabs: what is to be reached")
    for case, measured, required in (
        ("cases still wrong", task.cases.data.rows - slabs.right, 0),
        ("ReLUs added", slabs.outcome.units, 60),
        ("part of the fresh images touched", slabs.touched, 1e-3),
        ("seconds, with measuring", slabs.outcome.seconds, 10),
    ):
        table.row(case, measured, required, "met" if measured <= required else "not met")


if __name__ == "__main__":
    main()
