"""The engine's thread: what it tells the loop, and when."""

import asyncio
from collections.abc import Callable, Sequence
from math import inf
from typing import Any

import pytest

from service.backends.base import Limits
from service.backends.fake_backend import FakeBackend
from service.engine import compute
from service.engine.compute import ComputeThread
from service.engine.engine import Engine
from service.engine.work import EngineEvent, Finished, PictureWork, Stepped, Tick
from service.running import has_news

LIMITS = Limits(image_size=(16, 16), latent_shape=(4, 2, 2), max_rows=16, max_images=4)
NUM_STEPS = 40


def picture(name: str, num_steps: int = NUM_STEPS) -> PictureWork:
    return PictureWork(id=name, prompt="", seed=1, num_steps=num_steps, guidance_scale=1.0)


async def run(
    backend: FakeBackend,
    last: str = "a",
    react: Callable[[ComputeThread, EngineEvent], None] = lambda *_: None,
) -> list[EngineEvent]:
    """What is told of the picture `a` and others, until the picture `last` is finished."""
    told: list[EngineEvent] = []
    over = asyncio.Event()

    def on_ticks(ticks: Sequence[Tick]) -> None:
        for event in [event for tick in ticks for event in tick.events]:
            told.append(event)
            react(thread, event)
            if isinstance(event, Finished) and event.job_id == last:
                over.set()

    thread = ComputeThread(Engine(backend, shift=1.0), on_ticks, has_news)
    ended = thread.start()
    thread.submit(picture("a"))
    await over.wait()
    thread.stop()
    await ended
    return told


@pytest.mark.parametrize(("every_s", "num_calls"), [(-1.0, NUM_STEPS), (inf, 2)])
async def test_steps_that_follow_quickly_are_told_together(
    every_s: float, num_calls: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once before the end, when another job may be fetched, and no later than at the end."""
    loop = asyncio.get_running_loop()
    calls: list[Any] = []

    def counted(callback: Any, *arguments: Any) -> asyncio.Handle:
        calls.append(callback)
        return plain(callback, *arguments)

    plain = loop.call_soon_threadsafe
    monkeypatch.setattr(loop, "call_soon_threadsafe", counted)
    monkeypatch.setattr(compute, "_TELL_EVERY_S", every_s)
    told = await run(FakeBackend(LIMITS))
    steps = [event.step for event in told if isinstance(event, Stepped)]
    assert steps == list(range(1, NUM_STEPS + 1))
    assert isinstance(told[-1], Finished)
    assert len(calls) == num_calls + 1  # one more for the thread's end


async def test_a_job_can_be_dropped_after_any_slow_step() -> None:
    """Each is told while the next one runs."""

    def drop(thread: ComputeThread, event: EngineEvent) -> None:
        if isinstance(event, Stepped) and event.job_id == "a":
            thread.drop("a")
            if event.step == 1:
                thread.submit(picture("b", num_steps=1))

    told = await run(FakeBackend(LIMITS, step_seconds={16: 0.01}), "b", drop)
    assert len([event for event in told if event.job_id == "a"]) < NUM_STEPS / 2


async def test_what_is_no_news_is_told_before_the_thread_sleeps(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of a job that was dropped nothing else follows that would be news."""
    monkeypatch.setattr(compute, "_TELL_EVERY_S", inf)
    told = asyncio.Event()

    class Dropping(Engine):
        def tick(self) -> Tick:
            ended = super().tick()
            self.drop("a")
            return ended

    thread = ComputeThread(Dropping(FakeBackend(LIMITS), shift=1.0), lambda _: told.set(), has_news)
    ended = thread.start()
    thread.submit(picture("a"))
    await told.wait()
    thread.stop()
    await ended
