"""Options and settings that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs
import click

from torchquilt._internal.atomic_files import check_is_replaceable
from torchquilt.cli.output import write

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
