"""`rpiae jobs` as people and programs use it."""

import asyncio
import json
import re
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from redis.asyncio import Redis
from typer.testing import CliRunner, Result

from service.cli import app
from service.jobs.connection import connect
from service.jobs.job import Job
from service.jobs.queue import JobQueue

MakeJob = Callable[..., Job]
RunJobs = Callable[..., Result]

OWNER = "0123456789abcdef" * 4


@pytest.fixture(autouse=True)
def plain_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RPIAE_REDIS_URL", "RPIAE_QUEUE_NAME", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_COLOR", "1")


@pytest.fixture
def jobs(redis_url: str, queue_name: str) -> RunJobs:
    """Function that runs `rpiae jobs` on the test's queue."""

    def run(*arguments: str) -> Result:
        queue = ["--redis-url", redis_url, "--queue", queue_name]
        return CliRunner().invoke(app, ["jobs", *arguments, *queue])

    return run


@pytest.fixture
def on_queue(redis_url: str, queue_name: str) -> Callable[..., Any]:
    """Function that does something with the test's queue and closes it again."""

    def run(work: Callable[[JobQueue, Redis], Awaitable[Any]]) -> Any:
        async def opened() -> Any:
            redis = connect(redis_url)
            queue = JobQueue(redis, name=queue_name, max_deliveries=1)
            await queue.open()
            try:
                return await work(queue, redis)
            finally:
                await queue.close()
                await redis.aclose()

        return asyncio.run(opened())

    return run


@pytest.fixture
def filled(on_queue: Callable[..., Any], make_job: MakeJob) -> dict[str, Job]:
    """A queue with a running, a waiting and a dead job."""
    known = {
        "running": make_job(owner=OWNER, row_steps=40),
        "waiting": make_job(priority="batch"),
        "dead": make_job(model="[bold]stickers"),
    }

    async def fill(queue: JobQueue, redis: Redis) -> None:
        await queue.put([known["dead"]], {known["dead"].id: b"source"})
        [delivery] = await queue.take("host-7", 1, 0)
        stream = f"{queue._root}:stream:interactive"
        await redis.xclaim(
            stream, "workers", "host-7", 0, [delivery.entry_id], idle=120_000, justid=True
        )
        assert await queue.take("host-8", 1, 0) == []
        await queue.put([known["running"], known["waiting"]])
        await queue.take("host-8", 1, 0)

    on_queue(fill)
    return known


def rows(result: Result) -> list[list[str]]:
    """Cells of a printed table, its head first."""
    assert result.exit_code == 0, result.output
    lines = [line for line in result.output.splitlines() if line.strip(" ─")]
    return [re.split(r"\s{2,}", line.strip()) for line in lines]


def test_an_empty_queue_is_said_to_be_empty(jobs: RunJobs) -> None:
    assert jobs("list").output == "no jobs wait or run\n"
    assert jobs("dead").output == "no dead letters\n"
    assert jobs("requeue", "--all").output == "no dead letters\n"
    assert json.loads(jobs("list", "--json").output) == []


def test_the_list_shows_what_waits_and_runs(jobs: RunJobs, filled: dict[str, Job]) -> None:
    _, running, waiting = rows(jobs("list"))

    assert running[:5] == [filled["running"].id, "running", "interactive", "generate", OWNER[:8]]
    assert running[6:] == ["host-8", "40"]
    assert waiting[:4] == [filled["waiting"].id, "waiting", "batch", "generate"]
    assert OWNER not in jobs("list").output

    listed = {job["id"]: job for job in json.loads(jobs("list", "--json").output)}
    assert set(listed) == {filled["running"].id, filled["waiting"].id}
    assert listed[filled["running"].id]["worker"] == "host-8"
    assert listed[filled["running"].id]["num_deliveries"] == 1
    assert listed[filled["waiting"].id]["worker"] is None
    assert 0 <= listed[filled["waiting"].id]["age_s"] < 60


def test_dead_letters_are_listed_and_put_back(
    jobs: RunJobs, filled: dict[str, Job], on_queue: Callable[..., Any]
) -> None:
    dead = filled["dead"]
    _, letter = rows(jobs("dead"))
    assert letter[:5] == [dead.id, "generate", "[bold]stickers", "1", "host-7"]
    [as_json] = json.loads(jobs("dead", "--json").output)
    assert as_json["error"]["code"] == "too_many_deliveries"

    result = jobs("requeue", dead.id, "never-put")
    assert result.exit_code == 1
    assert result.output == f"{dead.id}  waiting\nnever-put  is no dead letter\n"
    assert jobs("dead").output == "no dead letters\n"

    async def take(queue: JobQueue, redis: Redis) -> list[Any]:
        return await queue.take("host-9", 9, 0)

    deliveries = {d.job.id: d for d in on_queue(take)}
    assert deliveries[dead.id].payload == b"source"


def test_all_dead_letters_are_put_back(jobs: RunJobs, filled: dict[str, Job]) -> None:
    result = jobs("requeue", "--all")
    assert (result.exit_code, result.output) == (0, f"{filled['dead'].id}  waiting\n")


def test_one_job_is_shown_without_its_prompt(jobs: RunJobs, filled: dict[str, Job]) -> None:
    job = filled["dead"]
    shown = json.loads(jobs("show", job.id, "--json").output)
    assert (shown["status"], shown["error"]["code"]) == ("failed", "too_many_deliveries")
    assert shown["params"]["steps"] == 4
    assert "prompt" not in shown["params"]
    assert "red circle" not in jobs("show", job.id).output
    assert "red circle" in jobs("show", job.id, "--prompts").output
    assert ["status", "failed"] in rows(jobs("show", job.id))


def test_jobs_are_cancelled(jobs: RunJobs, filled: dict[str, Job]) -> None:
    assert jobs("cancel", filled["waiting"].id).output == f"{filled['waiting'].id}  cancelled\n"
    assert "told to stop" in jobs("cancel", filled["running"].id).output
    assert jobs("cancel", filled["dead"].id).output == f"{filled['dead'].id}  failed\n"


@pytest.mark.parametrize("command", ["show", "cancel"])
def test_an_unknown_job_is_said_to_be_unknown(jobs: RunJobs, command: str) -> None:
    result = jobs(command, "never-put")
    assert result.exit_code == 1
    assert "never-put is unknown" in result.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["list"], "RPIAE_REDIS_URL"),
        (["list", "--redis-url", "localhost"], "RPIAE_REDIS_URL: must start with redis://"),
        (["list", "--redis-url", "redis://127.0.0.1:1"], "does not answer"),
        (["requeue"], "name the jobs, or say --all"),
        (["requeue", "x", "--all"], "name the jobs, or say --all"),
    ],
)
def test_what_cannot_be_done_says_why(arguments: list[str], message: str) -> None:
    result = CliRunner().invoke(app, ["jobs", *arguments])
    assert result.exit_code == 2
    assert message in result.output
    assert "Traceback" not in result.output
