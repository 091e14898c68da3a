"""Silence for what the runtime and its packages say that is known and harmless, and for nothing else."""

from __future__ import annotations

import contextlib
import io
import logging
import re
import sys
import warnings
from collections.abc import Iterator

#: Logger → what it says while packages are imported.
_KNOWN_RECORDS = {
    # Kernels of other processors that torchao ships with.
    "torchao": re.compile(r"Failed to load .*torchao.*_C"),
    # Enums of torchao that torch has learned to take by itself.
    "torch.utils._pytree": re.compile(r"Calling register_constant\(\) on Enum subclasses is deprecated"),
}
#: How the lines begin that cpuinfo writes when it looks for files that only ARM's Linux has.
_KNOWN_LINE = re.compile(r"\[cpuinfo_utils\.cpp:\d+\] ")


@contextlib.contextmanager
def without_known_records() -> Iterator[None]:
    """Leave out warnings and known records of logging. What else is logged is logged."""
    filters = {logging.getLogger(name): _Filter(known) for name, known in _KNOWN_RECORDS.items()}
    for logger, one in filters.items():
        logger.addFilter(one)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, one in filters.items():
            logger.removeFilter(one)


class _Filter(logging.Filter):
    """Lets through each record that is not known."""

    def __init__(self, known: re.Pattern[str]) -> None:
        super().__init__()
        self._known = known

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the record is logged."""
        return self._known.search(record.getMessage()) is None


@contextlib.contextmanager
def without_known_lines() -> Iterator[None]:
    """Leave out known lines of standard error. The others are written when this ends."""
    told = io.StringIO()
    try:
        with contextlib.redirect_stderr(told):
            yield
    finally:
        lines = told.getvalue().splitlines(keepends=True)
        sys.stderr.writelines(line for line in lines if not _KNOWN_LINE.match(line))
