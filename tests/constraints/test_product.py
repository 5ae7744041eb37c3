"""Products: which tensor is in which set."""

import math

import pytest
import torch
from torch import Tensor, nn

from isthmus.constraints import Ball, Box, FloorAndRatio, Product
from isthmus.errors import InputError

from .oracles import compiled, same_bits


def two_blocks() -> dict[str, Tensor]:
    """The weights of a model with modules in modules."""
    torch.manual_seed(0)
    model = nn.ModuleDict({
        "layer1": nn.ModuleDict({"inner": nn.Linear(3, 4), "outer": nn.Linear(4, 3)}),
        "layer10": nn.Linear(3, 3),
        "fc": nn.Linear(3, 1),
    })
    return {name: tensor.detach() for name, tensor in model.named_parameters()}


PRODUCT = Product({
    "layer1.inner": Ball(0.5),
    "layer1.outer": Ball(0.25, joint=False),
    "layer10": Box(-0.1, 0.1),
    "fc.weight": FloorAndRatio(0.5, 2.0),
    "fc.bias": Ball(0.0),
})


def far(center: dict[str, Tensor]) -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(1)
    return {name: 10 * torch.randn(tensor.shape, generator=random) for name, tensor in center.items()}


def split(named: dict[str, Tensor], module: str) -> dict[str, Tensor]:
    """Spelled out, and not by the rule that the library has."""
    return {
        "layer1.inner": lambda: {n: named[n] for n in ("layer1.inner.weight", "layer1.inner.bias")},
        "layer1.outer": lambda: {n: named[n] for n in ("layer1.outer.weight", "layer1.outer.bias")},
        "layer10": lambda: {n: named[n] for n in ("layer10.weight", "layer10.bias")},
        "fc.weight": lambda: {"fc.weight": named["fc.weight"]},
        "fc.bias": lambda: {"fc.bias": named["fc.bias"]},
    }[module]()


def test_every_part_projects_its_own_tensors() -> None:
    center = two_blocks()
    point = far(center)
    found = PRODUCT.at(center).project(point)
    assert found.keys() == center.keys()
    assert all(not torch.equal(found[name], point[name]) for name in point)
    for module, part in PRODUCT.parts.items():
        alone = part.at(split(center, module)).project(split(point, module))
        assert all(same_bits(found[name], tensor) for name, tensor in alone.items())
    again = PRODUCT.at(center).project(found)
    assert all(same_bits(again[name], found[name]) for name in found)


def test_distances_of_parts_add_up_in_squares() -> None:
    center = two_blocks()
    point = far(center)
    parts = [
        part.at(split(center, module)).distance(split(point, module))
        for module, part in PRODUCT.parts.items()
    ]
    assert min(parts) > 0
    assert PRODUCT.at(center).distance(point) == pytest.approx(math.hypot(*parts), rel=1e-12)
    assert PRODUCT.at(center).distance(PRODUCT.at(center).project(point)) == 0


def test_every_part_has_normals_of_its_own() -> None:
    center = two_blocks()
    point = PRODUCT.at(center).project(far(center))
    direction = {name: tensor - point[name] for name, tensor in far(center).items()}
    found = PRODUCT.at(center).normal(point, direction)
    assert found.keys() == center.keys()
    for module, part in PRODUCT.parts.items():
        alone = part.at(split(center, module)).normal(split(point, module), split(direction, module))
        assert all(torch.equal(found[name], tensor) for name, tensor in alone.items())
    # What led to the point is normal to the set there.
    assert all(torch.allclose(found[name], direction[name], rtol=1e-5, atol=1e-4) for name in found)


def test_parameters_are_projected_in_place_eagerly_and_compiled() -> None:
    center = two_blocks()
    point = far(center)
    product = PRODUCT.at(center)
    expected = product.project(point)
    weights = {name: nn.Parameter(tensor.clone()) for name, tensor in point.items()}
    product.project_(weights)
    assert all(same_bits(weights[name].detach(), expected[name]) for name in weights)
    parts = {name: part for name, part in PRODUCT.parts.items() if not isinstance(part, FloorAndRatio)}
    without = {name: tensor for name, tensor in center.items() if name != "fc.weight"}
    product = Product(parts).at(without)
    torch.compiler.reset()
    moved = compiled(product)({name: point[name] for name in without})
    assert all(same_bits(moved[name], expected[name]) for name in without)


