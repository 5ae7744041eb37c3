"""`patch`: what it promises of cases, of other inputs and of its measures, each recounted here."""

from copy import deepcopy
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import nn

import isthmus
from isthmus.errors import DataError, InputError, NotCertified, PrecisionError
from isthmus.nets.patched import Patched


@pytest.fixture(scope="module")
def repaired(deployed, digits):
    x, y, cases, wanted = digits
    return isthmus.patch(deployed, (cases, wanted), reference=(x, y))


def test_every_case_is_right_and_proven(repaired, deployed, digits):
    _, _, cases, wanted = digits
    wrong = int((deployed(cases).argmax(1) != wanted).sum())
    assert 20 < wrong < 300
    assert torch.equal(repaired.model(cases).argmax(1), wanted)
    assert (len(repaired.task.cases.wrong), repaired.repaired, repaired.proven) == (wrong, wrong, wrong)
    assert repaired.certificate.wrong == 0
    assert repaired.measures.efficacy == 1.0
    assert repaired.status.name == "REPAIRED"


def test_what_is_kept_off_is_the_same_bit_for_bit(repaired, deployed):
    kept = repaired.task.kept.x
    assert len(kept) == 675  # a quarter of the reference is held out
    assert torch.equal(repaired.model(kept), deployed(kept))
    right = repaired.data.x[repaired.task.cases.right]
    assert torch.equal(repaired.model(right), deployed(right))


def test_the_model_itself_is_not_changed(repaired, deployed):
    assert isinstance(repaired.model, Patched)
    assert repaired.model.base is deployed
    assert repaired.base is deployed


def test_gates_hold_in_rational_arithmetic(deployed, digits):
    """A gate is 1 at its own cases and 0 at all other rows, when its own weights are evaluated exactly."""
    x, _, cases, wanted = digits
    found = isthmus.patch(deployed, (cases[:60], wanted[:60]), reference=x[:40])
    (gates,) = found.model.patches
    rows = torch.cat([found.data.x, found.task.kept.x]).flatten(1).double()
    normal, center, plateau, slope = (
        [[Fraction(v) for v in row] for row in gates.normal.tolist()],
        [Fraction(v) for v in gates.center.tolist()],
        [Fraction(v) for v in gates.plateau.tolist()],
        [Fraction(v) for v in gates.slope.tolist()],
    )
    for number, row in enumerate(rows.tolist()):
        row = [Fraction(value) for value in row]
        for gate in range(gates.gates):
            level = abs(sum(u * v for u, v in zip(normal[gate], row, strict=True)) - center[gate])
            open_ = max(Fraction(0), 1 - slope[gate] * max(Fraction(0), level - plateau[gate]))
            own = number < found.data.rows and int(found.owner[number]) == gate
            assert open_ == (1 if own else 0)


def test_few_gates(repaired):
    wrong = repaired.task.cases.wrong
    classes = len(repaired.data.y[wrong].unique())
    assert repaired.gates <= classes + len(wrong) // 40
    assert repaired.measures.added_units == 3 * repaired.gates
    own = repaired.owner[wrong]
    assert (own >= 0).all()
    for gate in range(repaired.gates):
        assert len(repaired.data.y[repaired.owner == gate].unique()) == 1


def test_measures_recounted(repaired, deployed, digits):
    held = repaired.task.held_out
    before, after = deployed(held.x), repaired.model(held.x)
    measures = repaired.measures
    assert len(held.x) == measures.touched.rows == 225
    assert measures.touched.count == int((before != after).any(1).sum())
    assert measures.changed.count == int((before.argmax(1) != after.argmax(1)).sum())
    lost = (before.argmax(1) == held.y).double().mean() - (after.argmax(1) == held.y).double().mean()
    assert measures.drawdown == pytest.approx(float(lost))
    assert measures.locality == pytest.approx(float((after - before).detach().norm(dim=1).mean()), abs=1e-9)
    assert measures.added_parameters == sum(t.numel() for t in repaired.model.patches[0].buffers())
    assert set(measures.generalization) == {"noise", "shift"}


def test_the_curve_says_what_a_half_width_does(deployed, digits):
    x, y, cases, wanted = digits
    options = {"reference": (x[:300], y[:300]), "held_out": (x[300:], y[300:]), "seed": 3}
    wide = isthmus.patch(deployed, (cases, wanted), **options)
    parts = [part for _, part in wide.measures.curve]
    assert parts == sorted(parts, reverse=True)
    assert parts[0] == wide.measures.touched.fraction > 0
    for width, part in wide.measures.curve[1:4]:
        narrow = isthmus.patch(deployed, (cases, wanted), half_width=width, **options)
        assert narrow.measures.touched.fraction == part
        assert narrow.repaired == wide.repaired


