"""Certificates of crafted networks, right or wrong by a known amount."""

import math
from importlib import import_module

import numpy as np
import pytest
import torch
from torch import nn

from isthmus import graph
from isthmus.arithmetic.rounding import running_bound
from isthmus.certificate import model_digest
from isthmus.certify import certify, decision_margins
from isthmus.data import Dataset, from_arrays
from isthmus.errors import DataError, InputError
from isthmus.nets.patched import Gates, Patched
from isthmus.nets.residual import Residual

CORNERS = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]], dtype=torch.float64)


def linear(weight, bias=None, dtype=torch.float64):
    weight = torch.tensor(weight, dtype=dtype)
    module = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, dtype=dtype)
    module.weight.data = weight
    if bias is not None:
        module.bias.data = torch.tensor(bias, dtype=dtype)
    return module.requires_grad_(False)


def classes(x, y):
    return from_arrays(x, y, task="classification")


def values(x, y):
    return from_arrays(x, y, task="regression")


def xor(bias=(0.0, 0.0)):
    """One-hot outputs of exclusive or, in integers; plus a bias."""
    hidden = linear([[1.0, 1.0], [1.0, 1.0]], [0.0, -1.0])
    # a - 2 b is 0, 1, 1, 0 at the corners.
    return nn.Sequential(hidden, nn.ReLU(), linear([[-1.0, 2.0], [1.0, -2.0]], [1.0 + bias[0], bias[1]]))


def residual_xor(bias=0.0):
    """One-hot outputs of exclusive or by a residual network, in integers; plus a bias."""
    # (a, b) -> (a, b - 2 max(a + b - 1, 0)): their sum is the exclusive or.
    first = Residual(linear([[1.0, 1.0]], [-1.0]), nn.ReLU(), linear([[0.0], [-2.0]]))
    # (s, t) -> (1 - s - t, s + t)
    return nn.Sequential(first, Residual(linear([[-2.0, -1.0], [1.0, 0.0]], [1.0 + bias, 0.0])))


class Opaque(nn.Module):
    """A module that the graph does not know."""

    def __init__(self, function):
        super().__init__()
        self.function = function
        self.scale = nn.Parameter(torch.ones((), dtype=torch.float64))

    def forward(self, x):
        return self.function(x)


class TestLevels:
    def test_bitwise(self):
        found = certify(xor(), classes(CORNERS, [0, 1, 1, 0]))
        assert found.level == "bitwise"
        assert (found.rows, found.wrong, found.proven_rows, found.bitwise_rows) == (4, 0, 4, 4)
        assert (found.max_error, found.margin, found.bound, found.tolerance) == (0.0, 1.0, 0.0, None)
        assert (found.task, found.dtype, found.notes) == ("classification", "float64", ())

    def test_proven_but_not_bitwise(self):
        found = certify(xor((0.1, 0.0)), classes(CORNERS, [0, 1, 1, 0]))
        assert found.level == "proven"
        assert (found.proven_rows, found.bitwise_rows) == (4, 0)
        assert found.max_error == pytest.approx(0.1)
        assert found.margin == pytest.approx(0.9)
        assert 0 < found.bound < 1e-14

    def test_measured_but_not_proven(self):
        # 0.1 + 0.2 is above 0.3, but by less than rounding may take.
        model = linear([[0.1, 0.2], [0.3, 0.0]])
        ones = torch.ones(1, 2, dtype=torch.float64)
        data = Dataset(ones, torch.tensor([0]), "classification", (0, 1))
        lead, spread = decision_margins(*running_bound(graph.stages(model), data.x), data.y)
        assert 0 < lead[0, 1] < spread[0, 1]
        found = certify(model, data)
        assert (found.level, found.wrong, found.proven_rows) == ("measured", 0, 0)
        assert found.margin == lead[0, 1]
        assert found.bound == spread[0, 1]

    def test_one_wrong_row_is_none(self):
        found = certify(xor(), classes(CORNERS, [0, 1, 1, 1]))
        assert (found.level, found.wrong, found.proven_rows, found.bitwise_rows) == ("none", 1, 3, 3)
        assert (found.margin, found.max_error) == (-1.0, 1.0)

    def test_reaches(self):
        found = certify(xor((0.1, 0.0)), classes(CORNERS, [0, 1, 1, 0]))
        assert [found.reaches(level) for level in ("none", "measured", "proven", "bitwise")] == [True] * 3 + [
            False
        ]


