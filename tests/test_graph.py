"""Every listed layer as a stage, and every module outside the list refused by name."""

import json
import math
from collections import OrderedDict
from functools import reduce

import numpy as np
import pytest
import torch
from torch import nn

from isthmus import graph
from isthmus.errors import UnsupportedModel
from isthmus.graph import LAYERS, REFUSED, Clip, Dense, Flatten, Gated, Leaky, Paired, Smooth, Sum
from isthmus.nets.mirrored import MirroredConv1d, MirroredConv2d, MirroredConv3d, MirroredLinear
from isthmus.nets.paired import PairedHead
from isthmus.nets.patched import Gates, Patched
from isthmus.nets.residual import Residual
from tests.arithmetic.gated import evaluate_gates, gates_near


def gates(inputs=6, outputs=6, tilted=False, count=2):
    """Gates near the origin, drawn from one generator."""
    rng = np.random.default_rng(1)
    return gates_near(rng, rng.normal(size=(5, inputs)), count, outputs, tilted)


LISTED = [
    nn.Linear(6, 4),
    nn.Linear(6, 4, bias=False),
    PairedHead(6, 4),
    PairedHead(6, 4, bias=False),
    nn.Flatten(),
    nn.Hardtanh(),
    nn.Hardtanh(-0.1, 0.3),
    nn.Hardtanh(0, 2),
    nn.ReLU(),
    nn.ReLU(inplace=True),
    nn.ReLU6(),
    nn.LeakyReLU(),
    nn.LeakyReLU(0),
    nn.LeakyReLU(1.0),
    nn.Tanh(),
    nn.Sigmoid(),
    nn.Identity(),
    nn.Dropout(0.3).eval(),
    Residual(nn.Hardtanh(-0.1, 0.3), nn.Identity(), nn.LeakyReLU(0.1)),
    Residual(nn.Linear(6, 4), nn.ReLU(inplace=True), nn.Sequential(nn.Linear(4, 6))),
    Patched(nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 6)), [gates(), gates(tilted=True)]),
]
REFUSABLE = {
    "BatchNorm1d": nn.BatchNorm1d(6),
    "LayerNorm": nn.LayerNorm(6),
    "GELU": nn.GELU(),
    "Softmax": nn.Softmax(1),
    "LogSoftmax": nn.LogSoftmax(1),
    "MirroredLinear": MirroredLinear(6, 4),
    "MirroredConv1d": MirroredConv1d(6, 4, 1),
    "MirroredConv2d": MirroredConv2d(6, 4, 1),
    "MirroredConv3d": MirroredConv3d(6, 4, 1),
}


class Doubled(nn.Linear):
    """A Linear that is not one."""

    def forward(self, x):
        return 2 * super().forward(x)


