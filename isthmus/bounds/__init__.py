"""Theorems as a table of small functions: which widths suffice for a data set, and which cannot."""

from isthmus.bounds.result import BoundsTable as BoundsTable
from isthmus.bounds.table import bounds as bounds
