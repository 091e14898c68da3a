"""Pages as code: the Python blocks of a page, what they print, and the notebook and script of it."""

from __future__ import annotations

import contextlib
import doctest
import io
import re
from collections.abc import Iterator
from pathlib import Path

import attrs

#: A Python block, and behind it, where the page shows it, what the block prints.
_BLOCK = re.compile(r"^```python\n(.*?)^```$(?:\n+```output\n(.*?)^```$)?", re.DOTALL | re.MULTILINE)
#: A link to a file of this repository, which a notebook or script does not have beside it.
_RELATIVE_LINK = re.compile(r"\[([^\]]+)\]\((?!https?:|#)[^)]+\)")
#: ``...`` in the output of a page stands for anything, as in doctest.
_CHECKER = doctest.OutputChecker()
_DECIMAL = re.compile(r"-?\d+\.\d+")
_FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


@attrs.frozen
class Block:
    """A Python block of a page.

    Args:
        code: as it stands.
        output: what the page says that it prints; None where it says nothing.
        start, end: of the code block and its output in the text.
    """

    code: str
    output: str | None
    start: int
    end: int


def blocks_of(text: str) -> tuple[Block, ...]:
    """The Python blocks of a page, in order."""
    return tuple(Block(found[1], found[2], found.start(), found.end()) for found in _BLOCK.finditer(text))


def pages_with_code(docs: Path) -> tuple[Path, ...]:
    """Pages whose blocks run from top to bottom."""
    return tuple(
        page
        for page in sorted(docs.rglob("*.md"))
        if "_build" not in page.parts and blocks_of(page.read_text(encoding="utf-8"))
    )


def is_printed(expected: str, printed: str) -> bool:
    """Whether a block printed what its page says: ``...`` stands for anything, and a number with a decimal
    point for those within a quarter of it, since other processors round otherwise.
    """
    if _CHECKER.check_output(expected, printed, _FLAGS):
        return True
    if not _CHECKER.check_output(_DECIMAL.sub("#", expected), _DECIMAL.sub("#", printed), _FLAGS):
        return False
    pairs = zip(_DECIMAL.findall(expected), _DECIMAL.findall(printed), strict=False)
    return all(abs(float(one) - float(other)) <= 0.25 * abs(float(one)) for one, other in pairs)


def run(text: str, name: str) -> Iterator[tuple[Block, str]]:
    """Run the blocks of a page one behind the other, and give each with what it printed."""
    names: dict[str, object] = {"__name__": "__main__"}
    for number, block in enumerate(blocks_of(text)):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(block.code, f"{name}, block {number}", "exec"), names)
        yield block, printed.getvalue()


def _without_links(text: str) -> str:
    return _RELATIVE_LINK.sub(r"\1", text).strip()


def _pieces(text: str) -> Iterator[str | Block]:
    """Prose and blocks, in order."""
    at = 0
    for block in blocks_of(text):
        yield _without_links(text[at : block.start])
        yield block
        at = block.end
    yield _without_links(text[at:])


def notebook_of(text: str) -> str:
    """A page as a Jupyter notebook, with the outputs that the page shows."""
    import nbformat
    from nbformat import v4

    cells = []
    for number, piece in enumerate(_pieces(text)):
        if isinstance(piece, Block):
            outputs = [v4.new_output("stream", text=piece.output)] if piece.output else []
            cells.append(v4.new_code_cell(piece.code.rstrip(), outputs=outputs, id=f"cell-{number}"))
        elif piece:
            cells.append(v4.new_markdown_cell(piece, id=f"cell-{number}"))
    metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    notebook = v4.new_notebook(cells=cells, metadata=metadata)
    nbformat.validate(notebook)
    return str(nbformat.writes(notebook))


def script_of(text: str) -> str:
    """A page as a Python script: the text as comments."""
    parts = []
    for piece in _pieces(text):
        if isinstance(piece, Block):
            parts.append(piece.code.rstrip())
        elif piece:
            parts.append("\n".join(f"# {line}".rstrip() for line in piece.splitlines()))
    return "\n\n".join(parts) + "\n"


def with_outputs(text: str, name: str) -> str:
    """A page with the outputs that its blocks print now, where it shows outputs that differ."""
    parts, at = [], 0
    for block, printed in run(text, name):
        is_kept = block.output is None or (
            block.output.strip() and _CHECKER.check_output(block.output, printed, _FLAGS)
        )
        shown = "" if is_kept else f"```python\n{block.code}```\n\n```output\n{printed.rstrip()}\n```"
        parts += [text[at : block.start], shown or text[block.start : block.end]]
        at = block.end
    return "".join([*parts, text[at:]])


def main(paths: list[str]) -> None:
    """Run pages, and write the outputs that have changed into them."""
    for path in map(Path, paths):
        path.write_text(with_outputs(path.read_text(encoding="utf-8"), path.name), encoding="utf-8")


if __name__ == "__main__":
    import sys

    main(sys.argv[1:])
