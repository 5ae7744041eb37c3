"""Classes as codes, with a dead zone, one-hot and by the cross entropy: argmax counted again by NumPy."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import isthmus
from isthmus.errors import InputError
from isthmus.narrow.solver.codes import codes, decoder
from tests.narrow.solver.problems import classes, forward, wrong

TARGETS = ("codes", "dead-zone", "one-hot", "softmax")
WIDTHS = {"codes": 16, "dead-zone": 16, "one-hot": 40, "softmax": 16}


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("targets", TARGETS)
def test_every_row_is_right_and_certified(targets: str, bias: bool) -> None:
    x, label = classes(70, 6, 4, seed=1)
    solution = isthmus.solve((x, label), targets=targets, width=WIDTHS[targets], bias=bias)
    assert wrong(solution.model, x, label) == 0
    seen = solution.certificate
    assert (seen.rows, seen.wrong, seen.task) == (70, 0, "classification")
    assert seen.level in {"measured", "proven"}
    output = forward(solution.model, x)
    lead = np.sort(output, 1)
    own = output[np.arange(70), label]
    assert (own == lead[:, -1]).all()
    assert seen.margin == pytest.approx(float((lead[:, -1] - lead[:, -2]).min()), rel=1e-6)
    assert solution.recipe["plan"]["targets"] == targets
    assert (solution.model[0].bias is not None) is bias


@given(
    rows=st.integers(1, 40),
    inputs=st.integers(4, 8),
    count=st.integers(1, 5),
    targets=st.sampled_from([None, "codes", "one-hot", "softmax"]),
    seed=st.integers(0, 2**20),
)
@settings(max_examples=25)
def test_random_labels_at_ample_width(rows: int, inputs: int, count: int, targets: Any, seed: int) -> None:
    x, label = classes(rows, inputs, min(count, rows), seed=seed)
    equations = rows * (count if targets in {"one-hot", "softmax"} else 1)
    solution = isthmus.solve((x, label), targets=targets, width=equations + 2)
    assert wrong(solution.model, x, label) == 0
    assert solution.certificate.wrong == 0


@pytest.mark.parametrize("targets", TARGETS)
def test_two_classes(targets: str) -> None:
    x, label = classes(50, 4, 2, seed=2)
    solution = isthmus.solve((x, label), targets=targets, width=30)
    assert forward(solution.model, x).shape == (50, 2)
    assert wrong(solution.model, x, label) == 0


@pytest.mark.parametrize("options", [*({"targets": t} for t in TARGETS), {}, {"width": 1}, {"radius": 1.0}])
def test_one_class_is_always_right(options: dict[str, Any]) -> None:
    x, _ = classes(9, 3, 1)
    solution = isthmus.solve((x, torch.zeros(9, dtype=torch.int64)), **options)
    assert solution.data.task == "classification"
    assert forward(solution.model, x).shape == (9, 1)
    assert solution.certificate.wrong == 0
    assert np.isfinite(forward(solution.model, x)).all()


@pytest.mark.parametrize("targets", TARGETS)
def test_classes_with_names(targets: str) -> None:
    x, label = classes(40, 5, 3, seed=3)
    names = np.array(["zebra", "ant", "mole"])[label.numpy()]
    solution = isthmus.solve((x, names), targets=targets, width=WIDTHS[targets])
    assert solution.data.classes == ("ant", "mole", "zebra")
    predicted = np.array(solution.data.classes)[forward(solution.model, x).argmax(1)]
    assert (predicted == names).all()


def test_integers_far_apart_are_names_too() -> None:
    x, label = classes(40, 5, 3, seed=3)
    numbers = torch.tensor([-7, 1000, 3])[label]
    solution = isthmus.solve((x, numbers))
    assert solution.data.classes == (-7, 3, 1000)
    assert wrong(solution.model, x, torch.tensor([0, 2, 1])[label]) == 0


def test_images_of_bytes_are_right_as_they_are_stored() -> None:
    g = torch.Generator().manual_seed(4)
    x = torch.randint(0, 256, (60, 1, 5, 5), generator=g, dtype=torch.uint8)
    label = torch.randint(0, 10, (60,), generator=g)
    for options in ({}, {"method": "lm", "width": 5}, {"radius": 1.0}):
        solution = isthmus.solve((x, label), **options)
        assert isinstance(solution.model[0], torch.nn.Flatten)
        assert wrong(solution.model, x, label) == 0
        assert (solution.model(x.double()).argmax(1) == label).all()


def test_the_decoder_takes_the_nearest_code() -> None:
    for count in (1, 2, 3, 10):
        assert codes(count).tolist() == [k - (count - 1) / 2 for k in range(count)]
        h = torch.linspace(-count, count, 999, dtype=torch.float64)[:, None] + 1e-3
        nearest = (h - codes(count)).abs().argmin(1)
        assert torch.equal(decoder(count)(h).argmax(1), nearest)


@pytest.mark.parametrize("targets", ["codes", "dead-zone"])
def test_a_network_for_codes_ends_in_the_decoder(targets: str) -> None:
    x, label = classes(60, 6, 5, seed=5)
    solution = isthmus.solve((x, label), targets=targets, width=14, method="lm")
    scalar = forward(torch.nn.Sequential(*list(solution.model)[:-1]), x)[:, 0]
    off = np.abs(scalar - (label.numpy() - 2))
    inner = (label.numpy() > 0) & (label.numpy() < 4)
    limit = 0.2500001 if targets == "codes" else 0.4000001
    assert off[inner].max() <= limit
    assert off[inner].max() > 1e-4  # it stops as soon as all rows are right
    if targets == "codes":
        assert off.max() <= limit
    logits = 2 * scalar[:, None] * codes(5).numpy() - np.square(codes(5).numpy())
    np.testing.assert_allclose(forward(solution.model, x).astype(float), logits.astype(float), atol=1e-12)


def test_a_loss_that_is_asked_for_on_codes_is_reached() -> None:
    x, label = classes(60, 6, 5, seed=6)
    solution = isthmus.solve((x, label), targets="codes", width=14, method="lm", target_loss=1e-18)
    scalar = forward(torch.nn.Sequential(*list(solution.model)[:-1]), x)[:, 0]
    assert np.abs(scalar - (label.numpy() - 2)).max() <= 1e-7


def test_one_hot_outputs_are_one_hot() -> None:
    x, label = classes(50, 6, 3, seed=7)
    solution = isthmus.solve((x, label), targets="one-hot", width=60)
    np.testing.assert_allclose(forward(solution.model, x), np.eye(3)[label], atol=1e-8)


def test_the_cross_entropy_leads_by_one() -> None:
    x, label = classes(50, 6, 3, seed=8)
    solution = isthmus.solve((x, label), targets="softmax", width=12)
    output = forward(solution.model, x)
    own = output[np.arange(50), label].copy()
    output[np.arange(50), label] = -np.inf
    assert (own - output.max(1)).min() >= 1 - 1e-9
    assert solution.certificate.margin == pytest.approx(float((own - output.max(1)).min()), rel=1e-9)


def test_too_few_units_for_codes_take_the_cross_entropy() -> None:
    """Three blobs are told apart by 2 units, but 90 codes take 30."""
    g = torch.Generator().manual_seed(9)
    label = torch.arange(90) % 3
    center = torch.tensor([[6.0, 0.0], [-3.0, 5.0], [-3.0, -5.0]])
    x = center[label] + torch.randn(90, 2, generator=g)
    solution = isthmus.solve((x, label), width=2)
    assert solution.recipe["plan"]["targets"] == "softmax"
    assert wrong(solution.model, x, label) == 0
    coded = isthmus.solve((x, label), width=2, target_loss=1e-10, raise_on_failure=False)
    assert coded.recipe["plan"]["targets"] == "codes"


def test_targets_of_the_other_task_are_refused() -> None:
    x, label = classes(20, 3, 2)
    with pytest.raises(InputError, match="codes, dead-zone, one-hot or softmax, not values"):
        isthmus.solve((x, label), targets="values")
    with pytest.raises(InputError, match="values, not codes"):
        isthmus.solve((x, x[:, 0]), targets="codes")
    for targets in ("dead-zone", "softmax"):
        with pytest.raises(InputError, match=targets):
            isthmus.solve((x, label), targets=targets, target_loss=1e-10)
        with pytest.raises(InputError, match=targets):
            isthmus.solve((x, label), targets=targets, radius=1.0)
    with pytest.raises(InputError, match="tolerance"):
        isthmus.solve((x, label), tolerance=1e-3)


def test_a_bundled_set_by_default() -> None:
    data = isthmus.load("wine")
    solution = isthmus.solve(data)
    assert wrong(solution.model, data.x, data.y) == 0
    assert solution.width == 2 * -(-178 * 11 // 10 // 14) or solution.width <= 30
    assert not any("hardly vary" in note for note in solution.certificate.notes)
