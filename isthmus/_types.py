"""Array types with their shapes; the letters are fixed: N rows, d inputs, K classes or outputs, m units."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

from jaxtyping import Float, Int, Num
from torch import Tensor

Task = Literal["classification", "regression"]
Conflicts = Literal["error", "drop", "majority"]
Activation = Literal["hardtanh", "relu", "leaky_relu"]
DtypeName = Literal["float64", "float32", "float16"]  # of a network's parameters, widest first
Rule = Literal["paper", "tight"]
Progress = Callable[[str, float], None]  # told what is being done, and which part of it is done

Inputs = Num[Tensor, "N *shape"]
Labels = Int[Tensor, " N"]
Values = Float[Tensor, "N K"]

PathLike = str | Path
