"""Dyadic grids: numbers that are multiples of one power of two add up without rounding.

A sum of products is exact, in every order of summation, if all products and partial sums are multiples of
2^g and stay below 2^(g + p), with p the bits of the significand.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

SIGNIFICAND = 53  # bits of float64, with the hidden one


def value_grid(values: Tensor, dim: int | None = None) -> Tensor:
    """The largest g for which all values are multiples of 2^g.

    Args:
        values: finite numbers [...], of any dtype that float64 holds.
        dim: reduce over this dimension only; over all by default.

    Returns:
        g as float64, +inf where all values are 0.
    """
    mantissa, exponent = torch.frexp(values.double())
    whole = (mantissa * 2.0**SIGNIFICAND).to(torch.int64)
    lowest_bit = (whole & -whole).double()
    grid = (lowest_bit.log2() + (exponent - SIGNIFICAND)).where(whole != 0, math.inf)
    return grid.amin() if dim is None else grid.amin(dim)


def round_to_grid(values: Tensor, bits: int, dim: int) -> Tensor:
    """Round to multiples of 2^(e - bits), where 2^e bounds the largest value along ``dim`` [same shape]."""
    largest = values.abs().amax(dim, keepdim=True)
    step = torch.ldexp(torch.ones_like(largest), torch.frexp(largest).exponent - bits)
    info = torch.finfo(values.dtype)
    step = step.clamp_min(info.smallest_normal * info.eps)  # a finer one would be 0, and changes nothing
    return (values / step).round() * step
