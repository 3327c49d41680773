"""`rpiae jobs`: what waits and runs in the queue, and what was given up."""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from service.console import plain_errors

if TYPE_CHECKING:
    from rich.table import Table

    from service.jobs.queue import JobQueue
    from service.settings import Settings

ResultT = TypeVar("ResultT")

_OWNER_DIGITS = 8
_PRIVATE = ("prompt", "negative_prompt")  # the users' own words
_NOT_FOUND = 1
_MAX_COLUMN = 72

app = typer.Typer(
    no_args_is_help=True,
    help="Jobs in the queue: list them, look at one, cancel, and put back what was given up.",
)

RedisOption = Annotated[
    str | None, typer.Option(metavar="URL", help="Address of the queue; default: RPIAE_REDIS_URL.")
]
QueueOption = Annotated[
    str | None, typer.Option("--queue", help="The queue's name; default: RPIAE_QUEUE_NAME.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Write JSON instead of a table.")]


@app.command("list")
def list_command(
    redis_url: RedisOption = None,
    queue: QueueOption = None,
    limit: Annotated[int, typer.Option(min=1, help="Jobs of each priority, oldest first.")] = 100,
    as_json: JsonOption = False,
) -> None:
    """Jobs that wait or run."""
    with plain_errors():
        from service.jobs.listing import list_jobs

        settings = _settings(redis_url, queue)
        jobs = _with_queue(
            settings, lambda opened, redis: list_jobs(redis, settings.queue_name, limit)
        )
        if as_json:
            _write_json([asdict(job) for job in jobs])
            return
        table = _table("id", "state", "priority", "task", "owner", "age", "worker", "row_steps")
        for job in jobs:
            table.add_row(
                job.id, "running" if job.worker else "waiting", job.priority, job.task,
                job.owner[:_OWNER_DIGITS], _duration(job.age_s), job.worker or "",
                str(job.row_steps),
            )  # fmt: skip
        _show(table, "no jobs wait or run")


@app.command("show")
def show_command(
    job_id: Annotated[str, typer.Argument(metavar="ID")],
    redis_url: RedisOption = None,
    queue: QueueOption = None,
    prompts: Annotated[bool, typer.Option("--prompts", help="Show prompts too.")] = False,
    as_json: JsonOption = False,
) -> None:
    """All that is known about a job."""
    with plain_errors():
        [view] = _with_queue(
            _settings(redis_url, queue), lambda opened, redis: opened.views([job_id])
        )
        if view is None:
            raise _unknown(job_id)
        job = view.job
        params = job.params.model_dump(exclude=None if prompts else set(_PRIVATE))
        known = {
            **{name: value for name, value in job.to_fields().items() if name != "params"},
            "row_steps": job.row_steps,
            "created_at": job.created_at,
            "deadline_at": job.deadline_at,
            "status": view.status.value,
            "step": view.step,
            "num_steps": view.num_steps,
            "expires_at": view.expires_at,
            "error": view.error and view.error.to_dict(),
            "params": params,
        }
        if as_json:
            _write_json(known)
            return
        table = _table("field", "value")
        for name, value in known.items():
            if value not in (None, ""):
                table.add_row(name, _text(name, value))
        _show(table, "")


@app.command("cancel")
def cancel_command(
    job_id: Annotated[str, typer.Argument(metavar="ID")],
    redis_url: RedisOption = None,
    queue: QueueOption = None,
) -> None:
    """End a waiting job, or ask the worker of a running one to stop."""
    with plain_errors():
        status = _with_queue(
            _settings(redis_url, queue), lambda opened, redis: opened.cancel(job_id)
        )
        if status is None:
            raise _unknown(job_id)
        if status == "running":
            typer.echo(f"{job_id}  running, its worker was told to stop")
        else:
            typer.echo(f"{job_id}  {status.value}")


