"""Exit codes. They are documented in ``--help`` and in docs/command-line.md, and do not change."""

from __future__ import annotations

#: All went well, and there is nothing to tell.
OK = 0
#: All went well, and the answer is no: two things differ, something is broken, or not good enough.
NO = 1
#: The command line cannot be understood: an option, an argument, or a file that is not there.
USAGE = 2
#: It cannot be done: an error of torchquilt, or of a file.
ERROR = 3
#: The extra ``cli`` is not installed.
NOT_INSTALLED = 4
#: Something happened that torchquilt did not foresee (``EX_SOFTWARE`` of sysexits.h).
UNEXPECTED = 70
#: Ctrl-C (128 and the number of SIGINT, as shells have it).
INTERRUPTED = 130

#: The same for ``--help``.
EPILOG = """\b
Exit codes:
  0    done
  1    the answer is no: diff found differences, doctor something broken,
       compare an output under --fail-below, search nothing within the limits
  2    the command line is wrong, or names a file that is not there
  3    an error, which is told on standard error
  4    the extra cli is not installed: pip install 'torchquilt[cli]'
  70   something that torchquilt did not foresee; --debug shows it
  130  interrupted by Ctrl-C
"""
