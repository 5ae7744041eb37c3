"""The command line: one file per command, each of which parses, calls the library and prints.

Exit codes: 0 done, 1 the answer is no, 2 bad input or usage, 130 interrupted. Errors are one sentence on
standard error, results go to standard output.
"""

from __future__ import annotations

import sys
from importlib import import_module

import typer

from isthmus.errors import IsthmusError, NotCertified

COMMANDS = ("bounds", "memorize", "fit", "verify", "predict", "inspect", "patch", "export", "doctor")

app = typer.Typer(
    name="isthmus",
    help="Networks that are as small as they can be and still fit their data exactly.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
for _name in COMMANDS:
    app.command(name=_name)(import_module(f"isthmus.cli.{_name}").command)


def main() -> None:
    """Run the command line and exit with its code."""
    try:
        code = app(standalone_mode=False)
    except NotCertified as error:
        code = _complain(error, 1)
    except (IsthmusError, typer.TyperException) as error:
        code = _complain(error, 2)
    except MemoryError:
        code = _complain(MemoryError("not enough memory; take fewer rows with --rows."), 2)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        code = _complain(OSError(f"{where}{error.strerror or error}."), 2)
    except (KeyboardInterrupt, typer.Abort):
        code = _complain(KeyboardInterrupt("interrupted; nothing that was on disk has changed."), 130)
    sys.exit(code)


def _complain(error: BaseException, code: int) -> int:
    message = error.format_message() if isinstance(error, typer.TyperException) else str(error)
    if message:
        typer.echo(f"isthmus: {message}", err=True)
    return code
