"""Zero loss at once: from one factorization, or by Levenberg-Marquardt in the space of the equations."""

from isthmus.narrow.solver.solve import solve as solve
