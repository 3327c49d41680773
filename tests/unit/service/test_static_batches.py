"""Batches in buffers that stay: sizes, what is copied when, and CUDA's calls in their order."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from service.backends import cuda_graphs
from service.backends.cuda_graphs import CudaGraphs
from service.backends.static_batches import StaticBatches, Tensors, uncaptured
from tests.recorded_calls import Recording


class Owner:
    """Whose inputs the fixed ones are."""


def shifted(x: Tensor, weight: Tensor) -> Tensors:
    return x + weight, x * weight


def test_every_size_gives_what_the_function_gives() -> None:
    recording = Recording()
    batches = StaticBatches(shifted, recording)
    for size in (4, 2, 1, 2):
        batches.prepare(torch.zeros(size, 3), torch.zeros(size, 3))
    assert recording.num_captured == 3
    for size in (4, 3, 2, 1, 3):
        x, weight = torch.randn(size, 3), torch.randn(size, 3)
        first = batches(x, weight)
        assert first is not None
        kept = [output.clone() for output in first]
        batches(torch.randn(4, 3), torch.randn(4, 3))
        for found, before, expected in zip(first, kept, shifted(x, weight), strict=True):
            assert torch.equal(found, expected)
            assert torch.equal(found, before)  # a later call does not overwrite it


def test_the_next_larger_size_is_run() -> None:
    sizes: list[int] = []

    def noted(x: Tensor) -> Tensors:
        sizes.append(len(x))
        return (x,)

    batches = StaticBatches(noted, uncaptured)
    for size in (8, 2):
        batches.prepare(torch.zeros(size, 1))
    sizes.clear()
    for size in (1, 2, 3, 8):
        batches(torch.zeros(size, 1))
    assert sizes == [2, 2, 8, 8]
    assert batches(torch.zeros(9, 1)) is None
    assert batches(torch.zeros(2, 5)) is None  # another shape
    assert sizes == [2, 2, 8, 8]


def test_shapes_have_sizes_of_their_own() -> None:
    batches = StaticBatches(lambda x: (x.sum(1),), Recording())
    batches.prepare(torch.zeros(4, 6))
    batches.prepare(torch.zeros(2, 9))
    assert batches(torch.ones(3, 9)) is None
    for shape in ((4, 6), (1, 9), (3, 6)):
        (found,) = batches(torch.ones(*shape)) or ()
        assert torch.equal(found, torch.full((shape[0],), float(shape[1])))


def test_sizes_share_memory_and_inputs_become_their_type() -> None:
    addresses: set[int] = set()

    def noted(x: Tensor) -> Tensors:
        addresses.add(x.data_ptr())
        assert x.is_contiguous()
        return (x + 0,)

    batches = StaticBatches(noted, uncaptured)
    for size in (8, 4, 1):
        batches.prepare(torch.zeros(size, 2, dtype=torch.bfloat16))
    assert len(addresses) == 1
    (found,) = batches(torch.full((3, 2), 1.5)) or ()
    assert found.dtype == torch.bfloat16
    assert torch.equal(found.float(), torch.full((3, 2), 1.5))


def test_fixed_inputs_are_copied_once_for_their_owner() -> None:
    batches = StaticBatches(shifted, uncaptured)
    for size in (4, 2):
        batches.prepare(torch.zeros(size, 1), torch.zeros(size, 1))
    asked: list[float] = []

    def call(owner: Owner | None, weight: float, size: int = 2) -> float:
        def fixed() -> Tensors:
            asked.append(weight)
            return (torch.full((size, 1), weight),)

        outputs = batches(torch.ones(size, 1), fixed=fixed, owner=owner)
        assert outputs is not None
        return float(outputs[1][-1, 0])

    first, second = Owner(), Owner()
    assert [call(first, 2), call(first, 2), call(first, 2)] == [2, 2, 2]
    assert asked == [2]
    assert call(second, 3) == 3
    assert call(first, 2) == 2  # its inputs were overwritten, and come back
    assert call(first, 2) == 2
    assert asked == [2, 3, 2]
    assert [call(None, 5), call(None, 6)] == [5, 6]
    assert call(first, 2) == 2
    # The larger size has the same memory.
    assert call(second, 4, size=4) == 4
    assert call(first, 2) == 2
    assert asked == [2, 3, 2, 5, 6, 2, 4, 2]


def test_an_owner_is_not_kept_alive_nor_mistaken() -> None:
    batches = StaticBatches(shifted, uncaptured)
    batches.prepare(torch.zeros(1, 1), torch.zeros(1, 1))
    for weight in range(20):  # a new object may well have the address of the one before
        owner = Owner()
        outputs = batches(
            torch.ones(1, 1), fixed=lambda w=float(weight): (torch.full((1, 1), w),), owner=owner
        )
        assert outputs is not None
        assert float(outputs[1]) == weight
        del owner


def test_preparing_forgets_whose_inputs_are_there() -> None:
    batches = StaticBatches(shifted, uncaptured)
    batches.prepare(torch.zeros(2, 1), torch.zeros(2, 1))
    owner = Owner()

    def product() -> float:
        outputs = batches(torch.ones(1, 1), fixed=lambda: (torch.full((1, 1), 7.0),), owner=owner)
        assert outputs is not None
        return float(outputs[1])

    assert product() == 7
    batches.prepare(torch.zeros(1, 1), torch.zeros(1, 1))
    assert product() == 7


class FakeCuda:
    """Notes what is asked of `torch.cuda`."""

    def __init__(self) -> None:
        self.calls: list[Any] = []
        self.capturing = False
        fake = self

        class Stream:
            def __init__(self, device: torch.device | None = None) -> None:
                self.name = "main" if device is None else "side"

            def wait_stream(self, other: "Stream") -> None:
                fake.calls.append(f"{self.name} waits for {other.name}")

        class CUDAGraph:
            def replay(self) -> None:
                fake.calls.append("replay")

        self.Stream, self.CUDAGraph = Stream, CUDAGraph
        self.main = Stream()

    def current_stream(self) -> Any:
        return self.main

    def graph_pool_handle(self) -> str:
        return "pool"

    @contextmanager
    def device(self, device: torch.device) -> Iterator[None]:
        self.calls.append(f"on {device}")
        yield

    @contextmanager
    def stream(self, stream: Any) -> Iterator[None]:
        self.calls.append(f"enter {stream.name}")
        yield
        self.calls.append(f"leave {stream.name}")

    @contextmanager
    def graph(self, graph: Any, **options: Any) -> Iterator[None]:
        self.calls.append(("capture", options["pool"], options["stream"].name, options))
        self.capturing = True
        yield
        self.capturing = False


def test_a_call_is_warmed_up_recorded_and_replayed(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeCuda()
    monkeypatch.setattr(cuda_graphs, "cuda", fake)
    graphs = CudaGraphs(torch.device("cuda:1"))
    runs: list[bool] = []
    out = torch.zeros(1)

    def run() -> Tensors:
        runs.append(fake.capturing)
        fake.calls.append("run")
        return (out,)

    replay = graphs(run)
    captured = [call for call in fake.calls if isinstance(call, tuple)]
    fake.calls = [call[0] if isinstance(call, tuple) else call for call in fake.calls]
    assert fake.calls == [
        "on cuda:1",
        "side waits for main",  # the inputs are there
        "enter side",
        *["run"] * 3,
        "leave side",
        "main waits for side",
        "capture",
        "run",
    ]
    assert runs == [False, False, False, True]
    ((_, pool, stream, options),) = captured
    assert (pool, stream, options["capture_error_mode"]) == ("pool", "side", "thread_local")
    fake.calls.clear()
    for _ in range(2):
        assert replay()[0] is out
    assert fake.calls == ["replay", "replay"]
    assert len(runs) == 4
