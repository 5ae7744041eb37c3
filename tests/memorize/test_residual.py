"""Theorem 4.1: what every block does to every row."""

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from isthmus import load_model, save
from isthmus.data import from_arrays
from isthmus.errors import InputError, WidthError
from isthmus.memorize import memorize
from isthmus.memorize.residual import memorize_labels_in_blocks
from isthmus.nets.residual import Residual
from isthmus.nets.sequential import LEAK

GATES = {"step pair": 2, "trapezoid": 4, "hat": 3}
ACTIVATION = {"step pair": "hardtanh", "trapezoid": "leaky_relu", "hat": "relu"}


def moves(x, blocks, gate):
    """Where the rows lie before and behind every block."""
    h = [torch.from_numpy(x)]
    for inner, outer in blocks:
        value = h[-1] @ inner.weight.T + inner.bias
        if gate == "step pair":
            value = value.clamp(-1, 1)
        else:
            value = torch.nn.functional.leaky_relu(value, LEAK if gate == "trapezoid" else 0.0)
        h.append(h[-1] + value @ outer.weight.T + outer.bias)
    return h


@given(
    gate=st.sampled_from(list(GATES)),
    rows=st.integers(2, 120),
    columns=st.integers(2, 12),
    splits=st.lists(st.floats(0, 1), max_size=4),
    seed=st.integers(0, 2**32),
    spare=st.booleans(),
)
@settings(max_examples=60)
def test_blocks_of_any_widths_move_every_row_once(gate, rows, columns, splits, seed, spare):
    random = np.random.default_rng(seed)
    classes = int(random.integers(2, columns + 1))
    x, y = random.normal(size=(rows, columns)), random.integers(0, classes, rows)
    assume(len(np.unique(y)) == classes)
    units = GATES[gate]
    counts = np.bincount(y)
    needed = sum(-(-count // columns) for count in counts)
    needed -= -(-counts.max() // columns) if spare else 0
    piece = units if columns == classes or gate == "hat" else units // 2
    ends = sorted(int(split * needed * units / piece) for split in splits)
    widths = [piece * (b - a) for a, b in zip([0, *ends], [*ends, needed * units // piece], strict=True)]
    data = from_arrays(x, y, task="classification")
    blocks, read = memorize_labels_in_blocks(
        data,
        widths,
        columns,
        gate,
        LEAK if gate == "trapezoid" else 0.0,
        torch.float64,
        torch.Generator().manual_seed(seed),
        spare=spare,
    )
    assert sum(len(block.inner.bias) for block in blocks) <= needed * units
    assert all(
        len(block.inner.bias) <= width for block, width in zip(blocks, filter(None, widths), strict=False)
    )
    behind = moves(x, blocks, gate)[-1].numpy()
    skipped = counts.argmax() if spare else None
    for label in range(classes):
        column = label - (skipped is not None and label > skipped)
        own, others = behind[y == label, column], behind[y != label, column]
        if label == skipped:
            np.testing.assert_allclose(behind[y == label], x[y == label], atol=1e-9)
        else:
            assert own.min() > others.max() + 0.5 * np.ptp(x[:, column])
    outputs = (torch.from_numpy(behind) @ read[0].weight.T + read[0].bias).clamp(-1, 1)
    outputs = outputs @ read[1].weight.T + read[1].bias
    assert torch.equal(outputs, torch.eye(classes).double()[y])


def test_a_cut_gate_moves_the_rows_beyond_it_and_moves_them_back():
    random = np.random.default_rng(1)
    x, y = random.normal(size=(40, 6)), np.arange(40) % 2
    data = from_arrays(x, y, task="classification")
    # 8 gates of 2 units: 3 and a half, 2, and 2 and a half.
    generator = torch.Generator().manual_seed(0)
    blocks, _ = memorize_labels_in_blocks(
        data, [7, 4, 5], 6, "step pair", 0.0, torch.float64, generator, spare=False
    )
    assert [len(block.inner.bias) for block in blocks] == [7, 4, 5]
    h = moves(x, blocks, "step pair")
    moved = [int(((after - h[0]).abs().amax(1) > 1e-9).sum()) for after in h[1:]]
    assert moved[0] > 3 * 6 + 1  # the rows of three gates, and about half of all others
    assert moved[-1] == 40
    # In the end a row is where its own gate has moved it, far along the coordinate of its class alone.
    far = (h[-1] - h[0]).abs()
    own = torch.arange(40), torch.from_numpy(y)
    assert (far[own].numpy() > 1.9 * np.ptp(x, axis=0)[y]).all()
    stray = far.clone()
    stray[own] = 0.0
    assert (stray[:, :2].amax() <= far[own].amax() / 8 + 1e-9).all()


def test_blocks_of_one_step_each():
    """Widths 1, 1, 1, ...: no gate has room in any block, and all of them are cut."""
    random = np.random.default_rng(0)
    x, y = random.normal(size=(30, 5)), np.arange(30) % 3
    found = memorize((x, y), method="residual", rule="paper", widths=(*[1] * 18, 3), level="bitwise")
    assert found.widths == (*[1] * 18, 3)


@pytest.mark.parametrize("activation", ["hardtanh", "relu", "leaky_relu"])
def test_the_theorems_counts_on_2000_rows(activation):
    random = np.random.default_rng(0)
    x, y = random.normal(size=(2000, 20)), random.integers(0, 10, 2000)
    found = memorize(
        (x, y), method="residual", rule="paper", activation=activation, depth=4, level="measured"
    )
    assert found.certificate.wrong == 0
    assert sum(found.widths[:-1]) <= (220 if activation == "hardtanh" else 440)
    assert found.widths[-1] == (10 if activation == "hardtanh" else 20)


def test_images_are_flattened_and_saved(tmp_path):
    random = np.random.default_rng(0)
    x, y = random.integers(0, 256, (60, 1, 4, 4)), random.integers(0, 3, 60)
    found = memorize((x, y), method="residual", depth=3)
    assert [type(layer).__name__ for layer in found.model][:3] == ["Flatten", "Residual", "Residual"]
    save(tmp_path / "model", found)
    again = load_model(tmp_path / "model")
    assert isinstance(again[1], Residual)
    inputs = torch.from_numpy(x).double()
    assert torch.equal(again(inputs), found.model(inputs))


def test_constant_columns_and_absent_spread():
    """The coordinate of a class may be a column that never varies, as a dark pixel does."""
    random = np.random.default_rng(0)
    x = random.normal(size=(50, 6))
    x[:, :2] = 7.0
    y = random.integers(0, 3, 50)
    assert memorize((x, y), method="residual", level="bitwise").certificate.wrong == 0


def test_single_class_and_single_row():
    x = np.arange(6.0)[:, None]
    for rows in (1, 6):
        data = from_arrays(x[:rows], np.zeros(rows, int), task="classification")
        assert memorize(data, method="residual", rule="paper").certificate.wrong == 0
        assert memorize(data, method="residual").certificate.wrong == 0


def test_too_few_inputs_or_units():
    random = np.random.default_rng(0)
    x, y = random.normal(size=(30, 3)), np.arange(30) % 5
    with pytest.raises(InputError, match="a coordinate per class, but there are 3 inputs and 5 classes"):
        memorize((x, y), method="residual")
    with pytest.raises(
        WidthError, match=r"asks for d1 \+ \.\.\. \+ d\(L-1\) >= 24, .* dL >= 2; but .* 8 and 2"
    ):
        memorize((x, y % 2), method="residual", rule="paper", widths=(4, 4, 2))


@pytest.mark.parametrize("common", range(3))
@pytest.mark.parametrize("activation", ["hardtanh", "relu"])
def test_one_input_fewer_than_classes_will_do(common, activation):
    """The class without gates needs no coordinate, whichever it is."""
    random = np.random.default_rng(0)
    y = np.concatenate([np.arange(3), random.integers(0, 3, 20), [common] * 20])
    found = memorize((random.normal(size=(43, 2)), y), method="residual", activation=activation)
    assert found.certificate.wrong == 0
