"""The command ``torchquilt``: parses arguments, calls the library, prints. Needs the extra ``cli``.

The files, in the order of their imports: ``exits`` (exit codes), ``output`` (what is printed, and where),
``options`` (what several commands have), a file for each command, ``application`` (all of them together, and
errors as exit codes). Importing this package does not import torch, and neither do the commands until they
need it.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.util import find_spec

from torchquilt.cli.exits import INTERRUPTED, NOT_INSTALLED

_NEEDED = ("click", "rich")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        arguments: by default those of the process.

    Returns:
        The exit code, one of :mod:`torchquilt.cli.exits`.
    """
    try:
        missing = [name for name in _NEEDED if find_spec(name) is None]
        if missing:
            sys.stderr.write(
                f"The command torchquilt needs {' and '.join(missing)}: pip install 'torchquilt[cli]'\n"
            )
            return NOT_INSTALLED
        from torchquilt.cli.application import run

        return run(arguments)
    except KeyboardInterrupt:
        # Before the application could take care of it.
        return INTERRUPTED
