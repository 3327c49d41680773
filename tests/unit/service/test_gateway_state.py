"""Which workers the gateway counts on, and for how long."""

from types import SimpleNamespace
from typing import Any

from service.api.state import Gateway, LastWorkers


class Queue:
    """Counts how often it is asked."""

    def __init__(self) -> None:
        self.live: dict[str, dict[str, Any]] = {}
        self.num_asked = 0

    async def workers(self) -> dict[str, dict[str, Any]]:
        self.num_asked += 1
        return self.live


async def test_a_list_of_workers_serves_for_a_moment_unless_it_is_empty() -> None:
    queue = Queue()
    gateway: Any = SimpleNamespace(
        queue=queue, manifest=SimpleNamespace(name="stickers"), last_workers=LastWorkers()
    )
    for num_asked in (1, 2):  # who finds nobody looks again
        assert await Gateway.serving_workers(gateway, 60) == {}
        assert queue.num_asked == num_asked
    queue.live = {"mine": {"model": "stickers"}, "other": {"model": "faces"}}
    for _ in range(3):
        assert await Gateway.serving_workers(gateway, 60) == {"mine": {"model": "stickers"}}
    assert queue.num_asked == 3
    queue.live = {}
    assert await Gateway.serving_workers(gateway) == {}  # as probes ask
    assert await Gateway.serving_workers(gateway, 60) == {}
    assert queue.num_asked == 5
