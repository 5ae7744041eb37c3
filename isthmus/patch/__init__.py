"""Exact repair of a deployed model: gates beside it, each open around some of the cases."""

from isthmus.patch.repair import patch as patch
from isthmus.patch.result import Repaired as Repaired