def test_slabs_end_a_quarter_of_the_way(repaired):
    (gates,) = repaired.model.patches
    others = torch.cat([repaired.task.kept.x, repaired.data.x]).flatten(1).double().numpy()
    owner = np.concatenate([np.full(len(repaired.task.kept.x), -1), repaired.owner.numpy()])
    reach = (gates.plateau + 1 / gates.slope).numpy()
    for gate in range(gates.gates):
        distance = np.abs(others @ gates.normal[gate].numpy() - float(gates.center[gate]))
        assert 4 * reach[gate] == pytest.approx(distance[owner != gate].min(), rel=1e-6)
        assert distance[owner == gate].max() < 1e-3 * reach[gate]


def test_it_repeats_bit_for_bit(repaired, deployed, digits):
    x, y, cases, wanted = digits
    torch.manual_seed(99)
    again = isthmus.patch(deployed, (cases, wanted), reference=(x, y))
    for one, two in zip(repaired.model.state_dict().values(), again.model.state_dict().values(), strict=True):
        assert torch.equal(one, two)
    other = isthmus.patch(deployed, (cases, wanted), reference=(x, y), seed=1)
    assert not torch.equal(other.model.patches[0].normal, repaired.model.patches[0].normal[: other.gates])


def test_table(repaired, deployed, digits):
    _, _, cases, wanted = digits
    output = deployed(cases).detach()
    for row in (0, 5, 17):
        line = repaired.table[row]
        assert (line.row, line.wanted) == (row + 1, int(wanted[row]))
        assert line.before == int(output[row].argmax())
        assert line.after == int(wanted[row])
        others = output[row].clone()
        others[wanted[row]] = -torch.inf
        assert line.lead_before == pytest.approx(float(output[row, wanted[row]] - others.max()))
        assert line.lead_after > 0
        assert (line.gate is None) == (line.before == line.wanted)


def test_balls_repair_what_is_similar(deployed, digits):
    x, y, cases, wanted = digits
    found = isthmus.patch(deployed, (cases, wanted), reference=(x, y), gates="ball")
    assert found.repaired == found.proven == found.gates
    assert found.measures.generalization["noise"] > 0.8
    kept = found.task.kept.x
    assert torch.equal(found.model(kept), deployed(kept))


def test_widened_balls_repair_more_and_touch_more(deployed, digits):
    x, y, cases, wanted = digits
    options = {"reference": (x[:600], y[:600]), "held_out": (x[600:], y[600:]), "gates": "ball"}
    near = isthmus.patch(deployed, (cases, wanted), **options)
    far = isthmus.patch(
        deployed, (cases, wanted), widen=True, max_touched=0.2, raise_on_failure=False, **options
    )
    assert far.measures.generalization["shift"] > near.measures.generalization["shift"]
    kept = far.task.kept.x
    touched = (far.model(kept) != deployed(kept)).any(1).double().mean()
    assert 0.02 < touched <= 0.2


def test_a_patch_that_touches_too_much_is_refused(deployed, digits):
    x, y, cases, wanted = digits
    options = {"reference": (x[:300], y[:300]), "held_out": (x[300:], y[300:]), "seed": 3, "max_touched": 0.0}
    with pytest.raises(NotCertified, match=r"touches \d+ of 600 .* half_width="):
        isthmus.patch(deployed, (cases, wanted), **options)
    found = isthmus.patch(deployed, (cases, wanted), raise_on_failure=False, **options)
    assert found.status.name == "TOO_MUCH_TOUCHED"


def test_all_right_already(deployed, digits):
    x, _, cases, _ = digits
    found = isthmus.patch(deployed, (cases, deployed(cases).argmax(1)), reference=x)
    assert found.model is deployed
    assert (found.gates, found.repaired, found.measures.efficacy) == (0, 0, 1.0)
    assert found.measures.touched.count == 0


