"""What is let into the queue: within the caller's limits, and with a deadline that can be met."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from redis.asyncio import Redis

from service.api.cost import num_evaluations
from service.api.estimate import Pace, estimate_s
from service.api.rate_limit import RateLimiter
from service.api.request_context import RequestContext
from service.errors import DeadlineExceeded, InvalidRequest, QueueUnavailable, RateLimited
from service.jobs.job import Job
from service.jobs.standing import Standing
from service.settings import Settings

_JOBS_RETRY_S = 2.0
# Measured times are noisy, and a job that turns out to be hopeless ends early: what needs no more
# than so many times what it has is let in.
_MARGIN = 1.5
_ANNOUNCED_S = 1.0  # how old what a worker says of itself can be


class Admission:
    """Asked before jobs are put. What is not limited by the settings costs no time.

    Args:
        settings: of the gateway.
        redis: the queue's client.
    """

    def __init__(self, settings: Settings, redis: Redis) -> None:
        self._max_jobs = settings.max_jobs_per_key
        self._announced_s = min(_ANNOUNCED_S, settings.lease_s / 3)
        self._standing = Standing(redis, name=settings.queue_name)
        self._limiter = (
            RateLimiter(redis, settings.rate_limit, name=settings.queue_name)
            if settings.rate_limit
            else None
        )

    async def admit(
        self,
        context: RequestContext,
        jobs: Sequence[Job],
        workers: Mapping[str, Mapping[str, Any]],
        *,
        has_deadline: bool,
    ) -> None:
        """Refuse jobs of one request that go beyond the caller's limits or cannot end in time.

        Args:
            context: of the request; it names the caller, and gets the headers of its rate limit,
                and a note for the metrics where that or another limit of the caller refuses it.
            jobs: equal but for their seeds.
            workers: what those announced that could take the jobs.
            has_deadline: the caller set one. Without it nothing is refused for being late.

        Raises:
            RateLimited: this caller's rate, or too many of its jobs have not ended.
            DeadlineExceeded: 504 `deadline_unmeetable`.
            QueueUnavailable: Redis does not answer.
        """
        if has_deadline:
            await self._check_deadline(jobs, workers)
        try:
            if self._limiter is not None:
                await self._charge(self._limiter, context, len(jobs))
            if self._max_jobs:
                await self._count_jobs(context, jobs)
        except RateLimited:
            context.limited = True
            raise

    async def withdraw(self, context: RequestContext, jobs: Sequence[Job]) -> None:
        """Jobs that were let in are not put after all, and count no more as the caller's."""
        if self._max_jobs:
            with suppress(QueueUnavailable):  # they stop to count by themselves, after a while
                await self._standing.release(context.caller, jobs)

    async def _check_deadline(
        self, jobs: Sequence[Job], workers: Mapping[str, Mapping[str, Any]]
    ) -> None:
        job = jobs[0]
        pace = Pace.of(workers.values(), job.priority)
        if pace is None:
            return
        assert job.deadline_at is not None
        ahead = await self._standing.ahead(job)
        if not ahead.num_waiting:  # what ended since the announcement made room for nothing else
            pace = pace.later(self._announced_s)
        seconds = estimate_s(pace, ahead, jobs, num_evaluations(job.params))
        allowed_s = job.deadline_at - job.created_at
        if seconds > _MARGIN * allowed_s:
            raise DeadlineExceeded(
                f"deadline_ms is {1000 * allowed_s:.0f}, but this takes about "
                f"{1000 * seconds:.0f} ms at the moment: allow more, ask for fewer steps or "
                "pictures, or try again when the service is less busy",
                code="deadline_unmeetable",
                param="deadline_ms",
                retry_after_s=seconds - allowed_s,
            )

    async def _charge(self, limiter: RateLimiter, context: RequestContext, cost: int) -> None:
        if cost > limiter.most_at_once:
            raise InvalidRequest(
                f"n is {cost}: this service's rate limit allows {limiter.most_at_once} at once",
                status=422,
                param="n",
                code="invalid_value",
            )
        quota = await limiter.charge(context.caller, cost)
        context.headers.update(quota.headers())
        if quota.retry_after_s:
            raise RateLimited(
                f"the limit of {quota.policy} is reached, {quota.remaining} of {quota.limit} are "
                f"left: try again in {quota.retry_after_s:.3g} s",
                retry_after_s=quota.retry_after_s,
            )

    async def _count_jobs(self, context: RequestContext, jobs: Sequence[Job]) -> None:
        num_held = await self._standing.reserve(context.caller, jobs, self._max_jobs)
        if num_held is not None:
            raise RateLimited(
                f"{num_held} of your jobs are waiting or running, and {self._max_jobs} may: "
                "wait until some have ended, or cancel them",
                code="too_many_jobs",
                retry_after_s=_JOBS_RETRY_S,
            )