def test_residual_networks_reach_every_level():
    data = classes(CORNERS, [0, 1, 1, 0])
    found = certify(residual_xor(), data)
    assert (found.level, found.bound, found.margin, found.notes) == ("bitwise", 0.0, 1.0, ())
    found = certify(residual_xor(0.1), data)
    assert (found.level, found.proven_rows) == ("proven", 4)
    assert 0 < found.bound < 1e-14
    assert certify(residual_xor(), classes(CORNERS, [0, 1, 1, 1])).level == "none"
    # 1 + 2^-53 leads 1 by half a unit in the last place, which the addition takes.
    tiny = nn.Sequential(
        Residual(linear([[0.5, 0.0], [0.0, 1.0 + 2**-50]])), linear([[1.0, 0.0], [0.0, 0.75]])
    )
    ones = Dataset(torch.ones(1, 2).double(), torch.tensor([1]), "classification", (0, 1))
    assert certify(tiny, ones).level == "measured"


def test_a_hook_within_a_block_is_not_proven():
    model, data = residual_xor(0.1), classes(CORNERS, [0, 1, 1, 0])
    handle = model[0].register_forward_hook(lambda module, args, output: output * (1 + 1e-9))
    assert certify(model, data).level == "measured"
    handle.remove()
    assert certify(model, data).level == "proven"


def test_ties_count_as_wrong():
    found = certify(linear([[1.0], [1.0]]), classes([[1.0], [2.0]], [0, 1]))
    assert (found.level, found.wrong, found.margin) == ("none", 2, 0.0)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("column", [0, 1])
def test_outputs_that_are_not_finite_are_wrong(bad, column):
    def output(x):
        result = torch.stack([x[:, 0], 1 - x[:, 0]], 1)
        result[x[:, 0] == 0, column] = bad
        return result

    found = certify(Opaque(output), classes([[1.0], [0.0]], [0, 1]))
    assert (found.level, found.wrong, found.max_error) == ("none", 1, None)
    found = certify(
        Opaque(lambda x: torch.full((len(x), 1), bad).double()), values([[1.0], [0.0]], [0.5, 1.5])
    )
    assert (found.level, found.wrong, found.max_error) == ("none", 2, None)


def test_what_may_overflow_is_not_proven():
    model = linear([[1.7e308, 1.1e308], [0.0, 0.0]])
    found = certify(model, classes([[0.3, 0.7], [-0.1, -0.1]], [0, 1]))
    assert (found.level, found.proven_rows, found.bound) == ("measured", 1, None)


class TestUnknownModules:
    def test_measured_with_a_note(self):
        known = xor()
        found = certify(Opaque(known), classes(CORNERS, [0, 1, 1, 0]))
        assert (found.level, found.wrong, found.proven_rows, found.bitwise_rows) == ("measured", 0, 0, 4)
        assert (found.margin, found.bound) == (1.0, None)
        assert found.notes == (
            "Not proven: the module Opaque is not understood: understood are Sequential and "
            f"{', '.join(graph.LAYERS)}.",
        )

    def test_the_digest_covers_the_class(self):
        class WithEpoch(Opaque):
            def get_extra_state(self):
                return {"epoch": 3}  # no tensor

        model = WithEpoch(xor())
        found = certify(model, classes(CORNERS, [0, 1, 1, 0]))
        architecture = [{"name": "model", "type": "Foreign", "module": WithEpoch.__qualname__}]
        tensors = {
            name: value.numpy() for name, value in model.state_dict().items() if name != "_extra_state"
        }
        assert found.model_digest == model_digest(architecture, tensors)

    def test_shares(self):
        gates = Gates(2, 1, 2)
        gates.shift.fill_(0.5)
        found = certify(Patched(xor(), [gates], shares=True), classes(CORNERS, [0, 1, 1, 0]))
        assert (found.level, found.bitwise_rows, found.margin) == ("measured", 0, 0.5)
        assert "a quotient" in found.notes[0]

    def test_a_refused_layer(self):
        model = nn.Sequential(xor(), nn.Softmax(1))
        found = certify(model, classes(CORNERS, [0, 1, 1, 0]))
        assert found.level == "measured"
        assert "leave it out" in found.notes[0]

    def test_half_precision(self):
        found = certify(xor().bfloat16(), classes(CORNERS, [0, 1, 1, 0]))
        assert (found.level, found.dtype) == ("measured", "bfloat16")
        assert "torch.bfloat16" in found.notes[0]

    def test_a_hook_is_not_proven(self):
        model = xor((0.1, 0.0))
        data = classes(CORNERS, [0, 1, 1, 0])
        handle = model.register_forward_hook(lambda module, args, output: 2 * output)
        assert certify(model, data).level == "measured"
        handle.remove()
        assert certify(model, data).level == "proven"

    def test_neither_is_one_at_a_single_batch_size(self):
        model = xor((0.1, 0.0))
        model.register_forward_hook(
            lambda module, args, output: output * (1e-16 if len(output) == 1 else 1.0)
        )
        found = certify(model, classes(CORNERS, [0, 1, 1, 0]))
        assert (found.level, found.wrong, found.batch_sizes) == ("measured", 0, (4, 1))
        assert found.proven_rows < 4

    def test_a_model_without_parameters(self):
        found = certify(nn.ReLU(), classes(torch.eye(2), [0, 1]))
        assert (found.level, found.dtype) == ("bitwise", "float64")