class Beside(nn.Module):
    """A container that is not a Sequential."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(6, 6)

    def forward(self, x):
        return x + self.inner(x)


def apply(stage, x):
    """What a stage says, in the plainest terms."""
    match stage:
        case Dense(weight, bias):
            return x @ weight.T + (0 if bias is None else bias)
        case Paired(weight, bias):
            return (x[:, : weight.shape[1]] - x[:, weight.shape[1] :]) @ weight.T + (
                0 if bias is None else bias
            )
        case Clip(low, high):
            return torch.where(x < low, low, torch.where(x > high, high, x))
        case Leaky(slope):
            return torch.where(x < 0, slope * x, x)
        case Smooth(function):
            return 1 - 2 / (1 + torch.exp(2 * x)) if function == "tanh" else 1 / (1 + torch.exp(-x))
        case Flatten():
            return x.reshape(len(x), -1)
        case Gated():
            rng = np.random.default_rng(0)
            return torch.from_numpy(evaluate_gates(stage, x.detach().numpy(), rng))
        case Sum(branches):
            return sum(reduce(lambda value, each: apply(each, value), branch, x) for branch in branches).to(x)


def test_all_layers_are_tested():
    assert {type(module).__name__ for module in LISTED} == set(LAYERS)
    assert set(REFUSABLE) == set(REFUSED)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("module", LISTED, ids=str)
def test_the_stage_reproduces_the_module(module, dtype):
    torch.manual_seed(0)
    module = module.to(dtype)
    # A Linear beside it settles the dtype, as in every network.
    model = nn.Sequential(nn.Linear(6, 6, dtype=dtype), module)
    shape = (9, 2, 3) if isinstance(module, nn.Flatten) else (9, 6)
    x = 4 * torch.randn(shape, dtype=dtype)
    expected = x
    for stage in graph.stages(model)[1:]:
        expected = apply(stage, expected)
    assert len(graph.stages(model)) == 1 + (not isinstance(module, nn.Identity | nn.Dropout))
    found = module(x.clone())
    if isinstance(module, nn.Linear | PairedHead | nn.Tanh | nn.Sigmoid | Residual | Patched):
        torch.testing.assert_close(found, expected)
    else:
        assert torch.equal(found, expected)


@pytest.mark.parametrize(
    "module", [each for each in LISTED if type(each) not in {Residual, Patched}], ids=str
)
def test_a_description_is_json_and_rebuilds_the_module(module):
    [description] = json.loads(json.dumps(graph.describe(nn.Sequential(module)), allow_nan=False))
    assert description.pop("name") == "0"
    rebuilt = LAYERS[description.pop("type")].module(**description).eval()
    rebuilt.load_state_dict(module.state_dict())
    x = torch.randn(5, 6)
    assert type(rebuilt) is type(module)
    assert torch.equal(rebuilt(x.clone()), module(x.clone()))


def test_options_are_described_alike_however_they_were_given():
    assert json.dumps(graph.describe(nn.Hardtanh(0, 2))) == json.dumps(graph.describe(nn.Hardtanh(0.0, 2.0)))


@pytest.mark.parametrize("name", REFUSABLE)
def test_known_refusals_name_the_module_and_the_reason(name):
    model = nn.Sequential(nn.Linear(6, 6), nn.Sequential(REFUSABLE[name])).eval()
    for question in (graph.stages, graph.describe):
        with pytest.raises(UnsupportedModel) as refusal:
            question(model)
        assert name in str(refusal.value)
        assert REFUSED[name] in str(refusal.value)


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (nn.Conv2d(1, 1, 3), "Conv2d is not understood: understood are Sequential and Linear, "),
        (nn.Softplus(), "Softplus is not understood"),
        (Doubled(6, 6), "Doubled is not understood"),
        (Beside(), "Beside is not understood"),
        (type("Residual", (Residual,), {})(nn.Linear(6, 6)), "Residual is not understood"),
        (Residual(nn.Linear(6, 6), nn.ModuleList([nn.ReLU()])), "ModuleList is not understood"),
        (Residual(nn.Linear(6, 6), Doubled(6, 6)), "Doubled is not understood"),
        (Residual(nn.Flatten(), nn.Linear(6, 6)), "Flatten is not understood inside a Residual"),
        (Residual(Residual(nn.Sequential(nn.Flatten()))), "Flatten is not understood inside a Residual"),
        (Residual(), "a Residual without layers is not understood"),
        (Residual(nn.Sequential()), "a Residual without layers is not understood"),
        (Residual(nn.Linear(6, 1)), "keeps the shape, but this makes 1 values of 6"),
        (Residual(nn.Linear(6, 5), Residual(nn.Linear(5, 5))), "but this makes 5 values of 6"),
        (Residual(Residual(nn.Linear(6, 6)), nn.Linear(6, 1)), "but this makes 1 values of 6"),
        (Residual(nn.ReLU(inplace=True), nn.Linear(6, 6)), "the ReLU that a Residual begins with"),
        (Residual(nn.Identity(), nn.Hardtanh(inplace=True)), "the Hardtanh that a Residual begins with"),
        (Residual(nn.Linear(6, 6), nn.Dropout(0.5)).train(), "Dropout is random in training mode"),
        (Patched(nn.Linear(6, 6), [gates()], shares=True), "a Patched with shares is not understood"),
        (Patched(nn.Conv2d(1, 1, 3), [gates()]), "Conv2d is not understood: understood are Sequential and"),
        (Patched(nn.Sequential(Doubled(6, 6)), [gates()]), "Doubled is not understood"),
        (Patched(Patched(Beside(), [gates()]), [gates()]), "Beside is not understood"),
        (Patched(nn.Linear(6, 6), [nn.Linear(6, 6)]), "the patch Linear is not understood"),
        (Patched(nn.Linear(6, 6), [type("Gates", (Gates,), {})(6, 1, 6)]), "the patch Gates is not"),
        (Patched(nn.Linear(6, 6), [gates(outputs=1)]), "make 1 values of 6, and the base 6 of 6"),
        (Patched(nn.Linear(6, 4), [gates(4, 4)]), "make 4 values of 4, and the base 4 of 6"),
        (Patched(nn.ReLU(), [gates(outputs=1)]), "make 1 values of 6, and the base 6 of 6"),
        (type("Patched", (Patched,), {})(nn.Linear(6, 6), [gates()]), "Patched is not understood"),
        (Residual(Patched(nn.Linear(6, 1), [gates(6, 1)])), "but this makes 1 values of 6"),
        (Residual(Patched(nn.Sequential(nn.Flatten()), [gates()])), "Flatten is not understood inside"),
        (Residual(Patched(nn.ReLU(inplace=True), [gates()])), "the ReLU that a Residual begins with"),
        (nn.utils.parametrizations.orthogonal(nn.Linear(6, 6)), "ParametrizedLinear is not understood"),
        (nn.ModuleList([nn.Linear(6, 6)]), "ModuleList is not understood"),
        (nn.Flatten(2), "Flatten is understood from dimension 1"),
        (nn.Flatten(1, 2), "Flatten is understood from dimension 1"),
        (nn.Hardtanh(0.0, math.inf), "Hardtanh is understood between finite bounds only"),
        (nn.Hardtanh(-math.inf, 1.0), "Hardtanh is understood between finite bounds only"),
        (nn.LeakyReLU(-0.5), "LeakyReLU is understood with a slope from 0 to 1 only, not -0.5"),
        (nn.LeakyReLU(1.5), "LeakyReLU is understood with a slope from 0 to 1 only, not 1.5"),
        (nn.LeakyReLU(math.nan), "LeakyReLU is understood with a slope from 0 to 1 only, not nan"),
        (nn.Dropout(0.5).train(), "Dropout is random in training mode"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_is_not_understood_is_refused(module, message):
    for model in (module, nn.Sequential(nn.Linear(6, 6), module)):
        for question in (graph.stages, graph.describe):
            with pytest.raises(UnsupportedModel, match=message):
                question(model)


def test_a_disguised_class_is_refused():
    impostor = type("Linear", (nn.Linear,), {})
    with pytest.raises(UnsupportedModel, match="the module Linear is not understood"):
        graph.stages(impostor(2, 2))


@pytest.mark.parametrize("dtype", [torch.bfloat16], ids=str)
def test_other_dtypes_have_no_stages(dtype):
    with pytest.raises(UnsupportedModel, match=f"not {dtype}"):
        graph.stages(nn.Linear(2, 2).to(dtype))


def test_names_are_those_of_the_state_dict():
    body = nn.Sequential(
        OrderedDict(first=nn.Linear(6, 5), act=nn.ReLU(), rest=nn.Sequential(nn.Linear(5, 4)))
    )
    model = nn.Sequential(nn.Flatten(), body, nn.Sequential(), nn.Linear(4, 3, bias=False))
    leaves = [(leaf["name"], leaf["type"]) for leaf in graph.describe(model)]
    assert leaves == [
        ("0", "Flatten"),
        ("1.first", "Linear"),
        ("1.act", "ReLU"),
        ("1.rest.0", "Linear"),
        ("3", "Linear"),
    ]
    prefixes = [key.rpartition(".")[0] for key in model.state_dict()]
    assert list(dict.fromkeys(prefixes)) == [name for name, kind in leaves if kind == "Linear"]


def test_a_single_layer_has_no_name():
    assert [leaf["name"] for leaf in graph.describe(nn.Linear(2, 3))] == [""]
    assert graph.describe(nn.Sequential()) == []


def test_a_module_in_several_places_is_several_stages():
    act, square = nn.ReLU(), nn.Linear(3, 3)
    model = nn.Sequential(nn.Linear(2, 3), act, square, act, nn.Sequential(square, act))
    assert [type(stage) for stage in graph.stages(model)] == [Dense, Clip] * 3
    assert [leaf["name"] for leaf in graph.describe(model)] == ["0", "1", "2", "3", "4.0", "4.1"]
    x = torch.randn(5, 2)
    expected = x
    for stage in graph.stages(model):
        expected = apply(stage, expected)
    torch.testing.assert_close(model(x), expected)


ACT = nn.LeakyReLU(0.1)
BODY = OrderedDict(up=nn.Linear(3, 5), act=ACT, rest=nn.Sequential(nn.Linear(5, 3)), again=ACT)
BLOCKS = nn.Sequential(
    Residual(BODY),
    nn.Sequential(nn.Identity(), Residual(nn.Linear(3, 7), Residual(ACT, nn.Linear(7, 7)), nn.Linear(7, 3))),
    nn.Linear(3, 4),
    ACT,
    nn.Linear(4, 2),
)


def test_residual_blocks_are_described_from_within():
    described = json.loads(json.dumps(graph.describe(BLOCKS)))
    assert [(leaf["name"], leaf["type"]) for leaf in described] == [
        ("0", "Residual"),
        ("1.0", "Identity"),
        ("1.1", "Residual"),
        ("2", "Linear"),
        ("3", "LeakyReLU"),
        ("4", "Linear"),
    ]
    assert described[0] == {
        "name": "0",
        "type": "Residual",
        "layers": [
            {"name": "0.up", "type": "Linear", "in_features": 3, "out_features": 5, "bias": True},
            {"name": "0.act", "type": "LeakyReLU", "negative_slope": 0.1},
            {"name": "0.rest.0", "type": "Linear", "in_features": 5, "out_features": 3, "bias": True},
            {"name": "0.again", "type": "LeakyReLU", "negative_slope": 0.1},
        ],
    }
    first, second, third = described[2]["layers"]
    assert (first["name"], second["name"], third["name"]) == ("1.1.0", "1.1.1", "1.1.2")
    assert [leaf["name"] for leaf in second["layers"]] == ["1.1.1.0", "1.1.1.1"]
    [alone] = graph.describe(BLOCKS[0])
    assert (alone["name"], [leaf["name"] for leaf in alone["layers"]]) == (
        "",
        ["up", "act", "rest.0", "again"],
    )


def test_a_residual_is_one_stage_with_stages_of_its_own():
    found = graph.stages(BLOCKS)
    assert [type(stage) for stage in found] == [Sum, Sum, Dense, Leaky, Dense]
    (nothing, first), (_, second) = found[0].branches, found[1].branches
    assert nothing == ()
    assert [type(stage) for stage in first] == [Dense, Leaky, Dense, Leaky]
    assert [type(stage) for stage in second] == [Dense, Sum, Dense]
    _, within = second[1].branches
    assert [type(stage) for stage in within] == [Leaky, Dense]
    x = torch.randn(5, 3)
    expected = x
    for stage in found:
        expected = apply(stage, expected)
    torch.testing.assert_close(BLOCKS(x), expected)
    # Constants are held in the dtype inside, too.
    assert within[0].slope == torch.tensor(0.1).item()


def test_a_block_in_several_places_is_several_stages():
    block = Residual(nn.Linear(3, 3), ACT)
    model = nn.Sequential(block, block, Residual(block, block))
    assert [leaf["name"] for leaf in graph.describe(model)] == ["0", "1", "2"]
    assert [leaf["name"] for leaf in graph.describe(model)[2]["layers"]] == ["2.0", "2.1"]
    assert [len(stage.branches[1]) for stage in graph.stages(model)] == [2, 2, 2]


PATCHED = Patched(
    nn.Sequential(nn.Flatten(), nn.Linear(6, 5), Residual(ACT, nn.Linear(5, 5)), nn.Linear(5, 3)),
    [gates(outputs=3, count=4), gates(outputs=3, tilted=True)],
)


def test_a_patched_model_is_described_from_within():
    [described] = json.loads(json.dumps(graph.describe(PATCHED)))
    assert (described["name"], described["type"]) == ("", "Patched")
    assert [(leaf["name"], leaf["type"]) for leaf in described["base"]] == [
        ("base.0", "Flatten"),
        ("base.1", "Linear"),
        ("base.2", "Residual"),
        ("base.3", "Linear"),
    ]
    assert [leaf["name"] for leaf in described["base"][2]["layers"]] == ["base.2.0", "base.2.1"]
    common = {"type": "Gates", "inputs": 6, "outputs": 3}
    assert described["patches"] == [
        {
            "name": "patches.0",
            "gates": 4,
            "tilted": False,
            "directions": PATCHED.patches[0].directions,
            **common,
        },
        {
            "name": "patches.1",
            "gates": 2,
            "tilted": True,
            "directions": PATCHED.patches[1].directions,
            **common,
        },
    ]
    [_, within] = graph.describe(nn.Sequential(nn.Identity(), PATCHED))
    assert (within["name"], within["base"][1]["name"]) == ("1", "1.base.1")
    assert [patch["name"] for patch in within["patches"]] == ["1.patches.0", "1.patches.1"]
    [one] = graph.describe(Patched(nn.Linear(6, 6), [gates()]))
    assert [leaf["name"] for leaf in one["base"]] == ["base"]
    [outer] = graph.describe(Patched(PATCHED, [gates(outputs=3)]))
    [inner] = outer["base"]
    assert (inner["name"], inner["base"][0]["name"], inner["patches"][1]["name"]) == (
        "base",
        "base.base.0",
        "base.patches.1",
    )


def test_all_tensors_of_a_patched_model_are_described():
    model = nn.Sequential(PATCHED, nn.ReLU(), Patched(nn.Sequential(), [gates(3, 3, True)]))
    names = [name.rpartition(".")[0] for name in model.state_dict()]
    leaves = []

    def collect(layers):
        for layer in layers:
            leaves.append(layer["name"])
            collect([*layer.get("layers", ()), *layer.get("base", ()), *layer.get("patches", ())])

    collect(graph.describe(model))
    assert set(names) <= set(leaves)


def test_a_patched_model_is_a_sum_of_branches():
    [found] = graph.stages(PATCHED)
    base, first, second = found.branches
    assert [type(stage) for stage in base] == [Flatten, Dense, Sum, Dense]
    assert [type(stage) for stage in (*first, *second)] == [Gated, Gated]
    assert first[0].tilt is None
    assert second[0].tilt.shape == (2, 3, 6)
    assert base[2].branches[1][0].slope == torch.tensor(0.1).item()  # constants are held inside, too
    # What gates hold stays in float64, whatever the dtype of the base.
    cast = graph.cast(PATCHED, torch.float16)
    assert graph.dtype_of(cast) == torch.float16
    assert graph.stages(cast)[0].branches[1][0].normal.dtype == torch.float64
    assert graph.dtype_of(Patched(nn.ReLU(), [gates()])) == torch.float64


def test_widths_of_gates_are_those_of_their_relus():
    assert graph.widths(graph.stages(PATCHED)) == (5, 8, 4, 4, 2)
    assert graph.widths(graph.stages(nn.Sequential(PATCHED, nn.Linear(3, 2)))) == (5, 8, 4, 4, 2)
    assert graph.widest(graph.stages(PATCHED)) == 8
    assert graph.widest(graph.stages(Patched(nn.Linear(6, 6), [gates(tilted=True, count=3)]))) == 18
    assert graph.widest(graph.stages(nn.Sequential(nn.ReLU()))) == 0


def test_gates_in_another_dtype_are_refused():
    model = Patched(nn.Linear(6, 6), [gates()])
    model.patches[0].center = model.patches[0].center.float()
    with pytest.raises(UnsupportedModel, match="Gates are understood in float64 only"):
        graph.stages(model)


class Net(nn.Module):
    """A class of the user's."""


