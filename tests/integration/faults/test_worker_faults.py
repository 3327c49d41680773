"""Workers are killed, told to leave, and die of a job, while clients wait."""

import asyncio
import random
import signal
from collections import Counter
from collections.abc import Callable

import pytest

from service.jobs.job import FINAL_STATUSES
from service.jobs.queue import JobQueue
from tests.integration.faults.clients import (
    Request,
    ask_all,
    ask_until_served,
    outcomes,
    some_requests,
)
from tests.integration.faults.processes import Process, Service, meanwhile

MakeService = Callable[..., Service]
pytestmark = pytest.mark.timeout(120)  # many processes start and end here
SERVED = (200, "")


async def announced(queue: JobQueue, processes: list[Process]) -> list[Process]:
    """Those of the processes that the queue knows as workers."""
    pids = {info["pid"] for info in (await queue.workers()).values()}
    return [process for process in processes if process.pid in pids]


async def kill_at_random(service: Service, workers: list[Process], killed: list[Process]) -> None:
    """SIGKILL one worker after another and start a new one for each; one is always at work."""
    async with service.queue() as queue:
        while True:
            await asyncio.sleep(random.uniform(0.1, 0.5))
            at_work = await announced(queue, workers)
            if len(at_work) < 2:
                continue
            victim = random.choice(at_work)
            victim.kill()
            workers[workers.index(victim)] = service.start_worker()
            killed.append(victim)


def final_events(service: Service) -> list[Counter[str]]:
    """For each job that the queue remembers: its final events by kind."""
    with service.redis_client() as client:
        return [
            Counter(
                fields[b"kind"].decode()
                for _, fields in client.xrange(key)
                if fields[b"kind"].decode() in FINAL_STATUSES
            )
            for key in client.scan_iter(f"rpiae:{{{service.queue_name}}}:events:*", count=1000)
        ]


async def test_no_job_is_lost_or_shown_twice_while_workers_are_killed(
    make_service: MakeService,
) -> None:
    """`max_deliveries` is out of the way: here no job is to blame for the deaths around it."""
    service = make_service(fake_step_s=0.03, max_deliveries=50)
    service.start_redis()
    url = service.start_gateway()
    workers = [service.start_worker() for _ in range(3)]
    service.await_ready(url, 3)
    requests = some_requests(300, steps=range(10, 31), stream_share=0.5)
    killed: list[Process] = []
    async with meanwhile(kill_at_random(service, workers, killed)):
        answers = await ask_all([url], requests, at_a_time=24, send=ask_until_served)
    assert len(killed) >= 3
    assert outcomes(answers) == {SERVED: 300}
    assert {answer.num_pictures for answer in answers} == {1}
    # On a busy machine the living may be silent for the time of a lease too.
    assert {code for answer in answers for code in answer.refusals} <= {"no_worker"}
    assert final_events(service) == [{"succeeded": 1}] * 300


async def test_workers_replaced_one_by_one_under_load(make_service: MakeService) -> None:
    """SIGTERM: a worker finishes what it runs, and no request notices."""
    service = make_service(fake_step_s=0.03)
    service.start_redis()
    url = service.start_gateway()
    old = [service.start_worker() for _ in range(2)]
    service.await_ready(url, 2)
    requests = some_requests(120, steps=range(10, 31), stream_share=0.5)
    asking = asyncio.create_task(ask_all([url], requests, at_a_time=16))
    for worker in old:
        new = service.start_worker()
        await asyncio.to_thread(service.await_ready, url, 3)
        worker.send(signal.SIGTERM)
        assert await asyncio.to_thread(worker.wait) == 0
        assert new.alive
    assert outcomes(await asking) == {SERVED: 120}
    async with service.queue() as queue:
        assert (await queue.depth())["interactive"].waiting == 0


async def keep_alive(service: Service, workers: list[Process]) -> None:
    """Start a new worker for each that has died."""
    while True:
        for index, worker in enumerate(workers):
            if not worker.alive:
                workers[index] = service.start_worker()
        await asyncio.sleep(0.05)


async def test_a_job_that_kills_its_worker_is_given_up_and_its_neighbours_finish(
    make_service: MakeService,
) -> None:
    """Also those that were in the same batch each time."""
    service = make_service(fake_step_s=0.03, fake_fatal_prompt="deadly")
    service.start_redis()
    url = service.start_gateway()
    workers = [service.start_worker()]
    service.await_ready(url, 1)
    requests = some_requests(4, steps=(15,))
    requests.insert(2, Request(prompt="deadly", seed=1, steps=15))
    async with meanwhile(keep_alive(service, workers)):
        answers = await ask_all([url], requests, at_a_time=len(requests))
        later = some_requests(8, steps=(5,))
        answers += await ask_all([url], later, at_a_time=8, send=ask_until_served)
    fatal = answers.pop(2)
    assert (fatal.status, fatal.code) == (500, "too_many_deliveries")
    assert outcomes(answers) == {SERVED: 12}
    async with service.queue() as queue:
        [letter] = await queue.dead_letters()
    assert letter["num_deliveries"] == 3
