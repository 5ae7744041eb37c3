"""Everything isthmus raises on purpose: one class per kind of diagnosis, the message is the diagnosis.

A message says what was found, where (row, column, file) and what to do about it. `InputError` and its
children mean that the question cannot be asked as it stands (exit code 2 on the command line);
`NotCertified` means that it was asked and the answer is no (exit code 1).
"""

from __future__ import annotations


class IsthmusError(Exception):
    """Base of every error that isthmus raises on purpose."""


class InputError(IsthmusError, ValueError):
    """Data, an option or a file that cannot be used as it is."""


class DataError(InputError):
    """A data set that is unreadable, inconsistent, or not a function (equal inputs, different targets)."""


class WidthError(InputError):
    """Widths that miss a theorem's condition; the message gives the condition and widths that meet it."""


class PrecisionError(InputError):
    """A floating-point format too coarse for these gaps; the message gives the predicted error."""


class UnsupportedModel(InputError):
    """A module outside the list in `isthmus.graph`; the message names the module and the reason."""


class ModelFileError(InputError):
    """A model directory or certificate that is missing, damaged or not written by isthmus."""


class MissingExtra(InputError):
    """An optional dependency that is not installed; the message gives the command that installs it."""


class NotCertified(IsthmusError):
    """No network could be certified on every row; the message says how near it came."""
