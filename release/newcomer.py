"""Do what a newcomer does: install the wheels into a venv of their own, and run what the pages say.

    python release/newcomer.py --wheels dist

The venv and the current folder lie outside of the clone. The wheels are installed one by one, with what they
need, and each is listed once it is there. Then the Python of README and the first block of each tutorial run,
from beginning to end, with nothing but what the pages say is installed.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path

from projects import ROOT, projects

_BLOCK = re.compile(r"```python\n(.*?)```", re.DOTALL)
_PIP_LINE = re.compile(r"^pip install (.+)$", re.MULTILINE)
#: Without what shows the clone.
_ENVIRONMENT = {
    key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "TORCHQUILT"))
}


def main() -> int:
    """Install, list, run; the exit code is 1 where one of them fails."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--wheels", type=Path, default=ROOT / "dist", help="the folder of make dist")
    parser.add_argument("--constraint", type=Path, default=ROOT / "constraints.txt", help="versions for pip")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="newcomer-") as folder:
        newcomer = Newcomer(Path(folder), asked.wheels.resolve(), asked.constraint.resolve())
        newcomer.install()
        failed = newcomer.read(ROOT / "README.md", whole=True)
        for page in tutorials(ROOT / "docs/tutorials"):
            failed += newcomer.read(page, whole=False)
    print(f"{failed} failed" if failed else "everything that the pages say works")
    return 1 if failed else 0


def tutorials(folder: Path) -> list[Path]:
    """Pages of a folder, but for the one that lists the others."""
    return [page for page in sorted(folder.glob("*.md")) if page.stem != "index"]


class Newcomer:
    """Somebody with a bare venv and the wheels."""

    def __init__(self, folder: Path, wheels: Path, constraint: Path) -> None:
        self.folder = folder
        self.python = folder / "venv/bin/python"
        self._pip = ("-m", "pip", "--disable-pip-version-check", "--quiet", "install")
        self._from = ("--find-links", str(wheels), "--constraint", str(constraint))
        self._names = [_name_of(project) for project in projects()]

    def install(self) -> None:
        """Make the venv, and install the wheels one by one."""
        venv.create(self.folder / "venv", with_pip=True)
        for name in self._names:
            began = time.monotonic()
            wanted = f"{name}[cli]" if name == "torchquilt" else name
            self._run("install", str(self.python), *self._pip, *self._from, wanted)
            listed = self._run("list", str(self.folder / "venv/bin/torchquilt"), "plugins", "list")
            if name != "torchquilt" and name not in listed:
                raise SystemExit(f"{name} is installed and not listed:\n{listed}")
            print(f"pip install {wanted}: {time.monotonic() - began:.0f} s")

    def read(self, page: Path, *, whole: bool) -> int:
        """Run the code of a page in a folder of its own, after the pip lines of the page; 1 if it fails."""
        text = page.read_text(encoding="utf-8")
        for line in _PIP_LINE.findall(text):
            # From a clone the packages are named by their folders, which are installed.
            words = [word for word in shlex.split(line, comments=True) if not word.startswith((".", "-"))]
            needed = [word for word in words if re.split(r"[\[<>=]", word)[0] not in self._names]
            if needed:
                self._run("install", str(self.python), *self._pip, *self._from, *needed)
        blocks = _BLOCK.findall(text)
        if not blocks:
            return 0
        script = self.folder / f"{page.stem}.py"
        script.write_text("\n".join(blocks) if whole else blocks[0], encoding="utf-8")
        work = self.folder / page.stem
        work.mkdir()
        began = time.monotonic()
        done = subprocess.run(
            [self.python, script], cwd=work, env=_ENVIRONMENT, capture_output=True, text=True, check=False
        )
        what = "all blocks" if whole else "first block"
        print(f"{page.relative_to(ROOT)}, {what}: {time.monotonic() - began:.0f} s", end="")
        print(" FAILED" if done.returncode else "")
        if done.returncode:
            sys.stderr.write(done.stderr[-3000:])
        return int(done.returncode != 0)

    def _run(self, what: str, *command: str) -> str:
        done = subprocess.run(
            command, cwd=self.folder, env=_ENVIRONMENT, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise SystemExit(
                f"cannot {what}: {' '.join(command)}\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
            )
        return done.stdout


def _name_of(project: Path) -> str:
    text = (project / "pyproject.toml").read_text(encoding="utf-8")
    (name,) = re.findall(r'^name = "(.+)"$', text, re.MULTILINE)
    return str(name)


if __name__ == "__main__":
    sys.exit(main())