def test_one_case_and_no_reference(deployed, digits):
    _, _, cases, wanted = digits
    wrong = int(torch.nonzero(deployed(cases).argmax(1) != wanted)[0])
    for gates in ("slab", "ball"):
        found = isthmus.patch(deployed, (cases[wrong : wrong + 1], wanted[wrong : wrong + 1]), gates=gates)
        assert found.repaired == found.proven == 1
        assert found.measures.touched is None
        assert "nothing is known" in " ".join(found.notes)
        assert torch.equal(found.model(cases[:wrong]), deployed(cases[:wrong]))


def test_conflicting_cases_are_refused(deployed, digits):
    _, _, cases, _ = digits
    twice = torch.cat([cases[:1], cases[:1]]), torch.tensor([1, 2])
    with pytest.raises(DataError, match="rows 1 and 2 "):
        isthmus.patch(deployed, twice)
    assert isthmus.patch(deployed, twice, conflicts="majority").repaired <= 1


def test_a_case_that_the_reference_contradicts(deployed, digits):
    _, _, cases, wanted = digits
    wrong = torch.nonzero(deployed(cases).argmax(1) != wanted).squeeze(1)[:3]
    bad = wanted.clone()
    bad[wrong[1]] = (bad[wrong[1]] + 1) % 10
    options = {"cases": (cases[wrong], wanted[wrong]), "reference": (cases, bad)}
    with pytest.raises(DataError, match=rf"1 row\(s\) equal a case .* row {int(wrong[1]) + 1} .* case 2 "):
        isthmus.patch(deployed, **options)
    found = isthmus.patch(deployed, conflicts="drop", **options)
    assert found.repaired == 3
    assert "3 reference row(s) equal a case" in " ".join(found.notes)
    unlabeled = isthmus.patch(deployed, options["cases"], reference=cases)
    assert unlabeled.repaired == 3


def test_repeated_cases_count_once(deployed, digits):
    _, _, cases, wanted = digits
    wrong = torch.nonzero(deployed(cases).argmax(1) != wanted).squeeze(1)[:2]
    order = torch.cat([wrong, wrong])
    found = isthmus.patch(deployed, (cases[order], wanted[order]), reference=cases)
    assert found.task.cases.given == 4
    assert [line.row for line in found.table] == [1, 2]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("outputs", [1, 3])
def test_values(dtype, outputs):
    torch.manual_seed(0)
    x = torch.randn(400, 8, dtype=dtype)
    model = nn.Sequential(nn.Linear(8, 12), nn.Tanh(), nn.Linear(12, outputs)).to(dtype)
    y = torch.randn(50, outputs, dtype=torch.float64)
    found = isthmus.patch(model, (x[:50], y), reference=x[50:])
    output = found.model(x[:50]).double()
    # One rounding to float32; in float64 that of the affine functions, too.
    assert (output - y).abs().max() <= max(torch.finfo(dtype).eps * float(y.abs().max()), 1e-12)
    assert found.certificate.tolerance < 1e-4
    assert found.certificate.reaches("proven")
    assert found.repaired == found.proven == 50
    assert found.gates < 50 / 4  # an affine function takes the values of all cases of a gate
    assert torch.equal(found.model(found.task.kept.x), model(found.task.kept.x))


def test_values_far_from_what_the_model_gives():
    """Large outputs and small targets: their sum is rounded once, not their difference."""
    torch.manual_seed(0)
    model = nn.Linear(4, 1)
    x = torch.randn(20, 4) * 1e6
    y = torch.randn(20, 1, dtype=torch.float64)
    found = isthmus.patch(model, (x[:10], y[:10]), reference=x[10:])
    assert (found.model(x[:10]).double() - y[:10]).abs().max() <= torch.finfo(
        torch.float32
    ).eps * y.abs().max()


def test_shares_stay_shares(deployed, digits):
    x, y, cases, wanted = digits
    model = nn.Sequential(deployed, nn.Softmax(1))
    found = isthmus.patch(model, (cases, wanted), reference=(x, y))
    output = found.model(cases)
    assert torch.equal(output.argmax(1), wanted)
    torch.testing.assert_close(output.sum(1), torch.ones(len(cases)))
    assert torch.equal(found.model(found.task.kept.x), model(found.task.kept.x))


