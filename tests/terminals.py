"""A command under a pseudo-terminal, as somebody sees it who sits before one."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import Mapping

import attrs

#: Long enough for a machine that is busy with something else; a command that hangs is not waited for longer.
_PATIENCE = 300.0
_CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


@attrs.define
class Terminal:
    """One process, whose three streams are a terminal, and what it has written so far."""

    process: subprocess.Popen[bytes]
    master: int
    text: str = ""

    @classmethod
    def run(cls, *command: object, env: Mapping[str, str] | None = None) -> Terminal:
        """Start a command on a terminal of 40 lines of 120 characters."""
        master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
        inherited = {key: value for key, value in os.environ.items() if key not in ("NO_COLOR", "COLUMNS")}
        process = subprocess.Popen(
            [str(part) for part in command],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env={**inherited, "TERM": "xterm-256color", **(env or {})},
            start_new_session=True,
            # What a shell runs in the background ignores Ctrl-C, and so would what that runs.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        os.close(slave)
        return cls(process, master)

    def read_until(self, wanted: str) -> None:
        """Read until the text, without what moves the cursor, has ``wanted`` in it."""
        while wanted not in self.words:
            assert self._read(), f"ended without {wanted!r}:\n{self.text}"

    def finish(self) -> int:
        """Read to the end and return the exit code."""
        while self._read():
            pass
        os.close(self.master)
        return self.process.wait()

    @property
    def words(self) -> str:
        """The text without colors and movements."""
        return _CONTROL.sub("", self.text)

    def _read(self) -> bool:
        ready, _, _ = select.select([self.master], [], [], _PATIENCE)
        assert ready, f"nothing more came:\n{self.text}"
        try:
            data = os.read(self.master, 1 << 16)
        except OSError:  # how Linux says that the other end is closed
            return False
        self.text += data.decode(errors="replace")
        return bool(data)


def torchquilt(*arguments: object) -> tuple[str, ...]:
    """The command line in an interpreter of its own."""
    return (sys.executable, "-m", "torchquilt", *map(str, arguments))
