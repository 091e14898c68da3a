"""Text of pages that is made from the code: a comment in a page names it, and the site puts it there.

``<!-- generated: reason-codes -->`` in a page is replaced by the text of the function for ``reason-codes``.
"""

from __future__ import annotations

import ast
import inspect
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from html import escape
from pathlib import Path
from typing import Any

import click

from api_reference import described, first_sentence, members_of

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[2]
MARKER = re.compile(r"^<!-- generated: ([a-z-]+)((?: [\w.-]+)*) -->$", re.MULTILINE)


def _in_one_line(text: str) -> str:
    return " ".join(text.replace("``", "`").split())


def _cell(text: str) -> str:
    return _in_one_line(text).replace("|", "\\|")


def table(head: tuple[str, ...], rows: Iterator[tuple[str, ...]] | list[tuple[str, ...]]) -> str:
    """A Markdown table."""
    lines = [head, tuple("---" for _ in head), *(tuple(map(_cell, row)) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def reason_codes() -> str:
    """A section for each reason for which an operator stays in float: meaning and remedy."""
    from torchquilt.reasons import REASONS

    return "\n\n".join(
        f"### `{reason.label}`\n\n{_in_one_line(reason.meaning)}\n\n"
        f"*To have it quantized:* {_in_one_line(reason.remedy)}."
        for reason in REASONS
    )


def lowering_statuses() -> str:
    """A table of lowering statuses, the best first."""
    from torchquilt.reasons import INTEGER_STATUSES, LOWERING_STATUSES

    ranked = sorted(LOWERING_STATUSES, key=lambda status: -1 if status.rank is None else -status.rank - 2)
    return table(
        ("status", "meaning", "on integers"),
        [(f"`{one.code}`", one.meaning, "yes" if one.code in INTEGER_STATUSES else "no") for one in ranked],
    )


def cautions() -> str:
    """A table of the warnings of ranges."""
    from torchquilt.reasons import CAUTIONS

    return table(("code", "meaning"), [(f"`{one.code}`", one.meaning) for one in CAUTIONS])


def presets() -> str:
    """A section for each installed backend: its presets, and the specs that each stands for."""
    import torchquilt as tq
    from torchquilt.plugins.registry import quantizer_class

    sections = []
    for backend in sorted(tq.backends(), key=lambda one: one.name):
        configs = getattr(quantizer_class(backend.name), "PRESETS", {})
        rows = [
            (f"`{backend.name}:{info.name}`", info.summary, _config_in_words(configs.get(info.name)))
            for info in backend.manifest.presets
        ]
        where = ", ".join(f"`{name}`" for name in backend.manifest.targets)
        head = f"## {backend.name}\n\n{backend.manifest.summary}. Runs on: {where or 'no target'}.\n\n"
        sections.append(head + table(("preset", "quantizes", "specs"), rows))
    return "\n\n".join(sections)


def _config_in_words(make: Callable[[], Any] | None) -> str:
    from torchquilt.spec.config import ROLES

    if make is None:
        return ""
    from torchquilt.support.allowed_spec import AllowedSpec

    config = make()
    roles: dict[str, list[str]] = {}
    for role in ROLES:
        spec = config.spec(role)
        if spec is not None:
            roles.setdefault(str(AllowedSpec.of(spec)), []).append(role.removesuffix("_activation"))
    return "; ".join(f"{', '.join(names)}: {spec}" for spec, names in roles.items())


def commands() -> str:
    """A section for each command: what it does, its arguments and its options."""
    from torchquilt.cli.application import application

    return "\n\n".join(_command(command, name) for name, command in all_commands(application, "torchquilt"))


def all_commands(command: click.Command, name: str) -> Iterator[tuple[str, click.Command]]:
    """Each command below a group, with the words that lead to it; the group itself first."""
    yield name, command
    if isinstance(command, click.Group):
        for word, inner in command.commands.items():
            yield from all_commands(inner, f"{name} {word}")


def options_of(command: click.Command) -> list[click.Option]:
    """The options of a command, its help too."""
    params = command.get_params(_context(command, command.name or ""))
    return [one for one in params if isinstance(one, click.Option)]


def _context(command: click.Command, name: str) -> click.Context:
    """The context of a command as the application makes it."""
    from torchquilt.cli.application import application

    return click.Context(command, info_name=name, **application.context_settings)


def _paragraph(text: str) -> str:
    """A paragraph of help; one that click is told not to wrap stays as it is."""
    return f"```text\n{text.removeprefix(chr(8)).strip()}\n```" if text.startswith("\b") else text


def _command(command: click.Command, name: str) -> str:
    context = _context(command, name)
    usage = command.get_usage(context).removeprefix("Usage: ")
    paragraphs = inspect.cleandoc((command.help or "").partition("\f")[0]).split("\n\n")
    text = "\n\n".join(map(_paragraph, paragraphs))
    rows = [
        (
            ", ".join(f"`{word}`" for word in (*one.opts, *one.secondary_opts))
            + (f" `{_values(one, context)}`" if not one.is_flag else ""),
            (one.help or "") + (" Required." if one.required else ""),
        )
        for one in options_of(command)
    ]
    return f"### {name}\n\n```text\n{usage}\n```\n\n{text}\n\n{table(('option', 'meaning'), rows)}"


def _values(option: click.Option, context: click.Context) -> str:
    return str(option.make_metavar(context))


def exit_codes() -> str:
    """A table of the exit codes of the command line."""
    from sphinx.pycode import ModuleAnalyzer

    from torchquilt.cli import exits

    comments = ModuleAnalyzer.for_module("torchquilt.cli.exits").find_attr_docs()
    codes = {name: value for name, value in vars(exits).items() if isinstance(value, int)}
    rows = [
        (f"`{value}`", " ".join(comments["", name]).strip())
        for name, value in codes.items()
        if ("", name) in comments
    ]
    assert len(rows) == len(codes), "an exit code without a comment"
    return table(("code", "meaning"), rows)


def operators() -> str:
    """A table of the operators that a support table can name."""
    from torchquilt.backend import OPERATORS

    rows = [
        (f"`{one.name}`", " ".join(f"`{name}`" for name in (*one.modules, *one.functionals)))
        for one in sorted(OPERATORS, key=lambda one: one.name)
    ]
    return table(("operator", "is called"), rows)


def constraints() -> str:
    """The ready constraints: those that are values, and functions that make one."""
    from torchquilt.backend import Constraint

    rows = []
    for name, value in ready_constraints():
        told = value.text if isinstance(value, Constraint) else described(value)
        code = value.code if isinstance(value, Constraint) else ""
        rows.append((f"`{name}`", f"`{code}`" if code else "", told))
    return table(("name", "code", "holds where"), rows)


def ready_constraints() -> list[tuple[str, Any]]:
    """Name and value of each ready constraint, and of each function that makes one."""
    from torchquilt.backend import Constraint
    from torchquilt.backend import constraints as ready

    return sorted(
        (name, value)
        for name, value in vars(ready).items()
        if isinstance(value, Constraint) or (inspect.isfunction(value) and name[0] != "_")
    )


def api(module: str, *names: str) -> str:
    """Autodoc of public names of a module."""
    return "```{eval-rst}\n" + "\n".join(members_of(module, names)) + "\n```"


def file(name: str) -> str:
    """Another file of the repository, without its title."""
    text = (ROOT / name).read_text(encoding="utf-8")
    return re.sub(r"\A# .*\n", "", text)


def parity() -> str:
    """For each preset of two or more backends: the operators, and what each backend does with them."""
    import torchquilt as tq
    from torchquilt.plugins.registry import quantizer_class

    rows = {
        backend.name: tuple(quantizer_class(backend.name).backend_capabilities()) for backend in tq.backends()
    }
    names = sorted({name for found in rows.values() for row in found for name in row.presets})
    sections = []
    for preset in names:
        having = [backend for backend, found in rows.items() if any(preset in row.presets for row in found)]
        if len(having) > 1:
            taken = {name: [row for row in rows[name] if preset in row.presets] for name in having}
            sections.append(f"### {preset}\n\n{_parity_table(taken)}")
    return "\n\n".join(sections)


def _parity_table(taken: Mapping[str, list[Any]]) -> str:
    """Operators × backends: ``yes``, ``fused`` where only as a part of patterns of others, or nothing."""

    def cell(found: list[Any], operator: str) -> str:
        if any(row.working == operator for row in found):
            return "yes"
        return "fused" if any(operator in row.operators for row in found) else ""

    operators = sorted({name for found in taken.values() for row in found for name in row.operators})
    return table(
        ("operator", *taken),
        [(f"`{operator}`", *(cell(found, operator) for found in taken.values())) for operator in operators],
    )


def house() -> str:
    """The rooms of the core as floors, from the contract of imports: none knows of those above it."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]
    (contract,) = [one for one in settings["contracts"] if one["id"] == "core-layers"]
    rooms = [layer.strip("()") for layer in contract["layers"]]
    floors = [_floor(name) for name in rooms if not name.startswith("__")]
    plugins = "".join(
        f"<li><code>{path.parent.name}</code></li>" for path in sorted(ROOT.glob("plugins/*/pyproject.toml"))
    )
    return (
        f'```{{raw}} html\n<figure class="house"><ul class="plugins">{plugins}</ul>'
        f"<ol>{''.join(floors)}</ol><figcaption>The house: plugins stand on the public names of the core. "
        "A room imports only from rooms below it.</figcaption></figure>\n```"
    )


def _floor(name: str) -> str:
    folder = ROOT / "core/src/torchquilt" / name
    source = folder / "__init__.py" if folder.is_dir() else folder.with_suffix(".py")
    text = first_sentence(ast.get_docstring(ast.parse(source.read_text(encoding="utf-8"))) or "")
    return f"<li><code>{name}</code> <span>{escape(text.replace('``', ''))}</span></li>"


def support_matrix() -> str:
    """The support matrix, as a table that the page filters."""
    from support_matrix import as_html

    return "```{raw} html\n" + as_html() + "\n```"


GENERATED: Mapping[str, Callable[..., str]] = {
    "api": api,
    "cautions": cautions,
    "commands": commands,
    "constraints": constraints,
    "exit-codes": exit_codes,
    "file": file,
    "house": house,
    "lowering-statuses": lowering_statuses,
    "operators": operators,
    "parity": parity,
    "presets": presets,
    "reason-codes": reason_codes,
    "support-matrix": support_matrix,
}


def filled(text: str) -> str:
    """A page with the text that its comments name."""
    return MARKER.sub(lambda found: GENERATED[found[1]](*found[2].split()), text)
