"""Interrupted runs go on bit for bit; files of other runs, and damaged ones, are refused and left alone."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import isthmus
from isthmus.errors import InputError
from isthmus.narrow.solver import checkpoint
from isthmus.narrow.solver.solution import Solution
from tests.narrow.solver.problems import classes, regression

RUNS: dict[str, tuple[Any, dict[str, Any]]] = {
    "values": (regression(80, 8, seed=1), {"width": 10}),
    "outputs": (regression(20, 6, 3, seed=2), {"width": 9}),
    "codes": (classes(90, 8, 5, seed=3), {"width": 11, "targets": "codes"}),
    "dead-zone": (classes(90, 8, 5, seed=3), {"width": 11, "targets": "dead-zone"}),
    "one-hot": (classes(24, 8, 4, seed=4), {"width": 10, "targets": "one-hot"}),
    "softmax": (classes(60, 6, 4, seed=5), {"width": 10, "targets": "softmax"}),
    "relu": (regression(80, 8, seed=1), {"width": 10, "activation": "relu"}),
    "leaky_relu": (classes(90, 8, 5, seed=3), {"width": 10, "activation": "leaky_relu"}),
}


def _run(name: str, path: Path | None = None, **options: Any) -> Solution:
    data, own = RUNS[name]
    return isthmus.solve(data, method="lm", checkpoint=path, **own | options)


def _stopped(name: str, path: Path, after: int, **options: Any) -> None:
    """Ctrl-C as an iteration is reported."""
    left = after

    def on_progress(message: str, _: float) -> None:
        nonlocal left
        left -= "relative loss" in message
        if not left:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _run(name, path, on_progress=on_progress, **options)


def _same(one: Solution, two: Solution) -> bool:
    equal = all(map(torch.equal, one.model.state_dict().values(), two.model.state_dict().values()))
    return equal and [s.loss for s in one.history] == [s.loss for s in two.history]


@pytest.mark.parametrize("name", RUNS)
def test_a_run_interrupted_anywhere_ends_where_the_whole_one_does(name: str, tmp_path: Path) -> None:
    whole = _run(name)
    assert whole.certificate.wrong == 0
    factorizations = [step.factorizations for step in whole.history]
    last = len(whole.history) - 1
    # A factorization that was made before the interruption may serve the step after it.
    reused = [after for after in range(1, last) if factorizations[after] == factorizations[after - 1]]
    for after in sorted({1, last // 2, last, *reused[-2:]}):
        path = tmp_path / f"{after}.safetensors"
        _stopped(name, path, after)
        resumed = _run(name, path)
        assert _same(whole, resumed), f"interrupted after {after} of {len(whole.history)}"
        assert [step.factorizations for step in resumed.history] == factorizations


def test_seconds_add_up_over_the_interruption(tmp_path: Path) -> None:
    _stopped("values", tmp_path / "point", 3)
    seconds = [step.seconds for step in _run("values", tmp_path / "point").history]
    assert seconds == sorted(seconds)


def test_a_finished_run_is_not_done_again(tmp_path: Path) -> None:
    whole = _run("values", tmp_path / "point")
    before = (tmp_path / "point").read_bytes()
    again = _run("values", tmp_path / "point")
    assert _same(whole, again)
    assert (tmp_path / "point").read_bytes() == before
    assert again.history == whole.history


def test_nothing_else_is_left_beside_the_checkpoint(tmp_path: Path) -> None:
    _stopped("values", tmp_path / "point", 4)
    assert [path.name for path in tmp_path.iterdir()] == ["point"]


OTHERS: list[tuple[str, dict[str, Any]]] = [
    ("seed", {"seed": 1}),
    ("width", {"width": 11}),
    ("activation", {"activation": "sigmoid"}),
    ("target_loss", {"target_loss": 1e-10}),
    ("bias", {"bias": False}),
]


@pytest.mark.parametrize(("named", "options"), OTHERS, ids=[name for name, _ in OTHERS])
def test_a_checkpoint_of_another_run_is_refused_and_kept(
    named: str, options: dict[str, Any], tmp_path: Path
) -> None:
    path = tmp_path / "point"
    _stopped("values", path, 3)
    before = path.read_bytes()
    with pytest.raises(InputError, match=f"another run, which differs in .*{named}"):
        _run("values", path, **options)
    assert path.read_bytes() == before


def test_a_checkpoint_of_other_data_is_refused_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "point"
    _stopped("values", path, 3)
    before = path.read_bytes()
    x, y = RUNS["values"][0]
    with pytest.raises(InputError, match=r"another run, which differs in .*data"):
        isthmus.solve((x, y + 1e-9), method="lm", width=10, checkpoint=path)
    assert path.read_bytes() == before


def test_a_run_that_was_not_enough_goes_on_with_more_iterations(tmp_path: Path) -> None:
    path = tmp_path / "point"
    short = _run("values", path, iterations=4, raise_on_failure=False)
    assert short.reason == "4 iterations were not enough"
    assert _same(_run("values"), _run("values", path))


def _pickled() -> bytes:
    buffer = io.BytesIO()
    torch.save({"weight": torch.zeros(2, 2)}, buffer)
    return buffer.getvalue()


@pytest.mark.parametrize("name", ["values", "relu"])
@pytest.mark.parametrize("missing", ["weight", "outer"])
def test_a_file_without_some_weights_is_refused(name: str, missing: str, tmp_path: Path) -> None:
    path = tmp_path / "point"
    _stopped(name, path, 3)
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
        tensors = {key: file.get_tensor(key) for key in file.keys()}
    tensors["lifted" if name == "relu" else "base.weight"] = tensors.pop(missing)
    save_file(tensors, path, metadata=metadata)
    with pytest.raises(InputError, match="is damaged"):
        _run(name, path)


DAMAGED = {
    "empty": lambda whole: b"",
    "truncated": lambda whole: whole[: len(whole) // 2],
    "header only": lambda whole: whole[:200],
    "too long": lambda whole: whole + b"more",
    "noise": lambda whole: bytes(range(256)) * 8,
    "pickle": lambda whole: _pickled(),
    "text": lambda whole: b"weights: 1, 2, 3\n",
    "huge header": lambda whole: b"\xff" * 8 + whole[8:],
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_file_is_refused_and_kept(name: str, tmp_path: Path) -> None:
    path = tmp_path / "point"
    _stopped("values", path, 3)
    path.write_bytes(DAMAGED[name](path.read_bytes()))
    before = path.read_bytes()
    with pytest.raises(InputError, match="point is no checkpoint that isthmus wrote, or is damaged"):
        _run("values", path)
    assert path.read_bytes() == before


def _rewritten(path: Path, change: Any) -> None:
    """The file with its tensors and its state changed by hand."""
    with safe_open(path, "pt") as file:
        state = json.loads(file.metadata()["isthmus-checkpoint"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}
    change(state, tensors)
    save_file(tensors, path, {"isthmus-checkpoint": json.dumps(state)})


CHANGES = {
    "no state": lambda state, tensors: state.clear(),
    "no weights": lambda state, tensors: tensors.pop("weight"),
    "no damping": lambda state, tensors: state.pop("damping"),
    "a step too rich": lambda state, tensors: state["history"][0].update(more=1),
    "weights of another width": lambda state, tensors: tensors.update(weight=tensors["weight"][:5].clone()),
    "weights of another rank": lambda state, tensors: tensors.update(weight=tensors["weight"].flatten()),
    "weights in float32": lambda state, tensors: tensors.update(weight=tensors["weight"].float()),
    "weights that are no numbers": lambda state, tensors: tensors["weight"].fill_(torch.nan),
    "no base": lambda state, tensors: tensors.pop("base.shift"),
    "a base of another width": lambda state, tensors: tensors.update({
        "base.weight": tensors["base.weight"][:5].clone()
    }),
    "outer weights of another width": lambda state, tensors: tensors.update(
        outer=tensors["outer"][:, :5].clone()
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_file_that_fits_no_run_is_refused(name: str, tmp_path: Path) -> None:
    path = tmp_path / "point"
    _stopped("values", path, 3)
    _rewritten(path, CHANGES[name])
    with pytest.raises(InputError, match=r"point (is no checkpoint that isthmus wrote, or is damaged|holds)"):
        _run("values", path)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_the_last_checkpoint_survives_when_the_next_cannot_be_written(
    error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "point"
    _stopped("values", path, 3)
    before = path.read_bytes()

    def half(tensors: Any, file: Path, metadata: Any = None) -> None:
        Path(file).write_bytes(b"half of it")
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save_file", half)
        expected = KeyboardInterrupt if isinstance(error, KeyboardInterrupt) else InputError
        with pytest.raises(expected):
            _run("values", path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["point"]
    assert _same(_run("values"), _run("values", path))


def test_places_that_cannot_be_written_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nowhere"):
        _run("values", tmp_path / "nowhere" / "point")
    with pytest.raises(InputError, match=str(tmp_path)):
        _run("values", tmp_path)


def _trials(solution: Solution) -> list[tuple[Any, ...]]:
    return [(trial.targets, trial.width, trial.loss, trial.solved) for trial in solution.tried]


@pytest.mark.parametrize(
    "data", [regression(25, 4, seed=6), classes(16, 4, 3, seed=6)], ids=["values", "codes"]
)
def test_a_search_interrupted_anywhere_ends_where_the_whole_one_does(data: Any, tmp_path: Path) -> None:
    """Widths that are done are not done again."""
    whole = isthmus.solve(data, width="smallest")
    iterations = [trial.iterations for trial in whole.tried]
    for after in {1, len(iterations) - 1}:
        path, seen, limit = tmp_path / str(after), [], sum(iterations[:after]) + 1

        def on_progress(message: str, _: float, seen: list[str] = seen, limit: int = limit) -> None:
            if "relative loss" in message:
                seen.append(message)
                if len(seen) == limit:
                    raise KeyboardInterrupt

        if limit <= sum(iterations):
            with pytest.raises(KeyboardInterrupt):
                isthmus.solve(data, width="smallest", checkpoint=path, on_progress=on_progress)
        resumed = isthmus.solve(data, width="smallest", checkpoint=path, on_progress=on_progress)
        assert _same(whole, resumed)
        assert _trials(resumed) == _trials(whole)
        assert len(seen) == sum(iterations) + 1


def test_a_finished_search_is_not_done_again(tmp_path: Path) -> None:
    data, path = regression(25, 4, seed=6), tmp_path / "search"
    whole = isthmus.solve(data, width="smallest", checkpoint=path)
    told: list[str] = []
    again = isthmus.solve(
        data, width="smallest", checkpoint=path, on_progress=lambda message, _: told.append(message)
    )
    assert _same(whole, again)
    assert whole.tried == again.tried
    assert not any("relative loss" in message for message in told)


def test_a_search_that_gave_up_early_is_not_held_to_it(tmp_path: Path) -> None:
    """Trials of one iteration say nothing about a search with as many as it takes."""
    data, path = regression(25, 4, seed=6), tmp_path / "search"
    isthmus.solve(data, width="smallest", checkpoint=path, iterations=1, raise_on_failure=False)
    with pytest.raises(InputError, match=r"another run, which differs in .*iterations"):
        isthmus.solve(data, width="smallest", checkpoint=path)


def test_checkpoints_of_a_search_and_of_one_width_are_not_mixed_up(tmp_path: Path) -> None:
    path = tmp_path / "point"
    _stopped("values", path, 3)
    with pytest.raises(InputError, match=r"another run, which differs in .*width"):
        isthmus.solve(RUNS["values"][0], width="smallest", method="lm", checkpoint=path)


def test_a_damaged_checkpoint_of_a_search_is_refused(tmp_path: Path) -> None:
    data, path = regression(12, 4, seed=6), tmp_path / "search"
    isthmus.solve(data, width="smallest", checkpoint=path)
    for change in (
        lambda state, tensors: state.pop("trials"),
        lambda state, tensors: tensors.pop("0.weight"),
        lambda state, tensors: state["trials"][0].pop("loss"),
    ):
        whole = path.read_bytes()
        _rewritten(path, change)
        with pytest.raises(InputError, match="search is no checkpoint that isthmus wrote, or is damaged"):
            isthmus.solve(data, width="smallest", checkpoint=path)
        path.write_bytes(whole)


@pytest.mark.parametrize("options", [{"method": "chord"}, {"radius": 1.0}])
def test_solvers_that_keep_no_checkpoint_refuse_one(options: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="checkpoint"):
        isthmus.solve(regression(30, 4), checkpoint=tmp_path / "point", **options)
