"""A thousand random small patches: every case right and the reference as before, or a refusal."""

import numpy as np
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

import isthmus
from isthmus.errors import IsthmusError


@st.composite
def tasks(draw):
    seed = draw(st.integers(0, 2**31))
    random = np.random.default_rng(seed)
    inputs, outputs = draw(st.integers(1, 6)), draw(st.integers(1, 4))
    classes = draw(st.booleans()) and outputs > 1
    rows, others = draw(st.integers(1, 14)), draw(st.integers(0, 30))
    dtype = draw(st.sampled_from([torch.float32, torch.float64]))
    scale = draw(st.sampled_from([1.0, 1e-3, 255.0, 1e6]))
    grid = draw(st.booleans())  # small integers: rows repeat, planes meet many of them
    kind = draw(st.sampled_from(["mlp", "affine", "softmax", "tanh"]))
    x = (
        random.integers(0, 4, (rows + others, inputs))
        if grid
        else random.normal(size=(rows + others, inputs))
    )
    x = torch.tensor(x * scale, dtype=dtype)
    if classes:
        y = torch.tensor(random.integers(0, outputs, rows))
    else:
        y = torch.tensor(random.normal(size=(rows, outputs)), dtype=torch.float64)
    torch.manual_seed(seed % 1000)
    layers = {
        "affine": [nn.Linear(inputs, outputs)],
        "mlp": [nn.Linear(inputs, 5), nn.ReLU(), nn.Linear(5, outputs)],
        "tanh": [nn.Linear(inputs, 5), nn.Tanh(), nn.Linear(5, outputs)],
        "softmax": [nn.Linear(inputs, outputs), nn.Softmax(1)],
    }[kind]
    options = {
        "gates": draw(st.sampled_from(["slab", "slab", "ball"])),
        "half_width": draw(st.sampled_from([None, None, 1e-3 * scale])),
        "seed": seed % 7,
    }
    return nn.Sequential(*layers).to(dtype), x[:rows], y, x[rows:], classes, options


def check(task):
    """Whether it was repaired, as it must be unless it is refused in a sentence."""
    model, x, y, others, classes, options = task
    data = isthmus.from_arrays(x, y, task="classification" if classes else "regression")
    try:
        found = isthmus.patch(model, data, reference=others if len(others) else None, **options)
    except IsthmusError as refusal:
        said = str(refusal)
    else:
        said = ""
    if said:
        assert said.endswith(".")
        return False
    with torch.no_grad():
        output = found.model(x)
        if classes:
            assert torch.equal(output.argmax(1), y)
            own = output.gather(1, y[:, None])
            assert ((output >= own).sum(1) == 1).all()
        else:
            assert (output.double() - y).abs().max() <= found.certificate.tolerance
        assert found.proven == len(found.task.cases.wrong)
        kept = found.task.kept.x
        if len(kept) and not options.get("widen"):
            assert torch.equal(found.model(kept), model(kept))
    assert found.status.name == "REPAIRED"
    return True


def test_a_thousand_random_patches():
    repaired = []

    @settings(max_examples=1000, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
    @given(tasks())
    def run(task):
        repaired.append(check(task))

    run()
    assert sum(repaired) > 0.7 * len(repaired) > 500  # most others have equal cases with different targets
