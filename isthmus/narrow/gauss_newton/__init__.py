"""Gauss-Newton as a torch optimizer, for small networks of any depth and any twice differentiable loss."""

from isthmus.narrow.gauss_newton.optimizer import GaussNewton as GaussNewton
