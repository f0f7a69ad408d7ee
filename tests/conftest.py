"""On the host, tests of tests/guest are handed to a guest; in the guest, their reports are handed back."""

from __future__ import annotations

import os

import pytest

IN_GUEST = "DYNAMOS_LAB" in os.environ
pytest_plugins = ["dynamos_ng.lab.pytest_guest" if IN_GUEST else "dynamos_ng.lab.pytest_host"]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--thorough", action="store_true", help="run tests at their full size, which takes far longer")


@pytest.fixture(scope="session")
def thorough(request: pytest.FixtureRequest) -> bool:
    """Tell whether to run at full size."""
    return bool(request.config.getoption("--thorough"))
