"""Running the kit as its users do: in a process of its own, from a folder that is not the repository."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import attrs

HERE = Path(__file__).parent


@attrs.frozen
class Run:
    """Result of a run.

    Args:
        code: the exit code of pytest.
        text: all that was printed.
    """

    code: int
    text: str

    @property
    def failed(self) -> set[str]:
        """The tests that failed, without the files that they are in."""
        return set(re.findall(r"^FAILED \S*::(\S+)", self.text, re.MULTILINE))

    def line(self, row: str) -> list[str]:
        """The cells of a row in the coverage table."""
        (found,) = re.findall(rf"^{re.escape(row)}  .*$", self.text, re.MULTILINE)
        return re.split(r"  +", found)


def run_kit(folder: Path, *arguments: str, path: tuple[Path, ...] = ()) -> Run:
    """Run the kit.

    Args:
        folder: where to run it.
        arguments: for pytest. Graphs of all rows are drawn only if they say how many.
        path: where Python finds more packages, besides those beside this file.
    """
    # The option -p does nothing where the entry point is known; a source tree may be installed without it.
    command = [sys.executable, "-m", "pytest", "-p", "torchquilt.testing.plugin", "-p", "no:cacheprovider"]
    if not any(one.startswith("--torchquilt-graphs") for one in arguments):
        arguments = ("--torchquilt-graphs=0", *arguments)
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
    env["PYTHONPATH"] = os.pathsep.join([*map(str, path), str(HERE), env.get("PYTHONPATH", "")])
    done = subprocess.run(
        [*command, "-q", "--tb=short", "--show-capture=no", "--pyargs", "torchquilt.testing", *arguments],
        cwd=folder,
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    return Run(done.returncode, done.stdout + done.stderr)
