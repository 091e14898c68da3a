"""Fixtures of the tests of architectures, and the summary of what they measured."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

pytest.register_assert_rewrite("architectures.behaviours")

if TYPE_CHECKING:
    from architectures.behaviours import Outcome, Subject


@pytest.fixture(scope="class")
def subject(request: pytest.FixtureRequest) -> Subject:
    """The architecture of the parameter, exported."""
    from architectures.behaviours import Subject

    return Subject.of(request.param)


@pytest.fixture(scope="class", params=[False, True], ids=["static", "dynamic"])
def outcome(
    request: pytest.FixtureRequest, subject: Subject, tmp_path_factory: pytest.TempPathFactory
) -> Outcome:
    """The subject, quantized in one of two ways, saved and loaded."""
    from architectures.behaviours import Outcome

    path = tmp_path_factory.mktemp("architecture") / "model.pt2"
    return Outcome.of(subject, path, is_dynamic=request.param)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print what was measured, whether it passed or not."""
    reports = [*terminalreporter.getreports("passed"), *terminalreporter.getreports("failed")]
    measured = {
        report.nodeid.rpartition("[")[2].rstrip("]"): dict(report.user_properties)["sqnr"]
        for report in reports
        if "sqnr" in dict(report.user_properties)
    }
    if measured:
        terminalreporter.section("signal to noise of the quantized architectures")
    for name, noise in sorted(measured.items()):
        terminalreporter.line(f"{name:50} {noise}")