class TestTheModelIsLeftAlone:
    def test_every_training_flag_is_restored(self):
        model = nn.Sequential(xor(), nn.Dropout(0.5), nn.Sequential(nn.Dropout(0.1)))
        model.train()
        model[2].eval()
        flags = [module.training for module in model.modules()]
        assert certify(model, classes(CORNERS, [0, 1, 1, 0])).level == "bitwise"
        assert [module.training for module in model.modules()] == flags

    def test_also_after_an_error(self):
        model = xor().train()
        with pytest.raises(InputError):
            certify(model, classes(torch.eye(3), [0, 1, 0]))
        assert all(module.training for module in model.modules())

    def test_dropout_is_off(self):
        model = nn.Sequential(nn.Dropout(0.9), xor()).train()
        assert certify(model, classes(CORNERS, [0, 1, 1, 0])).level == "bitwise"

    def test_layers_in_place_do_not_change_the_data(self):
        data = classes(torch.tensor([[-1.0, 1.0], [1.0, -1.0]], dtype=torch.float64), [1, 0])
        before = data.x.clone()
        found = certify(nn.Sequential(nn.LeakyReLU(0.5, inplace=True), linear(np.eye(2).tolist())), data)
        assert torch.equal(data.x, before)
        assert (found.level, found.margin) == ("proven", 1.5)

    def test_gradients_are_not_recorded(self):
        model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2)).double()
        recorded = []
        model.register_forward_hook(lambda module, args, output: recorded.append(output.requires_grad))
        certify(model, classes(CORNERS, [0, 1, 1, 0]))
        assert recorded
        assert not any(recorded)


class TestData:
    @pytest.mark.parametrize("convert", [torch.Tensor.numpy, torch.Tensor.tolist, lambda x: x])
    def test_a_pair_will_do(self, convert):
        expected = certify(xor(), classes(CORNERS, [0, 1, 1, 0]))
        assert certify(xor(), (convert(CORNERS), [0, 1, 1, 0])) == expected

    def test_anything_else_is_refused(self):
        with pytest.raises(DataError, match="Dataset or a pair"):
            certify(xor(), CORNERS)

    def test_rows_that_repeat_are_counted(self):
        data = classes(torch.cat([CORNERS, CORNERS[:2]]), [0, 1, 1, 0, 0, 1])
        found = certify(xor(), data)
        assert (found.rows, found.merged, found.level) == (6, 2, "bitwise")

    def test_images(self):
        model = nn.Sequential(nn.Flatten(), xor())
        assert certify(model, classes(CORNERS.reshape(4, 1, 2), [0, 1, 1, 0])).level == "bitwise"

    def test_one_class_has_no_margin(self):
        found = certify(linear([[1.0, 1.0]]), classes(CORNERS[1:3], ["only", "only"]))
        assert (found.level, found.margin) == ("bitwise", None)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.uint8, torch.int64])
    def test_inputs_are_converted_to_the_dtype_of_the_model(self, dtype):
        assert certify(xor(), classes(CORNERS.to(dtype), [0, 1, 1, 0])).level == "bitwise"

    def test_float32_models(self):
        found = certify(xor((0.1, 0.0)).float(), classes(CORNERS, [0, 1, 1, 0]))
        assert (found.level, found.dtype) == ("proven", "float32")
        assert 1e-9 < found.bound < 1e-5


