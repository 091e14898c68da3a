"""``torchquilt diff``: what two saved models, ledgers or capabilities say differently."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from torchquilt._internal.json_values import to_plain
from torchquilt.cli.exits import NO, OK
from torchquilt.cli.options import JSON_SCHEMA, Command, json_option
from torchquilt.cli.output import write, write_json

_file = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command(cls=Command, short_help="Say what two results say differently.")
@click.argument("before", type=_file)
@click.argument("after", type=_file)
@json_option
def diff(before: Path, after: Path, as_json: bool) -> int:
    """Say what AFTER says differently from BEFORE. Exits with 1 when they differ.

    Both are saved models (their locks are compared), or the JSON of two ledgers (`explain --json`), of two
    locks (`inspect --json`), or of two capabilities (`capabilities --json`). None of it needs torch.
    """
    from torchquilt.errors import ArtifactError

    (kind, old), (other, new) = _read(before), _read(after)
    if kind != other:
        raise ArtifactError(
            "Two things of different kinds cannot be compared.",
            expected=f"two of a kind; {before} is a {kind}",
            got=f"{after}, which is a {other}",
        )
    changes = [*_changes(old, new)]
    if as_json:
        write_json({"schema": JSON_SCHEMA, "kind": kind, "changes": to_plain(changes)})
    else:
        for change in changes:
            write(str(change))
    return NO if changes else OK


def _read(path: Path) -> tuple[str, Any]:
    """Read a file; return its kind, told by its content, and its value."""
    from torchquilt.artifact.archive import read_lock
    from torchquilt.artifact.lock import Lock
    from torchquilt.errors import ArtifactError
    from torchquilt.ledger.ledger import Ledger
    from torchquilt.support.capabilities import Capabilities

    with path.open("rb") as file:
        if file.read(2) == b"PK":
            return "lock", read_lock(path)
    try:
        text = path.read_text(encoding="utf-8")
        data = json.loads(text)
        data = {} if not isinstance(data, dict) else data
    except ValueError:
        data = {}
    if "lock" in data:
        return "lock", Lock.from_plain(data["lock"])
    if "boundaries" in data:
        return "ledger", Ledger.from_plain(data)
    if "rows" in data:
        return "capabilities", Capabilities.from_json(text)
    raise ArtifactError(
        f"{path} is nothing that can be compared.",
        path=path,
        expected="a saved model, or JSON as explain, inspect and capabilities print it with --json",
        got=f"JSON with {', '.join(data)}" if data else "something else",
    )


def _changes(before: Any, after: Any) -> Any:
    from torchquilt.artifact.lock import Lock
    from torchquilt.artifact.lock import diff as diff_of_locks

    return diff_of_locks(before, after) if isinstance(before, Lock) else before.diff(after)
