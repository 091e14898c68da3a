"""Plugin for pytest: options, a hook, and the table at the end.

Where the kit is asked for, an entry point of pytest (:mod:`torchquilt._internal.pytest_entry`) loads it
before options are read. It imports no torch until one of its options is given.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import pytest

from torchquilt.errors import TorchquiltError
from torchquilt.testing.lowering import Lowering

if TYPE_CHECKING:
    from torchquilt.testing.subject import Subject

# Set where the kit is asked for, so that its conftest finds it.
SUBJECT: pytest.StashKey[Subject] = pytest.StashKey()
LOWERINGS: pytest.StashKey[dict[str, Lowering]] = pytest.StashKey()
#: Those of them that come from a hook, and not from installed plugins.
GIVEN_LOWERINGS: pytest.StashKey[dict[str, Lowering]] = pytest.StashKey()


class LoweringHooks:
    """The hook for a target that is no plugin, in a pytest plugin of its own (``-p package.module``).

    Where the target is an installed plugin and the backend's manifest has a contribution to it, rows are
    lowered with :func:`torchquilt.lower` without any hook.
    """

    @staticmethod
    @pytest.hookspec
    def pytest_torchquilt_lowering() -> Mapping[str, Lowering]:
        """Say how a quantized model is lowered.

        Returns:
            Name of a target, as in the rows of support tables → function that takes the converted model and
            its inputs, lowers the model, runs it and returns its output (all of them, as the model does).
            A model in float may be given as well, to see whether the target runs it at all. It raises an
            exception of any kind where a part of the model that is quantized would not run as integers.
        """
        raise NotImplementedError  # pluggy reads only the signature


def pytest_addoption(parser: pytest.Parser) -> None:
    """Declare the options."""
    group = parser.getgroup("torchquilt", "conformance of torchquilt backends (--pyargs torchquilt.testing)")
    group.addoption("--torchquilt-backend", metavar="NAME", help="the installed backend to test")
    group.addoption(
        "--torchquilt-quantizer",
        metavar="MODULE:CLASS",
        help="test this class instead; it need not be installed, and its manifest is not tested",
    )
    group.addoption(
        "--torchquilt-shapes",
        metavar="N",
        type=int,
        default=5,
        help="how many shapes are drawn for the limits of each row (default: 5)",
    )
    group.addoption(
        "--torchquilt-graphs",
        metavar="N",
        type=int,
        default=20,
        help="how many graphs are drawn of all rows together (default: 20)",
    )
    group.addoption(
        "--torchquilt-seed",
        metavar="N",
        type=int,
        default=0,
        help="the first seed that graphs are drawn with (default: 0)",
    )


def pytest_addhooks(pluginmanager: pytest.PytestPluginManager) -> None:
    """Declare the hook for lowering."""
    pluginmanager.add_hookspecs(LoweringHooks)


def pytest_configure(config: pytest.Config) -> None:
    """Load the backend that is asked for."""
    backend, reference = config.getoption("--torchquilt-backend"), config.getoption("--torchquilt-quantizer")
    if not (backend or reference):
        return
    if backend and reference:
        raise pytest.UsageError("Give --torchquilt-backend or --torchquilt-quantizer, not both.")
    from torchquilt.testing import subject
    from torchquilt.testing.targets import installed_lowerings

    try:
        config.stash[SUBJECT] = subject.installed(backend) if backend else subject.named(reference)
    except TorchquiltError as error:
        raise pytest.UsageError(str(error)) from error
    given = {name: one for many in config.hook.pytest_torchquilt_lowering() for name, one in many.items()}
    config.stash[GIVEN_LOWERINGS] = given
    config.stash[LOWERINGS] = {**installed_lowerings(config.stash[SUBJECT]), **given}


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print what was found of each row."""
    if SUBJECT not in config.stash:
        return
    from torchquilt.testing.coverage import coverage_table

    reports = [report for reports in terminalreporter.stats.values() for report in reports]
    subject, checked = config.stash[SUBJECT], frozenset(config.stash[LOWERINGS].keys())
    terminalreporter.section(f"what {subject.name} claims, and what was found", sep="-")
    terminalreporter.write_line(coverage_table(subject, reports, checked))
