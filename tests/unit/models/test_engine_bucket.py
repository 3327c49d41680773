"""How a run becomes a CUDA graph, on a double of torch.cuda."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from models.engine_bucket import stream_of
from models.sessions import GraphError

HANDLE = 4711


class RecordedCuda:
    """Writes down what is asked of streams and graphs."""

    def __init__(self) -> None:
        self.steps: list[str] = []

    def Stream(self, device: torch.device) -> Any:
        assert device == torch.device("cuda:1")
        return self.stream("own", HANDLE)

    def stream(self, name: str, handle: int) -> Any:
        return SimpleNamespace(
            name=name,
            cuda_stream=handle,
            wait_stream=lambda other: self.steps.append(f"{name} waits for {other.name}"),
            synchronize=lambda: self.steps.append(f"{name} is done"),
        )

    def current_stream(self, device: torch.device) -> Any:
        return self.stream("current", 0)

    def CUDAGraph(self) -> Any:
        return SimpleNamespace(replay=lambda: self.steps.append("replay"))

    @contextmanager
    def graph(self, graph: Any, *, stream: Any, capture_error_mode: str) -> Iterator[None]:
        assert hasattr(graph, "replay")
        assert capture_error_mode == "thread_local"
        self.steps.append(f"capture on {stream.name}")
        yield
        self.steps.append("captured")

    @contextmanager
    def device(self, device: torch.device) -> Iterator[None]:
        yield


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> RecordedCuda:
    recorded = RecordedCuda()
    for name in ("Stream", "current_stream", "CUDAGraph", "graph", "device"):
        monkeypatch.setattr(torch.cuda, name, getattr(recorded, name))
    return recorded


def test_a_run_is_recorded_after_it_has_run_once(cuda: RecordedCuda) -> None:
    def run(handle: int) -> None:
        assert handle == HANDLE
        cuda.steps.append("run")

    with stream_of(torch.device("cuda:1")) as stream:
        assert stream.handle == HANDLE
        replay = stream.record(run)
    assert cuda.steps == [
        "own waits for current",
        "current is done",
        "run",
        "own is done",
        "capture on own",
        "run",
        "captured",
        "current waits for own",
    ]
    replay()
    replay()
    assert cuda.steps[-2:] == ["replay", "replay"]


def test_a_run_that_is_refused_is_not_recorded(cuda: RecordedCuda) -> None:
    def run(handle: int) -> None:
        raise GraphError("refused")

    with pytest.raises(GraphError), stream_of(torch.device("cuda:1")) as stream:
        stream.record(run)
    assert "capture on own" not in cuda.steps


def test_without_cuda_every_replay_is_a_run() -> None:
    handles: list[int] = []
    replay: Callable[[], None]
    with stream_of(torch.device("cpu")) as stream:
        replay = stream.record(handles.append)
    assert handles == []
    replay()
    replay()
    assert handles == [0, 0]
