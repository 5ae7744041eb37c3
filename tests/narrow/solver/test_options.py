"""Options that will not do are refused in one sentence; losses asked for are reached, or missed aloud."""

import json
from typing import Any

import numpy as np
import pytest
import torch

import isthmus
from isthmus.errors import InputError, NotCertified
from isthmus.narrow.solver.solution import Status
from tests.narrow.solver.problems import regression

WRONG: list[tuple[dict[str, Any], str]] = [
    ({"width": 0}, "width"),
    ({"width": -2}, "width"),
    ({"width": 3.0}, "width"),
    ({"width": [3]}, "width"),
    ({"width": True}, "width"),
    ({"width": "big"}, "width"),
    ({"radius": 0}, "radius"),
    ({"radius": "a"}, "radius"),
    ({"radius": True}, "radius"),
    ({"method": "x"}, "method"),
    ({"method": []}, "method"),
    ({"targets": "x"}, "targets"),
    ({"targets": "codes"}, "codes"),
    ({"activation": "gelu"}, "activation"),
    ({"method": "lm", "radius": 1.0}, "method='lm'"),
    ({"width": "smallest", "radius": 1.0}, "width='smallest'"),
    ({"width": "smallest", "method": "chord"}, "width='smallest'"),
    ({"activation": "relu", "radius": 1.0}, "activation='relu'"),
    ({"activation": "leaky_relu", "method": "chord"}, "activation='leaky_relu'"),
    ({"dtype": torch.int32}, "dtype"),
    ({"dtype": torch.bfloat16}, "dtype"),
    ({"dtype": "float32"}, "dtype"),
    ({"iterations": 0}, "iterations"),
    ({"iterations": 2.5}, "iterations"),
    ({"seed": -1}, "seed"),
    ({"seed": 2**63}, "seed"),
    ({"seed": 1.5}, "seed"),
    ({"seed": None}, "seed"),
    ({"memory": 0}, "memory"),
    ({"memory": 10}, "memory"),
    ({"memory": "1G"}, "memory"),
    ({"target_loss": 0.0}, "target loss"),
    ({"target_loss": -1.0}, "target loss"),
    ({"target_loss": 1.0}, "target loss"),
    ({"target_loss": float("nan")}, "target loss"),
    ({"tolerance": -1.0}, "tolerance"),
    ({"tolerance": float("nan")}, "tolerance"),
    ({"tolerance": float("inf")}, "tolerance"),
    ({"device": "nope"}, "device"),
    ({"conflicts": "x"}, "conflicts"),
    ({"checkpoint": "x", "radius": 1.0}, "checkpoint"),
    ({"width": 10, "radius": 1.0}, "width"),
]


@pytest.mark.parametrize(("options", "named"), WRONG, ids=lambda value: str(value))
def test_options_that_will_not_do_are_named_in_one_sentence(options: dict[str, Any], named: str) -> None:
    with pytest.raises(InputError) as raised:
        isthmus.solve(regression(40, 4), **options)
    message = str(raised.value)
    assert named in message
    assert message.endswith(".")
    assert "\n" not in message
    assert len(message) <= 260
    assert not message.startswith(("'", "("))


@pytest.mark.parametrize("device", ["meta", torch.device("meta"), 3.5, "cuda:99"])
def test_devices_that_cannot_be_used_here(device: Any) -> None:
    with pytest.raises(InputError, match="device"):
        isthmus.solve(regression(10, 3), device=device)


@pytest.mark.parametrize("kind", [np.int64, np.int32])
def test_numpys_integers_are_integers(kind: type) -> None:
    options = {"width": kind(12), "seed": kind(1), "iterations": kind(50), "memory": kind(10**8)}
    for method in ("chord", "lm"):
        solution = isthmus.solve(regression(20, 4), method=method, **options)
        assert solution.width == 12
        assert json.loads(json.dumps(solution.recipe)) == solution.recipe


def test_a_loss_that_is_asked_for_and_missed_is_a_failure() -> None:
    data = regression(40, 4, seed=4)
    options: dict[str, Any] = {"width": 9, "method": "lm", "target_loss": 1e-40}
    with pytest.raises(NotCertified, match="Relative loss"):
        isthmus.solve(data, **options)
    solution = isthmus.solve(data, raise_on_failure=False, **options)
    assert solution.status is Status.NOT_CONVERGED
    assert solution.certificate.wrong == 0
    assert solution.reason


def test_a_loss_that_is_asked_for_is_enough() -> None:
    data = regression(40, 4, seed=4)
    for options in ({}, {"width": 9, "method": "lm"}, {"radius": 0.1}):
        solution = isthmus.solve(data, target_loss=1e-6, tolerance=1.0, **options)
        assert solution.loss <= 1e-6
        assert len(solution.history) < len(isthmus.solve(data, **options).history)