class TestRegression:
    DATA = values([[0.0], [1.0], [2.0]], [0.0, 0.5, 8.0])

    def model(self, error):
        """Right at 0 and 1, and wrong by the given amount at 2."""
        return nn.Sequential(linear([[1.0], [1.0]], [0.0, -1.0]), nn.ReLU(), linear([[0.5, 7.0 + error]]))

    def test_bitwise(self):
        found = certify(self.model(0.0), self.DATA)
        assert (found.level, found.max_error, found.bound, found.margin) == ("bitwise", 0.0, 0.0, None)
        assert found.tolerance == 8e-8  # 1e-8 of the target range

    @pytest.mark.parametrize(
        ("error", "level"), [(2.0**-24, "proven"), (2.0**-23, "none"), (-(2.0**-23), "none")]
    )
    def test_the_default_tolerance(self, error, level):
        found = certify(self.model(error), self.DATA)
        assert (found.level, found.wrong, found.max_error) == (level, int(level == "none"), abs(error))

    def test_a_tolerance_is_in_units_of_the_target_and_included(self):
        assert certify(self.model(0.25), self.DATA, tolerance=0.25).level == "proven"
        assert certify(self.model(0.25), self.DATA, tolerance=0.2499).level == "none"
        assert certify(self.model(0.0), self.DATA, tolerance=0.0).level == "bitwise"

    def test_within_the_tolerance_by_less_than_rounding_is_measured(self):
        model = linear([[0.1, 0.2]])
        data = values([[1.0, 1.0]], [0.0])
        output, error = running_bound(graph.stages(model), data.x)
        needed = output.item() + 2 * error.item()
        assert certify(model, data, tolerance=output.item()).level == "measured"
        assert certify(model, data, tolerance=needed * (1 - 2.0**-52)).level == "measured"
        found = certify(model, data, tolerance=needed)
        assert (found.level, found.max_error, found.bound) == ("proven", output.item(), 2 * error.item())

    def test_every_column_counts(self):
        data = values(CORNERS, CORNERS * 3)
        assert certify(linear([[3.0, 0.0], [0.0, 3.0]]), data).level == "bitwise"
        assert certify(linear([[3.0, 0.0], [0.0, 3.1]]), data).wrong == 2

    def test_classification_has_no_tolerance(self):
        with pytest.raises(InputError, match="a tolerance is for regression"):
            certify(xor(), classes(CORNERS, [0, 1, 1, 0]), tolerance=0.1)


class TestOutputsThatDoNotFit:
    def test_inputs_of_another_width(self):
        with pytest.raises(InputError, match=r"does not take inputs of shape \(3,\)"):
            certify(xor(), classes(torch.eye(3), [0, 1, 0]))

    def test_another_number_of_outputs(self):
        with pytest.raises(InputError, match=r"outputs have shape \(4, 2\), but the targets \(4, 3\)"):
            certify(xor(), classes(CORNERS, [0, 1, 2, 0]))

    def test_a_vector_of_outputs(self):
        with pytest.raises(InputError, match=r"outputs have shape \(4,\)"):
            certify(Opaque(lambda x: x[:, 0]), values(CORNERS, [0.0, 0.5, 1.0, 1.0]))

    def test_rows_summarised_into_one(self):
        model = Opaque(lambda x: x[:, :1].mean(0, keepdim=True))
        with pytest.raises(InputError, match=r"outputs have shape \(1, 1\), but the targets \(4, 1\)"):
            certify(model, values(CORNERS, [0.5] * 4))

    def test_not_a_tensor(self):
        with pytest.raises(InputError, match="the model returns tuple"):
            certify(Opaque(lambda x: (x, x)), classes(CORNERS, [0, 1, 1, 0]))


