"""What all benchmarks print: cases with a figure measured, a figure required, and their ratio."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass
class Table:
    """Rows printed as they come.

    Args:
        title: what is measured.
    """

    title: str

    def __post_init__(self) -> None:
        print(f"\n{self.title}\n{'case':58} {'measured':>12} {'required':>12} {'ratio':>8}  note")

    def row(self, case: str, measured: float, required: float, note: Any = "") -> None:
        """Print one case; a ratio of at most 1 meets what is required.

        Args:
            case: what was run.
            measured: the figure.
            required: its limit.
            note: anything else worth saying.
        """
        ratio = measured / required if required else float(measured > 0)
        print(f"{case:58} {measured:12.6g} {required:12.6g} {ratio:8.3g}  {note}", flush=True)
