"""The certificate's schema, its JSON and the digest of a model."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from isthmus.certificate import LEVELS, Backend, Certificate, model_digest

numbers = st.none() | st.floats(allow_nan=False, allow_infinity=False)
counts = st.integers(0, 2**40)
backends = st.builds(Backend, rows=counts, wrong=counts, max_error=numbers, max_difference=numbers)
certificates = st.builds(
    Certificate,
    schema_version=st.just(1),
    rows=counts,
    wrong=counts,
    proven_rows=counts,
    bitwise_rows=counts,
    merged=counts,
    max_error=numbers,
    margin=numbers,
    bound=numbers,
    tolerance=numbers,
    backends=st.lists(backends, max_size=2).map(tuple),
)


@given(certificates)
def test_json_round_trip(certificate):
    text = certificate.model_dump_json()
    assert Certificate.model_validate_json(text) == certificate
    assert Certificate.model_validate(json.loads(text)) == certificate
    json.dumps(certificate.model_dump(), allow_nan=False)


@given(certificates)
def test_reaches(certificate):
    reached = [level for level in LEVELS if certificate.reaches(level)]
    assert reached == list(LEVELS[: LEVELS.index(certificate.level) + 1])


@pytest.fixture
def plain():
    """A certificate as plain data."""
    return {
        "schema_version": 1,
        "level": "proven",
        "task": "classification",
        "dtype": "float64",
        "rows": 3,
        "wrong": 0,
        "proven_rows": 3,
        "bitwise_rows": 0,
        "max_error": 0.5,
        "margin": 0.25,
        "bound": 1e-15,
        "tolerance": None,
        "merged": 0,
        "batch_sizes": [3, 1],
        "arithmetic": "IEEE",
        "data_digest": "0" * 64,
        "model_digest": "1" * 64,
        "versions": {"python": "3.11"},
    }


def test_plain_data_is_a_certificate(plain):
    certificate = Certificate.model_validate(plain)
    assert certificate.reaches("proven")
    assert (certificate.notes, certificate.backends) == ((), ())


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("level", "certain"),
        ("task", "ranking"),
        ("schema_version", 2),
        ("rows", -1),
        ("rows", 2.5),
        ("wrong", None),
        ("batch_sizes", [3]),
        ("surprise", 1),
        ("backends", [{"name": "numpy"}]),
    ],
)
def test_anything_else_is_refused(plain, field, value):
    with pytest.raises(ValidationError, match=field):
        Certificate.model_validate({**plain, field: value})


@pytest.mark.parametrize("field", ["level", "rows", "bound", "data_digest", "model_digest"])
def test_nothing_may_be_missing(plain, field):
    del plain[field]
    with pytest.raises(ValidationError, match=field):
        Certificate.model_validate(plain)


def test_a_certificate_cannot_be_edited(plain):
    with pytest.raises(ValidationError, match="frozen"):
        Certificate.model_validate(plain).level = "bitwise"


LAYERS = [{"name": "0", "type": "Linear"}]
TENSORS = {"0.weight": np.array([[1.0, 2.0], [3.0, 4.0]]), "0.bias": np.array([0.0, 1.0])}


def test_the_digest_does_not_depend_on_order_of_names_memory_layout_or_byte_order():
    digest = model_digest(LAYERS, TENSORS)
    assert len(digest) == 64
    assert model_digest([{"type": "Linear", "name": "0"}], dict(reversed(TENSORS.items()))) == digest
    assert model_digest(LAYERS, {name: np.asfortranarray(value) for name, value in TENSORS.items()}) == digest
    assert model_digest(LAYERS, {name: value.astype(">f8") for name, value in TENSORS.items()}) == digest


@pytest.mark.parametrize(
    "change",
    [
        {"0.bias": np.array([-0.0, 1.0])},
        {"0.bias": np.array([5e-324, 1.0])},
        {"0.bias": np.array([1.0, 0.0])},
        {"0.bias": TENSORS["0.bias"].view(np.int64)},
        {"0.bias": np.array([[0.0, 1.0]])},
        {"0.weight": TENSORS["0.weight"].T},
        {"1.bias": np.array([0.0])},
    ],
    ids=str,
)
def test_the_digest_covers_values_dtypes_shapes_and_names(change):
    assert model_digest(LAYERS, {**TENSORS, **change}) != model_digest(LAYERS, TENSORS)


def test_the_digest_covers_which_name_holds_what():
    renamed = dict(zip(["0.weight", "0.shift"], TENSORS.values(), strict=True))
    assert model_digest(LAYERS, renamed) != model_digest(LAYERS, TENSORS)


def test_the_digest_covers_the_architecture():
    digests = {
        model_digest(layers, TENSORS) for layers in ([], LAYERS, 2 * LAYERS, [{"name": "0", "type": "ReLU"}])
    }
    assert len(digests) == 4
    with pytest.raises(ValueError, match="not JSON compliant"):
        model_digest([{"max_val": float("inf")}], {})
