"""On the host, tests of tests/guest are handed to a guest; in the guest, their reports are handed back."""

from __future__ import annotations

import os

IN_GUEST = "DYNAMOS_LAB" in os.environ
pytest_plugins = ["dynamos_ng.lab.pytest_guest" if IN_GUEST else "dynamos_ng.lab.pytest_host"]
