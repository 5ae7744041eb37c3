"""Every listed layer as a stage, and every module outside the list refused by name."""

import json
import math
from collections import OrderedDict

import pytest
import torch
from torch import nn

from isthmus import graph
from isthmus.errors import UnsupportedModel
from isthmus.graph import LAYERS, REFUSED, Clip, Dense, Flatten, Leaky, Skip, Smooth
from isthmus.nets.residual import Residual

LISTED = [
    nn.Linear(6, 4),
    nn.Linear(6, 4, bias=False),
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
]
REFUSABLE = {
    "BatchNorm1d": nn.BatchNorm1d(6),
    "LayerNorm": nn.LayerNorm(6),
    "GELU": nn.GELU(),
    "Softmax": nn.Softmax(1),
    "LogSoftmax": nn.LogSoftmax(1),
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
        case Clip(low, high):
            return torch.where(x < low, low, torch.where(x > high, high, x))
        case Leaky(slope):
            return torch.where(x < 0, slope * x, x)
        case Smooth(function):
            return 1 - 2 / (1 + torch.exp(2 * x)) if function == "tanh" else 1 / (1 + torch.exp(-x))
        case Flatten():
            return x.reshape(len(x), -1)
        case Skip(stages):
            inner = x
            for each in stages:
                inner = apply(each, inner)
            return x + inner


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
    if isinstance(module, nn.Linear | nn.Tanh | nn.Sigmoid | Residual):
        torch.testing.assert_close(found, expected)
    else:
        assert torch.equal(found, expected)


@pytest.mark.parametrize("module", [each for each in LISTED if type(each) is not Residual], ids=str)
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
    assert [type(stage) for stage in found] == [Skip, Skip, Dense, Leaky, Dense]
    assert [type(stage) for stage in found[0].stages] == [Dense, Leaky, Dense, Leaky]
    assert [type(stage) for stage in found[1].stages] == [Dense, Skip, Dense]
    assert [type(stage) for stage in found[1].stages[1].stages] == [Leaky, Dense]
    x = torch.randn(5, 3)
    expected = x
    for stage in found:
        expected = apply(stage, expected)
    torch.testing.assert_close(BLOCKS(x), expected)
    # Constants are held in the dtype inside, too.
    assert found[1].stages[1].stages[0].slope == torch.tensor(0.1).item()


def test_a_block_in_several_places_is_several_stages():
    block = Residual(nn.Linear(3, 3), ACT)
    model = nn.Sequential(block, block, Residual(block, block))
    assert [leaf["name"] for leaf in graph.describe(model)] == ["0", "1", "2"]
    assert [leaf["name"] for leaf in graph.describe(model)[2]["layers"]] == ["2.0", "2.1"]
    assert [len(stage.stages) for stage in graph.stages(model)] == [2, 2, 2]


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
    assert graph.widths([*tied, *tied, Skip((*tied, *tied, *tied))]) == (3, 3, 3)
