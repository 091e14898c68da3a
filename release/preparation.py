"""Make a release of what is committed: version, bounds, changelog, commit and tag.

    python release/preparation.py 0.2.0

Nothing is uploaded: pushing the tag starts the workflow that builds, tests and publishes. It refuses a tree
with changes, a version that is not above the last one, and a changelog without news.
"""

from __future__ import annotations

import argparse
import datetime
import re
import subprocess
import sys
from pathlib import Path

from packaging.version import InvalidVersion, Version

from projects import ROOT, VERSION_FILE, core_bounds, projects, version

_UNRELEASED = "## [Unreleased]"
_NEXT_SECTION = re.compile(r"^## \[", re.MULTILINE)


class Refused(Exception):
    """The reason why there is no release."""


def main(arguments: list[str] | None = None) -> int:
    """Prepare a release, or say why not."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("version", help="of the release, such as 0.2.0")
    parser.add_argument("--root", type=Path, default=ROOT, help="the repository")
    parser.add_argument("--date", type=datetime.date.fromisoformat, default=None, help="by default today")
    asked = parser.parse_args(arguments)
    try:
        prepare(asked.root, asked.version, asked.date or datetime.date.today())
    except Refused as reason:
        sys.stderr.write(f"no release: {reason}\n")
        return 1
    print(f"committed and tagged v{asked.version}; next: git push --follow-tags")
    return 0


def prepare(root: Path, new: str, date: datetime.date) -> None:
    """Write the version everywhere it stands, then commit and tag.

    Args:
        root: the repository.
        new: the version.
        date: of the release, for the changelog.

    Raises:
        Refused: nothing was changed.
    """
    _check_version(new, version(root))
    changed = _git(root, "status", "--porcelain")
    if changed:
        raise Refused(f"there are changes that are not committed:\n{changed}")
    if _git(root, "tag", "--list", f"v{new}"):
        raise Refused(f"the tag v{new} is there already")
    changelog = root / "CHANGELOG.md"
    text = _released(changelog.read_text(encoding="utf-8"), new, date)
    changelog.write_text(text, encoding="utf-8")
    (root / VERSION_FILE.name).write_text(f"{new}\n", encoding="utf-8")
    for project in projects(root)[1:]:
        _set_bounds(project / "pyproject.toml", core_bounds(new))
    _git(root, "commit", "--all", "--message", f"Release {new}")
    _git(root, "tag", "--annotate", f"v{new}", "--message", f"torchquilt {new}")


def _check_version(new: str, old: str) -> None:
    try:
        parsed = Version(new)
    except InvalidVersion as error:
        raise Refused(f"{new!r} is no version, such as 0.2.0") from error
    if str(parsed) != new or parsed.local is not None:
        raise Refused(f"{new!r} is written {parsed.public}")
    if parsed <= Version(old):
        raise Refused(f"{new} does not come after {old}")


def _released(changelog: str, new: str, date: datetime.date) -> str:
    """The changelog with its unreleased news below the version, and room for the next."""
    start = changelog.index(_UNRELEASED) + len(_UNRELEASED)
    following = _NEXT_SECTION.search(changelog, start)
    news = changelog[start : following.start() if following else None]
    if not re.search(r"^- ", news, re.MULTILINE):
        raise Refused("the changelog has nothing under Unreleased")
    return f"{changelog[:start]}\n\n## [{new}] - {date.isoformat()}{changelog[start:]}"


def _set_bounds(file: Path, bounds: str) -> None:
    """Let a plugin need the core of this version."""
    text = file.read_text(encoding="utf-8")
    changed, number = re.subn(r'"torchquilt>=[^"]*"', f'"torchquilt{bounds}"', text)
    if number != 1:
        raise Refused(f"{file} needs the core {number} times, and not once")
    file.write_text(changed, encoding="utf-8")


def _git(root: Path, *arguments: str) -> str:
    done = subprocess.run(["git", "-C", root, *arguments], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise Refused(f"git {arguments[0]} failed: {done.stderr.strip()}")
    return done.stdout.strip()


if __name__ == "__main__":
    sys.exit(main())
