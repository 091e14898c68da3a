"""Options and settings that several commands share."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import click

from torchquilt._internal.atomic_files import check_is_replaceable
from torchquilt.cli.output import write, write_error

if TYPE_CHECKING:
    from torchquilt.data import FileBatches

#: Version of the JSON that commands print of their own; that of the library has versions of its own.
JSON_SCHEMA = 1


@attrs.define
class Settings:
    """Settings of the whole run."""

    debug: bool = False


def _set_debug(context: click.Context, _: click.Parameter, value: bool) -> None:
    settings = context.find_object(Settings)
    if settings is not None and value:
        settings.debug = True


def _debug_option() -> click.Option:
    return click.Option(
        ["--debug"],
        is_flag=True,
        is_eager=True,
        expose_value=False,
        callback=_set_debug,
        help="Show the traceback of an error, and every warning.",
    )


def _show_help(context: click.Context, _: click.Parameter, value: bool) -> None:
    if value and not context.resilient_parsing:
        write(context.get_help())
        context.exit()


class Command(click.Command):
    """A command that has ``--debug``, so that it can be put behind a line that went wrong."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params.append(_debug_option())

    def get_help_option(self, ctx: click.Context) -> click.Option:
        """``--help``, which minds a reader that goes away as little as any other output."""
        names = [*self.get_help_option_names(ctx)]
        return click.Option(
            names,
            is_flag=True,
            is_eager=True,
            expose_value=False,
            callback=_show_help,
            help="Show this message.",
        )


class Group(Command, click.Group):
    """A group of such commands."""

    command_class = Command
    group_class = type


#: What ``--observer`` takes, as :func:`torchquilt.observers.make_observer` does; that would load torch.
OBSERVERS = ("histogram", "minmax", "percentile", "entropy", "moving_average")


def _check_observer(_: click.Context, __: click.Parameter, value: str) -> str:
    if value.partition(":")[0] not in OBSERVERS:
        raise click.BadParameter(f"{value!r} is not one of {', '.join(map(repr, OBSERVERS))}.")
    return value


json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON, with a schema version.")
recipe_option = click.option(
    "--recipe",
    required=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="What to quantize and how, as TOML (torchquilt.Recipe).",
)
strict_option = click.option(
    "--strict/--no-strict",
    default=True,
    show_default=True,
    help="Refuse rules that cannot take effect, or only report them.",
)
model_argument = click.argument("model", type=click.Path(exists=True, dir_okay=False, path_type=Path))
data_option = click.option(
    "--data",
    required=True,
    type=click.Path(exists=True, path_type=Path),
    metavar="DIR|FILE",
    help="Batches of inputs, in files as `quantize` takes them.",
)
limit_option = click.option("--limit", type=click.IntRange(min=1), metavar="N", help="Use at most N batches.")
observer_option = click.option(
    "--observer",
    metavar="NAME",
    callback=_check_observer,
    default="histogram",
    show_default=True,
    help=f"How ranges of activations are found: {', '.join(OBSERVERS)}; also percentile:99.99.",
)
state_option = click.option(
    "--state",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Keep each metric in FILE as it is found. Where FILE is there, go on from it.",
)


@contextlib.contextmanager
def telling_where(batches: FileBatches) -> Iterator[None]:
    """Have errors about a batch say which file it comes from."""
    from torchquilt.errors import AccuracyError, CalibrationError

    try:
        yield
    except (AccuracyError, CalibrationError) as error:
        if error.batch is not None:
            error.problem = f"{batches.name_of(error.batch)}: {error.problem}"
        raise


@contextlib.contextmanager
def telling_state(path: Path | None) -> Iterator[None]:
    """Say on Ctrl-C that the file of --state has what was found so far."""
    try:
        yield
    except KeyboardInterrupt:
        if path is not None and path.exists():
            write_error(f"{path} holds the metrics so far, to go on from")
        raise


def check_is_writable(option: str, path: Path, others: list[Path]) -> None:
    """Refuse what would be found out when all the work is done, or would destroy what is read."""
    hint = f"'--{option}'"
    if not path.parent.is_dir():
        raise click.BadParameter(f"There is no folder {str(path.parent)!r}.", param_hint=hint)
    try:
        check_is_replaceable(path)
    except OSError as error:
        raise click.BadParameter(f"{error.strerror}: {path}", param_hint=hint) from error
    if path.resolve() in [other.resolve() for other in others]:
        raise click.BadParameter("Another option names the same file.", param_hint=hint)


def top_option(what: str) -> Callable[[Any], Any]:
    """The option ``--top``: so many lines of a table.

    Args:
        what: the lines, as the help names them.
    """
    return click.option(
        "--top",
        type=click.IntRange(min=0),
        metavar="N",
        default=20,
        show_default=True,
        help=f"Print the N {what}. The JSON has all of them.",
    )


def runs_option(what: str) -> Callable[[Any], Any]:
    """The option ``--runs``: of so many runs a time is the median.

    Args:
        what: the beginning of the help, with N for the number.
    """
    return click.option(
        "--runs",
        type=click.IntRange(min=1),
        metavar="N",
        default=20,
        show_default=True,
        help=f"{what}; the times are medians.",
    )
