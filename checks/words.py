"""Find phrases of words.txt in code, tests and docs: words that only we used, where the field has its own.

Run from anywhere: ``python checks/words.py``. Exits with 1 where there are some.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent
#: Files and folders, below the root, that are looked at.
LOOKED_AT = (
    "core",
    "plugins",
    "examples",
    "tests",
    "benchmarks",
    "docs",
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
)
SUFFIXES = {".py", ".md", ".toml"}
#: Beginnings of names of folders that tools write: caches, and the site.
MADE_BY_TOOLS = (".", "__pycache__", "_build", "_downloads")


def table(name: str) -> list[list[str]]:
    """Rows of a table of this folder, without comments."""
    lines = (HERE / name).read_text(encoding="utf-8").splitlines()
    return [line.split("\t") for line in lines if line.strip() and not line.startswith("#")]


def paths() -> Iterator[Path]:
    """The files that are looked at."""
    for name in LOOKED_AT:
        for path in [ROOT / name] if (ROOT / name).is_file() else sorted((ROOT / name).rglob("*")):
            hidden = any(part.startswith(MADE_BY_TOOLS) for part in path.relative_to(ROOT).parts)
            if path.suffix in SUFFIXES and not hidden:
                yield path


def phrases(text: str, patterns: list[tuple[re.Pattern[str], str]]) -> Iterator[tuple[int, str, str]]:
    """Line, phrase and what is said instead, for each phrase; one may run over the end of a line."""
    joined = re.sub(r"(?<=\S)\n[ \t]*(?:#:? )?(?=\w)", lambda found: " ".ljust(len(found[0]), "\x00"), text)
    plain = joined.replace("\x00", "")
    lines = [number for number, letter in _numbered(text, joined) if letter != "\x00"]
    for pattern, instead in patterns:
        for found in pattern.finditer(plain):
            yield lines[found.start()], found[0], instead


def _numbered(text: str, joined: str) -> Iterator[tuple[int, str]]:
    """Number of the line of each letter."""
    number = 1
    for letter, shown in zip(text, joined, strict=True):
        yield number, shown
        number += letter == "\n"


def hits() -> list[str]:
    """Each phrase that stands where it may not, and each exception that nothing needs."""
    patterns = [(re.compile(pattern, re.IGNORECASE), instead) for pattern, instead in table("words.txt")]
    allowed = {(path, part): False for path, part, _ in table("words_allowed.txt")}
    found = []
    for path in paths():
        name = path.relative_to(ROOT).as_posix()
        text = path.read_text(encoding="utf-8")
        lines = text.splitlines()
        for number, phrase, instead in phrases(text, patterns):
            excuses = [key for key in allowed if key[0] == name and key[1] in lines[number - 1]]
            allowed.update(dict.fromkeys(excuses, True))
            if not excuses:
                found.append(f"{name}:{number}: {phrase!r}: say {instead}")
    unused = [
        f"words_allowed.txt: not needed: {path}: {part}" for (path, part), met in allowed.items() if not met
    ]
    return found + unused


if __name__ == "__main__":
    print("\n".join(hits()))
    sys.exit(1 if hits() else 0)
