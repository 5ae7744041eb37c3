"""Jacobians of a network's outputs in its weights: products, Gram matrices, singular values."""

from isthmus.jacobian.operator import Jacobian as Jacobian
from isthmus.jacobian.operator import jacobian_of as jacobian_of
from isthmus.jacobian.per_sample import per_sample_jacobian as per_sample_jacobian
from isthmus.jacobian.repeatable import require_repeatable as require_repeatable