def test_a_repair_taken_back(repaired, deployed, digits):
    wrong = repaired.task.cases.wrong
    gone = [int(repaired.task.cases.number[wrong[i]]) for i in (0, 3)]
    found = repaired.without(gone)
    back = repaired.data.x[wrong[[0, 3]]]
    assert torch.equal(found.model(back), deployed(back))
    assert found.repaired == len(wrong) - 2
    assert found.base is deployed
    with pytest.raises(InputError, match="no case 5000"):
        repaired.without([5000])
    with pytest.raises(InputError, match="right already"):
        repaired.without([int(repaired.task.cases.number[repaired.task.cases.right][0])])
    assert repaired.without(repaired.task.cases.number[wrong].tolist()).model is deployed
    with pytest.raises(InputError, match="no case would be left"):
        isthmus.patch(deployed, (back, repaired.data.y[wrong[[0, 3]]])).without([1, 2])


def test_a_patch_on_a_patch(deployed, digits):
    x, _, cases, wanted = digits
    first = isthmus.patch(deployed, (cases[:400], wanted[:400]), reference=x)
    second = isthmus.patch(first.model, (cases[400:], wanted[400:]), reference=torch.cat([x, cases[:400]]))
    assert len(second.model.patches) == 2
    assert second.model.base is deployed
    assert torch.equal(second.model(cases[400:]).argmax(1), wanted[400:])
    both = isthmus.patch(second.model, (cases, wanted), reference=x)
    assert torch.equal(both.model(cases).argmax(1), wanted)


def test_images_and_more_inputs_than_a_plane_reads():
    torch.manual_seed(0)
    x = torch.rand(120, 3, 24, 24)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(1936, 5))
    y = torch.randint(0, 5, (40,))
    assert model.training
    found = isthmus.patch(model, (x[:40], y), reference=x[40:])
    assert not any(module.training for module in found.model.modules())  # of which the model is a part
    assert torch.equal(found.model(x[:40]).argmax(1), y)
    assert torch.equal(found.model(found.task.kept.x), model(found.task.kept.x))
    assert (found.model.patches[0].normal != 0).sum(1).max() == 1024


def test_a_model_that_works_in_place(digits):
    _, _, cases, wanted = digits
    torch.manual_seed(0)
    model = nn.Sequential(nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(64, 10))
    shifted = cases - 0.5
    before = shifted.clone()
    found = isthmus.patch(model, (shifted[:50], wanted[:50]), reference=shifted[50:])
    assert torch.equal(shifted, before)
    assert torch.equal(found.model(shifted[:50].clone()).argmax(1), wanted[:50])


def test_named_classes(deployed, digits):
    x, _, cases, wanted = digits
    names = [f"digit {k}" for k in range(10)]
    labels = [names[k] for k in wanted.tolist()]
    found = isthmus.patch(deployed, (cases, labels), reference=x, classes=names)
    assert torch.equal(found.model(cases).argmax(1), wanted)
    assert found.table[0].wanted == names[int(wanted[0])]
    with pytest.raises(DataError, match="name the outputs with classes="):
        isthmus.patch(deployed, (cases, labels), reference=x)


def test_casting_the_repaired_model_keeps_its_planes(repaired):
    half = deepcopy(repaired.model).half()
    assert half.patches[0].normal.dtype == torch.float64
    assert next(half.parameters()).dtype == torch.float16


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"gates": "cube"}, "unknown gates 'cube'"),
        ({"half_width": 0.0}, "half-width of 0.0"),
        ({"half_width": 1e-30}, "rounded away; give"),
        ({"max_touched": 2.0}, "max_touched 2.0"),
        ({"max_touched": 0.1, "reference": None}, "max_touched needs reference"),
        ({"widen": True}, "to widen gates"),
        ({"widen": True, "max_touched": 1e-6}, "cannot show"),
        (
            {"widen": True, "max_touched": 1.0, "reference": torch.zeros(1, 8, 8)},
            "0 reference rows cannot show",
        ),
        ({"cases_per_gate": 0}, "at least 1"),
        ({"cases_per_gate": 5, "gates": "ball"}, "for slabs"),
        ({"seed": -1}, "seed -1"),
        ({"tolerance": 0.1}, "for regression"),
        (
            {"tolerance": -0.1, "cases": (torch.zeros(1, 8, 8), torch.full((1, 10), 0.5))},
            "says nothing",
        ),
        ({"similar": torch.zeros(3, 8, 8)}, "similar inputs need targets"),
        ({"reference": torch.zeros(3, 7)}, "rows of shape"),
    ],
)
def test_bad_options(deployed, digits, options, said):
    x, _, cases, wanted = digits
    with pytest.raises((InputError, PrecisionError), match=said) as refusal:
        isthmus.patch(deployed, **{"cases": (cases[:50], wanted[:50]), "reference": x, **options})
    assert str(refusal.value).endswith(".")


