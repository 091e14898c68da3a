"""Build all wheels and sdists into a folder, and have their descriptions checked.

    python release/distributions.py --output dist

Each wheel is built from its sdist, as pip would build it, so that an sdist that misses something shows.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

from projects import ROOT, projects, version


def main() -> int:
    """Build, check, and list what was built."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--output", type=Path, default=ROOT / "dist", help="the folder, which is made anew")
    output: Path = parser.parse_args().output
    if output.exists():
        shutil.rmtree(output)
    for project in projects():
        run(sys.executable, "-m", "build", "--no-isolation", "--outdir", output, project)
    built = sorted(output.iterdir())
    run(sys.executable, "-m", "twine", "check", "--strict", *built)
    expected = 2 * len(projects())
    if len(built) != expected or any(f"-{version()}" not in path.name for path in built):
        sys.stderr.write(f"{expected} files of version {version()} were expected, and these are there:\n")
        sys.stderr.write("\n".join(path.name for path in built) + "\n")
        return 1
    for path in built:
        print(f"{path.stat().st_size:>9,}  {path.name}")
    return 0


def run(*command: object) -> None:
    """Run a command, and show what it says only where it fails."""
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.stderr.write(done.stdout + done.stderr)
        raise SystemExit(f"failed: {' '.join(str(part) for part in command)}")


if __name__ == "__main__":
    sys.exit(main())