def test_what_is_not_understood_has_its_class_for_architecture():
    net = Net()
    for model, name in [
        (net, "Net"),
        (Patched(net, [gates()]), "Patched(Net)"),
        (Patched(Patched(net, [gates()]), [gates()]), "Patched(Patched(Net))"),
        (Patched(nn.Linear(6, 6), [gates()], shares=True), "Patched(Linear, shares)"),
        (nn.Linear(6, 6).bfloat16(), "Linear"),
    ]:
        assert graph.architecture(model) == [{"name": "model", "type": "Foreign", "module": name}]
    assert graph.architecture(PATCHED) == graph.describe(PATCHED)


def test_evaluation_mode_is_for_a_while():
    model = nn.Sequential(nn.Dropout(0.5), nn.Sequential(nn.Dropout(0.5)))
    model[0].eval()
    with graph.evaluating(model):
        assert not any(module.training for module in model.modules())
    assert [module.training for module in model.modules()] == [True, False, True, True]


def test_constants_are_those_of_the_dtype():
    model = nn.Sequential(nn.Linear(1, 1), nn.Hardtanh(-0.1, 0.3), nn.LeakyReLU(0.01))
    _, clip, leaky = graph.stages(model)
    assert (clip.low, clip.high, leaky.slope) == tuple(torch.tensor([-0.1, 0.3, 0.01]).tolist())
    _, clip, leaky = graph.stages(model.double())
    assert (clip.low, clip.high, leaky.slope) == (-0.1, 0.3, 0.01)


def test_widths_are_those_of_the_hidden_layers():
    model = nn.Sequential(nn.Linear(2, 7), nn.ReLU(), nn.Linear(7, 5), nn.ReLU(), nn.Linear(5, 3))
    assert graph.widths(graph.stages(model)) == (7, 5)
    assert graph.widths(graph.stages(nn.Linear(2, 7))) == ()


def test_widths_of_a_residual_network_are_those_of_its_blocks():
    assert graph.widths(graph.stages(BLOCKS)) == (5, 7, 4)
    assert graph.widths(graph.stages(BLOCKS[:1])) == (5,)
    tied = graph.stages(nn.Sequential(nn.Linear(3, 3)))
    assert graph.widths([*tied, *tied, Sum(((), (*tied, *tied, *tied)))]) == (3, 3, 3)