class TestBatches:
    def test_the_second_batch_size_counts_too(self):
        # Right only on a whole batch.
        model = Opaque(lambda x: torch.stack([1 - x[:, 0], x[:, 0]], 1) * (1 if len(x) == 6 else -1))
        found = certify(model, classes([[0.0], [1.0]] * 3, [0, 1] * 3))
        assert (found.level, found.wrong, found.batch_sizes) == ("none", 6, (6, 2))

    def test_many_batches_tally_up(self, monkeypatch):
        # `isthmus.certify` is the function; the module has the same name.
        monkeypatch.setattr(import_module("isthmus.certify"), "WORKSPACE", 20)
        x = torch.arange(101, dtype=torch.float64)[:, None]
        model = nn.Sequential(linear([[-1.0], [1.0]], [50.0, -50.0]))
        data = classes(x, (x[:, 0] > 50).long())
        told = []
        found = certify(model, data, on_progress=lambda what, part: told.append(part))
        assert found.batch_sizes == (10, 4)
        assert (found.rows, found.wrong, found.proven_rows, found.bitwise_rows) == (101, 1, 100, 0)
        assert told == sorted(told)
        assert (len(told), told[-1]) == (11, 1.0)


class TestDigests:
    def digests(self, model, data):
        found = certify(model, data)
        return found.model_digest, found.data_digest

    def test_repeat(self):
        data = classes(CORNERS, [0, 1, 1, 0])
        assert self.digests(xor(), data) == self.digests(xor(), (CORNERS.clone(), [0, 1, 1, 0]))

    def test_any_bit_of_any_tensor(self):
        data = classes(CORNERS, [0, 1, 1, 0])
        model_digest, data_digest = self.digests(xor(), data)
        seen = {model_digest}
        for name in xor().state_dict():
            for bit in (0, 1, 40, 63):
                model = xor()
                words = model.state_dict()[name].view(torch.int64).view(-1)
                words[-1] ^= torch.tensor(1 << bit if bit < 63 else -(2**63))
                changed, same = self.digests(model, data)
                assert same == data_digest
                seen.add(changed)
        assert len(seen) == 1 + 4 * 4

    def test_the_architecture(self):
        data = classes(CORNERS, [0, 1, 1, 0])
        leaky, other = (nn.Sequential(xor(), nn.LeakyReLU(slope)) for slope in (0.1, 0.2))
        assert len({self.digests(model, data)[0] for model in (xor(), leaky, other, xor().float())}) == 4

    def test_any_row(self):
        digest = self.digests(xor(), (CORNERS, [0, 1, 1, 0]))[1]
        seen = {digest, self.digests(xor(), (CORNERS, [0, 1, 1, 1]))[1]}
        for row in range(4):
            x = CORNERS.clone()
            x[row, 0] += 2.0**-52
            seen.add(self.digests(xor(), (x, [0, 1, 1, 0]))[1])
        seen.add(self.digests(xor(), (CORNERS[[1, 0, 2, 3]], [1, 0, 1, 0]))[1])
        seen.add(self.digests(xor(), (CORNERS[:3], [0, 1, 1]))[1])
        assert len(seen) == 8


@pytest.mark.parametrize(("lead", "proven"), [(2.0, 0), (2.0 + 2.0**-51, 1)])
def test_a_lead_must_exceed_what_rounding_may_take(lead, proven):
    tally = import_module("isthmus.certify")._Tally()
    output = torch.tensor([[lead, 0.0]], dtype=torch.float64)
    tally.add(output, torch.full_like(output, 0.5), output, torch.tensor([0]), 0.0)
    assert (tally.wrong, tally.proven, tally.bound) == (0, proven, 2.0)


def test_decision_margins():
    output = torch.tensor([[3.0, 1.0, 2.5], [0.0, 1.0, 1.0]], dtype=torch.float64)
    error = torch.tensor([[0.1, 0.2, 0.0], [0.0, 0.0, 0.5]], dtype=torch.float64)
    lead, spread = decision_margins(output, error, torch.tensor([0, 1]))
    assert lead.tolist() == [[math.inf, 2.0, 0.5], [1.0, math.inf, 0.0]]
    torch.testing.assert_close(spread, torch.tensor([[0.4, 0.6, 0.2], [0.0, 0.0, 1.0]], dtype=torch.float64))