@app.command("dead")
def dead_command(
    redis_url: RedisOption = None, queue: QueueOption = None, as_json: JsonOption = False
) -> None:
    """Jobs that were given up because none of several workers finished them."""
    with plain_errors():
        letters = _with_queue(
            _settings(redis_url, queue), lambda opened, redis: opened.dead_letters()
        )
        if as_json:
            _write_json(letters)
            return
        table = _table("id", "task", "model", "deliveries", "last worker", "error", "when")
        for letter in letters:
            table.add_row(
                letter["id"], letter["task"], letter["model"], str(letter["num_deliveries"]),
                letter["worker"], letter["error"]["message"], _moment(letter["at"]),
            )  # fmt: skip
        _show(table, "no dead letters")


@app.command("requeue")
def requeue_command(
    job_ids: Annotated[list[str] | None, typer.Argument(metavar="ID...")] = None,
    every: Annotated[bool, typer.Option("--all", help="Put all dead letters back.")] = False,
    redis_url: RedisOption = None,
    queue: QueueOption = None,
) -> None:
    """Put jobs that were given up back, with as much time as they had at first."""
    if bool(job_ids) == every:
        raise typer.BadParameter("name the jobs, or say --all")
    with plain_errors():
        results = _with_queue(
            _settings(redis_url, queue), lambda opened, redis: _requeue(opened, job_ids)
        )
        for job_id, is_back in results.items():
            typer.echo(f"{job_id}  {'waiting' if is_back else 'is no dead letter'}")
        if not results:
            typer.echo("no dead letters")
        if not all(results.values()):
            raise typer.Exit(_NOT_FOUND)


async def _requeue(queue: "JobQueue", job_ids: Sequence[str] | None) -> dict[str, bool]:
    if job_ids is None:
        job_ids = [letter["id"] for letter in reversed(await queue.dead_letters())]
    return {job_id: await queue.requeue(job_id) for job_id in job_ids}


def _settings(redis_url: str | None, queue_name: str | None) -> "Settings":
    from service.settings import SettingsError, load_settings

    settings = load_settings(redis_url=redis_url, queue_name=queue_name)
    if settings.redis_url is None:
        raise SettingsError(
            "which queue? Set RPIAE_REDIS_URL or give --redis-url. The private Redis that "
            "`rpiae serve` starts cannot be reached from another process: serve with an address"
        )
    return settings


def _with_queue(
    settings: "Settings", work: Callable[["JobQueue", Any], Awaitable[ResultT]]
) -> ResultT:
    """Result of `work` on the opened queue and its client."""
    from service.jobs.connection import connect
    from service.jobs.queue import JobQueue

    assert settings.redis_url is not None
    redis_url = settings.redis_url

    async def run() -> ResultT:
        redis = connect(redis_url)
        queue = JobQueue.from_settings(redis, settings)
        try:
            await queue.open()
            return await work(queue, redis)
        finally:
            await queue.close()
            await redis.aclose()

    return asyncio.run(run())


def _unknown(job_id: str) -> typer.Exit:
    typer.echo(f"job {job_id} is unknown: it never was here, or its time is over", err=True)
    return typer.Exit(_NOT_FOUND)


def _table(*columns: str) -> "Table":
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD)
    for column in columns:
        table.add_column(column, max_width=_MAX_COLUMN, overflow="fold")
    return table


def _show(table: "Table", instead: str) -> None:
    """The table, or a sentence when it is empty."""
    from rich.console import Console
    from rich.measure import Measurement

    if not table.row_count:
        typer.echo(instead)
        return
    console = Console(markup=False, highlight=False)
    # Whole ids also where the terminal is narrow, or the output is a file.
    natural = Measurement.get(console, console.options.update(width=1000), table).maximum
    console.width = max(console.width, natural)
    console.print(table)


def _write_json(value: Any) -> None:
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False))


def _text(name: str, value: Any) -> str:
    if name.endswith("_at"):
        return _moment(value)
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict) else str(value)


def _moment(at: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at))


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.0f} s"
    if seconds < 3600:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
