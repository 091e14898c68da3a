"""All commands together, and the exit code of each error."""

from __future__ import annotations

import io
import sys
import traceback
import warnings
from collections.abc import Sequence
from typing import TextIO

import click

from torchquilt.cli.capabilities import capabilities
from torchquilt.cli.compare import compare
from torchquilt.cli.compare_targets import compare_targets
from torchquilt.cli.diff import diff
from torchquilt.cli.exits import EPILOG, ERROR, INTERRUPTED, OK, UNEXPECTED, USAGE
from torchquilt.cli.explain import explain
from torchquilt.cli.first_steps import show_first_steps
from torchquilt.cli.inspect import inspect
from torchquilt.cli.lower import lower
from torchquilt.cli.options import Group, Settings
from torchquilt.cli.output import write, write_error
from torchquilt.cli.plugins import plugins
from torchquilt.cli.profile import profile
from torchquilt.cli.quantize import quantize
from torchquilt.cli.recipe import recipe
from torchquilt.cli.report import report
from torchquilt.cli.search import search
from torchquilt.cli.sensitivity import sensitivity
from torchquilt.errors import TorchquiltError

#: A message of torch may have hundreds of lines; so many of a paragraph are shown.
_MOST_LINES = 20


def _show_version(context: click.Context, _: click.Parameter, value: bool) -> None:
    if value:
        from torchquilt import __version__

        write(f"torchquilt {__version__}")
        context.exit()


@click.group(
    cls=Group,
    epilog=EPILOG,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_show_version,
    help="Print the version.",
)
@click.pass_context
def application(context: click.Context) -> None:
    """Quantize PyTorch 2 exported models with quantizers from several backends at once.

    Without a command: what is installed, and what to do next.
    """
    if context.invoked_subcommand is None:
        show_first_steps()


for command in (
    plugins,
    capabilities,
    recipe,
    explain,
    quantize,
    compare,
    sensitivity,
    search,
    report,
    lower,
    compare_targets,
    profile,
    inspect,
    diff,
):
    application.add_command(command)


def run(arguments: Sequence[str] | None = None) -> int:
    """Run a command line, and say what went wrong in a paragraph.

    Returns:
        The exit code.
    """
    settings = Settings()
    _let_streams_write_everything()
    with warnings.catch_warnings():
        _show_warnings_in_a_line(settings)
        try:
            code: object = application.main(
                args=None if arguments is None else [*arguments],
                prog_name="torchquilt",
                standalone_mode=False,
                obj=settings,
            )
        except (KeyboardInterrupt, click.Abort):
            write_error("interrupted")
            return INTERRUPTED
        except click.ClickException as error:
            text = io.StringIO()
            error.show(text)
            write_error(text.getvalue().rstrip())
            return USAGE
        except Exception as error:  # what it is, only the kinds of errors below can tell
            return _tell(error, settings)
    return code if isinstance(code, int) else OK


def _let_streams_write_everything() -> None:
    """Let an encoding that lacks a character, such as that of an old terminal, spell it out."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _show_warnings_in_a_line(settings: Settings) -> None:
    """Show warnings that are for users as one line without the code that they come from."""

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        if settings.debug:
            write_error(warnings.formatwarning(message, category, filename, lineno, line).rstrip())
        elif issubclass(category, UserWarning):
            write_error(f"warning: {message}")

    warnings.simplefilter("default")
    warnings.showwarning = show


def _tell(error: Exception, settings: Settings) -> int:
    """Say what went wrong, and return the exit code for it."""
    if settings.debug:
        write_error("".join(traceback.format_exception(error)))
    if isinstance(error, TorchquiltError):
        lines, code = str(error).split("\n"), ERROR
    elif isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        lines, code = [f"{where}{error.strerror or error}"], ERROR
    else:
        first = str(error).strip().partition("\n")[0]
        lines = [
            f"{type(error).__name__}: {first}",
            "  to fix it: this was not foreseen; --debug shows where it comes from, for a report",
        ]
        code = UNEXPECTED
    if len(lines) > _MOST_LINES and not settings.debug:
        left = len(lines) - _MOST_LINES
        lines = [*lines[:_MOST_LINES], f"  … {left} more lines, which --debug shows"]
    write_error("error: " + "\n".join(lines))
    return code
