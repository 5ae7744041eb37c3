"""Confidence intervals against SciPy's beta quantiles."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import beta

from isthmus.patch.shares import most_allowed, share


@given(st.integers(1, 60_000), st.floats(0, 1))
def test_against_the_beta_distribution(rows, part):
    count = round(part * rows)
    found = share(count, rows)
    low = beta.ppf(0.025, count, rows - count + 1) if count else 0.0
    high = beta.ppf(0.975, count + 1, rows - count) if count < rows else 1.0
    assert found.low == pytest.approx(low, rel=1e-6, abs=1e-12)
    assert found.high == pytest.approx(high, rel=1e-6, abs=1e-12)
    assert found.low <= found.fraction <= found.high


@given(st.integers(1, 5000), st.floats(1e-4, 1))
def test_the_most_rows_that_keep_the_interval_below(rows, fraction):
    count = most_allowed(fraction, rows)
    assert count == -1 or share(count, rows).high <= fraction
    assert count == rows or share(count + 1, rows).high > fraction


def test_none_of_few_says_little():
    assert share(0, 10).high == pytest.approx(0.3085, abs=1e-4)
    assert most_allowed(0.3, 10) == -1