def test_models_that_cannot_be_repaired(digits):
    _, _, cases, wanted = digits
    for model, said in (
        (nn.Linear(8, 3), "only vectors"),
        (nn.Linear(5, 3), "does not take inputs"),
        (nn.Sequential(nn.Flatten(), nn.Linear(64, 4)), "not the number of an output"),
        ("no such folder", "no such model directory"),
        ("no such file.onnx", "no such file"),
        (7, "expected a torch.nn.Module"),
    ):
        with pytest.raises(InputError, match=said):
            isthmus.patch(model, (cases, wanted))


def test_a_case_next_to_a_reference_row(deployed, digits):
    _, _, cases, wanted = digits
    wrong = int(torch.nonzero(deployed(cases).argmax(1) != wanted)[0])
    near = cases[wrong : wrong + 1].double()
    near[0, 4, 4] += 1e-15
    model = deepcopy(deployed).double()
    with pytest.raises(PrecisionError, match=r"case 1.*reference row 1"):
        isthmus.patch(model, (cases[wrong : wrong + 1].double(), wanted[wrong : wrong + 1]), reference=near)


def test_inputs_that_are_no_numbers_and_zeros_with_a_sign(repaired, deployed):
    model = Patched(nn.Sequential(nn.Flatten(), nn.Linear(64, 10), Rounded()), repaired.model.gates()).eval()
    x = repaired.task.kept.x[:40].clone()
    assert model(x).numpy().tobytes() == model.base(x).numpy().tobytes()
    x[:, 0, 0] = torch.tensor([torch.nan, torch.inf, -torch.inf, 0.0]).repeat(10)
    cleaned = Patched(nn.Sequential(Cleaned(), *deployed), repaired.model.gates()).eval()
    assert torch.equal(cleaned(x), cleaned.base(x))


class Rounded(nn.Module):
    def forward(self, x):
        return torch.round(x.detach() * 0.1)  # gives zeros of both signs


class Cleaned(nn.Module):
    def forward(self, x):
        return torch.nan_to_num(x)


def test_a_batch_that_decides_is_found_out():
    class Counting(nn.Linear):
        def forward(self, x):
            return super().forward(x) + 100 * nn.functional.one_hot(torch.tensor(len(x) % 3), 3)

    torch.manual_seed(0)
    model, x = Counting(5, 3), torch.randn(60, 5)
    with pytest.raises(NotCertified, match="from batch to batch"):
        isthmus.patch(model, (x[:20], torch.randint(0, 3, (20,))), reference=x[20:])


def test_many_classes_as_whole_numbers():
    torch.manual_seed(0)
    model, x = nn.Linear(20, 300), torch.randn(260, 20)
    y = torch.randperm(300)[:200]
    found = isthmus.patch(model, (x[:200], y), reference=(x[200:], y[:60]), gates="ball")
    assert torch.equal(found.model(x[:200]).argmax(1), y)


def test_one_output_is_no_class():
    with pytest.raises(DataError, match="one output, so none is largest"):
        isthmus.patch(nn.Linear(3, 1), (torch.randn(4, 3), torch.tensor([0, 1, 0, 1])), classes=[0, 1])


def test_what_widened_slabs_touch_is_what_was_allowed():
    """The rows that planes were drawn to keep off would promise too much."""
    allowed, over = 0.05, 0
    for seed in range(12):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(20, 8), nn.ReLU(), nn.Linear(8, 4))
        found = isthmus.patch(
            model,
            (torch.randn(20, 20), torch.randint(4, (20,))),
            reference=torch.randn(1500, 20),
            held_out=torch.randn(4000, 20),
            widen=True,
            max_touched=allowed,
            raise_on_failure=False,
        )
        over += found.measures.touched.fraction > allowed
    assert over <= 2


@pytest.mark.parametrize("gates", ["slab", "ball"])
def test_gates_that_may_touch_everything_are_finite(gates):
    """Cases of one class have nothing to keep off, and so no limit but the budget."""
    torch.manual_seed(0)
    model, x = nn.Linear(6, 3), torch.randn(200, 6)
    found = isthmus.patch(
        model, (x[:8], torch.zeros(8, dtype=int)), reference=x[8:], gates=gates, widen=True, max_touched=1.0
    )
    assert (found.model(x[:8]).argmax(1) == 0).all()
    assert all(tensor.isfinite().all() for tensor in found.model.patches[0].buffers())
