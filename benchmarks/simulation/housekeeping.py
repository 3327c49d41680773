"""What a service does whether or not jobs come: leases, announcements, progress, idle readings.

Each is far too frequent to be an event of its own with a thousand workers. What falls into a
moment is one piece of work for Redis. Progress is published again only some time after the last
reply, so a slow Redis slows it down; the number of publications on their way is therefore kept.
"""

from typing import TYPE_CHECKING

from benchmarks.simulation.readers import PATIENCE_S

if TYPE_CHECKING:
    from benchmarks.simulation.cluster import Cluster

COUNT_EVERY_S = 0.25  # how often the busy workers are counted anew
MOMENTS = (5, 125)  # between two countings, fewest and most
PIECE_S = 0.001  # of work in one moment, if that allows so many moments
PUBLISH_EVERY_S = 0.04  # as in service.attending
LOOK_EVERY_S = 1.0  # as there
ANNOUNCE_S = 1.0  # as in service.heartbeat
RENEWALS_PER_LEASE = 3  # as there
LISTS_PER_S = 5.0  # at most, of each gateway, as in service.api.job_group


class Housekeeping:
    """The background of a cluster; it ends when nothing else is due.

    Attributes:
        redis_s: seconds of Redis by what they went to.
    """

    def __init__(self, cluster: "Cluster", *, progress: bool) -> None:
        self.redis_s = {"progress": 0.0, "signs of life": 0.0, "idle readings": 0.0, "lists": 0.0}
        self._cluster = cluster
        self._progress = progress
        self._moment_s = COUNT_EVERY_S
        self._left = 0  # moments until the next counting
        self._num_stepping = self._num_idle = self._num_alive = 0
        self._publish_s = 0.0  # of one publication
        self._period_s = PUBLISH_EVERY_S
        self._on_their_way = 0
        self._owed = 0.0  # publications, a fraction of one
        self._steady_s = 0.0  # work of a moment
        cluster.loop.at(0.0, self._tick)

    def _tick(self, now: float, _: None) -> None:
        if not self._left:
            self._count(now)
        self._left -= 1
        redis, loop = self._cluster.broker.redis, self._cluster.loop
        redis.serve(now, self._steady_s)
        if self._progress and self._num_stepping:
            ready = max(0, self._num_stepping - self._on_their_way)
            self._owed += ready * self._moment_s / self._period_s
            number = min(int(self._owed), ready)
            if number:
                self._owed -= number
                self._on_their_way += number
                self.redis_s["progress"] += number * self._publish_s
                done_at = redis.serve(now, number * self._publish_s)
                reply_at = done_at + 2 * self._cluster.costs.hop_s
                loop.at(reply_at, self._replied, number)
        loop.at(now + self._moment_s, self._tick)

    def _replied(self, _: float, number: int) -> None:
        self._on_their_way -= number

    def _count(self, now: float) -> None:
        """Look who does what, and what that costs from now on."""
        cluster, costs = self._cluster, self._cluster.costs.redis
        alive = [worker for worker in cluster.workers if worker.alive]
        stepping = [worker for worker in alive if worker.is_stepping]
        held = sum(len(worker.held) for worker in alive)
        self._num_stepping, self._num_alive = len(stepping), len(alive)
        self._num_idle = sum(worker.reading for worker in alive)
        pictures = sum(worker.num_stepping for worker in stepping) / max(1, len(stepping))
        self._publish_s = costs.publish + pictures * costs.publish_event
        rows = min(round(2 * pictures), cluster.device.max_rows)
        self._period_s = max(PUBLISH_EVERY_S, cluster.device.table[rows])
        seconds = max(now, 1.0)
        num_gateways = len(cluster.gateways)
        lists_per_s = min(LISTS_PER_S, cluster.num_arrived / seconds / num_gateways)
        per_s = {
            "signs of life": self._num_alive * (costs.announce / ANNOUNCE_S)
            + self._num_alive * costs.heed / LOOK_EVERY_S
            + (len(stepping) * costs.renew + held * costs.renew_job)
            * RENEWALS_PER_LEASE
            / cluster.lease_s,
            "idle readings": self._num_idle * (costs.wait + costs.take_empty) / PATIENCE_S,
            "lists": num_gateways
            * lists_per_s
            * (costs.list + self._num_alive * costs.list_worker),
        }
        steady = sum(per_s.values())
        share = steady + len(stepping) * self._publish_s / self._period_s * self._progress
        fewest, most = MOMENTS
        self._left = min(max(round(share * COUNT_EVERY_S / PIECE_S), fewest), most)
        self._moment_s = COUNT_EVERY_S / self._left
        self._steady_s = self._moment_s * steady
        for name, of_it in per_s.items():
            self.redis_s[name] += of_it * COUNT_EVERY_S
        read_s = self._num_alive * cluster.costs.gateway.list_worker
        for gateway in cluster.gateways:
            gateway.serve(now, read_s * lists_per_s * COUNT_EVERY_S)
