"""What every test shares: skips are listed by name at the end, or fail when all is required."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest

CANNOT_BE_HAD = ("vllm", "a GPU", "no right to mount")
"""Reasons to skip even when `LOCKGATE_REQUIRE=all`: parts that no package brings everywhere."""


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[Any]:
    report = yield
    if report.skipped and not hasattr(report, "wasxfail"):
        reason = str(report.longrepr[2]) if isinstance(report.longrepr, tuple) else ""
        excused = any(word in reason for word in CANNOT_BE_HAD)
        if os.environ.get("LOCKGATE_REQUIRE") == "all" and not excused:
            report.outcome = "failed"
            report.longrepr = f"{item.nodeid} was skipped, but all is required: {reason}"
    return report


def pytest_terminal_summary(terminalreporter: Any) -> None:
    skipped = terminalreporter.stats.get("skipped", [])
    if skipped:
        terminalreporter.section("not tested on this machine")
        for report in sorted(skipped, key=lambda report: report.nodeid):
            reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
            terminalreporter.line(f"{report.nodeid}: {str(reason).removeprefix('Skipped: ')}")
