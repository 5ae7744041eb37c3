"""The published numbers: hidden units and widths that the theorems give for the papers' examples."""

from __future__ import annotations

from table import Table

import isthmus


def main() -> None:
    cifar = isthmus.bounds(isthmus.Shape(rows=50_000, inputs=3072, outputs=10, task="classification"))
    large = isthmus.bounds(isthmus.Shape(rows=10**6, inputs=3072, outputs=1000, task="classification"))
    table = Table("Hidden units by theorem")
    for name, published in (("4.2 R", 106), ("4.1 R", 126), ("Hardt-Ma 2017", 50_010)):
        table.row(f"CIFAR-10's shape, {name}", cifar[name].hidden_units or 0, published)
    for width, published in zip(large["3.2 R"].widths or (), (2000, 2000, 4000), strict=True):
        table.row("a million rows, 1000 classes, 3.2 R, one layer", width, published)


if __name__ == "__main__":
    main()
