# SPDX-License-Identifier: MIT
"""What holds for every test.

A test that was skipped has not tested anything, so it fails the run. Property tests try the same
examples each time, so that a red run says something about the change at hand; with JOBLET_EXPLORE=1
they try new ones, to find what nobody has seen yet. A busy machine is no failure: no deadlines.
"""

import os

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile(
    "joblet",
    deadline=None,
    derandomize=not os.environ.get("JOBLET_EXPLORE"),
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
    print_blob=True,
)
settings.load_profile("joblet")


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    skipped = reporter.stats.get("skipped", []) if reporter else []
    if skipped and exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
        reporter.write_line(f"{len(skipped)} skipped: a skipped test is a failed one", red=True)
