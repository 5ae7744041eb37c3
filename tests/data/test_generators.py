"""Generators repeat bit for bit, mean what their formulas say, and refuse what they cannot do."""

import math

import pytest
import torch
from sklearn.datasets import make_friedman1

from isthmus.data import Shape, load, load_shape
from isthmus.data.generators import friedman, gaussian, sphere, zigzag
from isthmus.errors import DataError


@pytest.mark.parametrize(
    "source",
    [
        "sphere:n=50,d=7,k=3",
        "sphere:n=50,d=7,task=regression",
        "gaussian:n=50,d=7,k=3",
        "gaussian:n=50,d=7,task=regression",
        "friedman:n=50",
        "friedman:n=50,d=5,noise=0.5",
    ],
)
def test_seeds(source):
    data = load(source)
    assert data.digest == load(source).digest == load(f"{source},seed=0").digest
    assert data.digest != load(f"{source},seed=1").digest
    assert (data.rows, data.source) == (50, source)


def test_sphere_is_uniform_on_the_unit_sphere():
    x = sphere(n=20_000, d=3).x
    assert torch.allclose(x.norm(dim=1), torch.ones(len(x), dtype=torch.float64), rtol=1e-15)
    # Archimedes: every coordinate is uniform on [-1, 1], so its mean is 0 and its second moment 1/3.
    assert x.mean(dim=0).abs().max() < 4 / math.sqrt(3 * len(x))
    assert (x.square().mean(dim=0) - 1 / 3).abs().max() < 4 * math.sqrt(4 / 45 / len(x))


def test_gaussian_has_the_moments_of_a_standard_normal():
    x = gaussian(n=20_000, d=3).x
    assert x.mean(dim=0).abs().max() < 4 / math.sqrt(len(x))
    assert (x.square().mean(dim=0) - 1).abs().max() < 4 * math.sqrt(2 / len(x))


@pytest.mark.parametrize("make", [sphere, gaussian])
def test_random_targets(make):
    data = make(n=30_000, d=2, k=3)
    assert data.classes == (0, 1, 2)
    counts = data.y.bincount(minlength=3)
    assert (counts - 10_000).abs().max() < 4 * math.sqrt(30_000 * 2 / 9)
    assert make(n=2, d=2, k=100).outputs == 100
    values = make(n=30_000, d=2, task="regression")
    assert (values.task, tuple(values.y.shape)) == ("regression", (30_000, 1))
    assert -1 <= values.y.min() < -0.99
    assert 0.99 < values.y.max() <= 1


def test_friedman_agrees_with_sklearn():
    x, y = make_friedman1(100, 6, random_state=0)
    ours = friedman(n=100, d=6)
    a, b, c, d, e, _ = ours.x.T
    expected = 10 * torch.sin(math.pi * a * b) + 20 * (c - 0.5) ** 2 + 10 * d + 5 * e
    assert torch.allclose(ours.y[:, 0], expected, rtol=1e-14)
    a, b, c, d, e, _ = torch.from_numpy(x).T
    theirs = 10 * torch.sin(math.pi * a * b) + 20 * (c - 0.5) ** 2 + 10 * d + 5 * e
    assert torch.allclose(theirs, torch.from_numpy(y))
    noise = friedman(n=10_000, noise=2.0).y - friedman(n=10_000).y
    assert abs(float(noise.std()) - 2) < 0.1


def test_zigzag_is_the_data_of_the_converse():
    data = zigzag(n=5, d=2)
    assert data.x.tolist() == [[i, i] for i in (1, 2, 3, 4, 5)]
    assert data.y[:, 0].tolist() == [-1, 1, -1, 1, -1]
    classes = load("zigzag:n=5,task=classification")
    assert [classes.classes[i] for i in classes.y] == [-1, 1, -1, 1, -1]


def test_shape():
    assert load_shape("shape:n=50000,d=3072,k=10") == Shape(50000, 3072, 10, "classification")
    assert load_shape("shape: n = 5 , d = 3 , dy = 2") == Shape(5, 3, 2, "regression")
    for source in ("digits", "shape.csv", None, (1, 2)):
        assert load_shape(source) is None
    with pytest.raises(DataError, match="a shape has no rows to load"):
        load("shape:n=5,d=3,k=2")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("shape:n=5,d=3", "k=0 and dy=0; give k"),
        ("shape:n=5,d=3,k=2,dy=1", "k=2 and dy=1; give k"),
        ("shape:n=0,d=3,k=2", "each is at least 1"),
        ("shape:d=3,k=2", "n is missing"),
        ("shape:n=5,d=3,K=2", "'K' is no option here; the options are: n=, d=, k=0, dy=0"),
    ],
)
def test_bad_shapes(source, message):
    with pytest.raises(DataError, match=message):
        load_shape(source)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("sphere", r"sphere: n is missing; add n= \(the options are: n=, d=, k=2"),
        ("sphere:n=5", "d is missing"),
        (
            "sphere:n=5,d=2,sead=1",
            "'sead' is no option here; the options are: n=, d=, k=2, task=class.*, seed=0",
        ),
        ("sphere:n=5,d=2,n=6", "the option n is given twice"),
        ("sphere:n=five,d=2", "n=five is not an integer"),
        ("sphere:n=1e3,d=2", "n=1e3 is not an integer"),
        ("sphere:n,d=2", "n= is not an integer"),
        ("sphere:n=5,d=2,", "'' is no option here"),
        ("sphere:n=0,d=2", "n=0, but there must be at least 1 row"),
        ("sphere:n=5,d=0", "d=0, but there must be at least 1 input"),
        ("sphere:n=5,d=2,k=0", "k=0, but there must be 1 to 1048576 classes"),
        ("sphere:n=5,d=2,seed=-1", "seed=-1"),
        ("sphere:n=5,d=2,task=rank", "task=rank is unknown; choose classification or regression"),
        ("gaussian:n=1000000000,d=1000", "need 8000000000000 bytes"),
        ("friedman:n=5,d=4", "d=4, but there must be at least 5"),
        ("friedman:n=5,noise=-1", "cannot be negative"),
        ("friedman:n=5,noise=nan", "noise=nan is not a finite number"),
        ("friedman:n=5,k=2", "'k' is no option here"),
        ("zigzag:n=5,seed=1", "'seed' is no option here"),
    ],
)
def test_bad_options(source, message):
    with pytest.raises(DataError, match=message) as caught:
        load(source)
    assert "seed=-1" in source or str(caught.value).startswith(source.partition(":")[0])