def test_a_module_is_not_taken_for_one_whose_name_goes_on() -> None:
    center = {"layer1.weight": torch.zeros(2), "layer10.weight": torch.zeros(2)}
    point = {name: torch.tensor([3.0, 4.0]) for name in center}
    found = Product({"layer1": Ball(1.0), "layer10": Ball(2.0)}).at(center).project(point)
    assert [tensor.norm().item() for tensor in found.values()] == pytest.approx([1.0, 2.0], rel=1e-6)
    with pytest.raises(
        InputError, match=r"no part of the Product is for 'layer10\.weight'; parts are layer1\.$"
    ):
        Product({"layer1": Ball(1.0)}).at(center)


def test_the_root_is_all_tensors() -> None:
    center = {"a": torch.zeros(2), "b.c": torch.zeros(2)}
    point = {"a": torch.tensor([3.0, 0.0]), "b.c": torch.tensor([0.0, 4.0])}
    found = Product({"": Ball(1.0)}).at(center).project(point)
    assert found["a"].tolist() == pytest.approx([0.6, 0.0], rel=1e-6)
    assert found["b.c"].tolist() == pytest.approx([0.0, 0.8], rel=1e-6)
    assert Product({"": Ball(1.0)}).at(center["a"]).project(point["a"]).tolist() == pytest.approx([1.0, 0.0])


def test_products_are_put_at_a_center_without_a_change_to_the_parts_given() -> None:
    ball = Ball(1.0)
    product = Product({"a": ball})
    placed = product.at({"a": torch.zeros(2)})
    other = product.at({"a": torch.ones(2)})
    assert placed.center["a"].tolist() == [0.0, 0.0]
    assert other.center["a"].tolist() == [1.0, 1.0]
    for empty in (ball, product):
        with pytest.raises(InputError, match=r"^this Ball has no center yet"):
            empty.project({"a": torch.zeros(2)})


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("layer1", "layer1.inner"), r"two parts of a Product are for 'layer1\.inner': .* 'layer1'\.$"),
        (("layer1.inner.weight", "layer1"), r"two parts of a Product are for 'layer1\.inner\.weight'"),
        (("", "fc"), r"two parts of a Product are for 'fc': its own, and that of ''\.$"),
    ],
)
def test_parts_that_overlap_are_refused(names: tuple[str, str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Product({name: Ball(1.0) for name in names})


def test_products_without_parts_and_of_products_are_refused() -> None:
    with pytest.raises(InputError, match=r"^a Product has one part or more, sets by name"):
        Product({})
    with pytest.raises(InputError, match=r"^the part 'a' of a Product is a Product; .*\.$"):
        Product({"a": Product({"b": Ball(1.0)})})


def test_parts_without_tensors_and_tensors_without_parts_are_refused() -> None:
    center = {"a.weight": torch.zeros(2), "a.bias": torch.zeros(2)}
    with pytest.raises(InputError, match=r"^the Product has a part for 'b', but there is no such tensor\.$"):
        Product({"a": Ball(1.0), "b": Ball(1.0)}).at(center)
    with pytest.raises(InputError, match=r"^no part of the Product is for 'a\.bias'; parts are a\.weight\.$"):
        Product({"a.weight": Ball(1.0)}).at(center)
    with pytest.raises(InputError, match=r"there is no such tensor\.$"):
        Product({"a": Ball(1.0)}).at({})
    with pytest.raises(InputError, match=r"there is no such tensor\.$"):
        Product({"a": Ball(1.0)}).at(torch.zeros(2))


def test_points_unlike_the_center_are_refused() -> None:
    center = two_blocks()
    product = PRODUCT.at(center)
    with pytest.raises(
        InputError, match=r"^the point has tensors named \['x'\], but the constraint's center "
    ):
        product.project({"x": torch.zeros(2)})
    wrong = center | {"fc.bias": torch.zeros(2)}
    for ask in (product.project, product.distance, lambda x: product.normal(x, x)):
        with pytest.raises(InputError, match=r"^the point of fc\.bias is torch\.float32 \[2\], .* \[1\]\.$"):
            ask(wrong)


def test_a_part_refuses_a_center_by_the_full_name() -> None:
    with pytest.raises(InputError, match=r"but fc\.weight is \[1, 2, 3\]\.$"):
        Product({"fc": FloorAndRatio()}).at({"fc.weight": torch.zeros(1, 2, 3)})
    with pytest.raises(InputError, match=r"^the center of fc\.steps is torch\.int64"):
        Product({"fc": Ball(1.0)}).at({"fc.steps": torch.zeros(1, dtype=torch.int64)})
