"""Of several runtimes the fastest that loads is used, one in memory at a time."""

import gc
import weakref
from collections.abc import Callable, Mapping

import pytest

from models.manifest import BundleError
from service.backends.base import Backend, Call, Cost, Limits
from service.backends.fake_backend import FakeBackend
from service.choosing import Candidate, choose, fastest
from service.errors import BackendError

LIMITS = Limits(image_size=(16, 16), latent_shape=(4, 2, 2), max_rows=16, max_images=4)


class Machine:
    """Makes candidates of given speeds, and sees how many of them are in memory."""

    def __init__(self) -> None:
        self.loads: list[str] = []
        self.most_alive = 0
        self._alive: weakref.WeakSet[Backend] = weakref.WeakSet()

    def candidate(self, name: str, step_seconds: Mapping[int, float]) -> Candidate:
        def load() -> Backend:
            gc.collect()
            self.loads.append(name)
            backend = FakeBackend(LIMITS, step_seconds=step_seconds)
            backend.name = name
            self._alive.add(backend)
            self.most_alive = max(self.most_alive, len(self._alive))
            return backend

        return Candidate(name, load)


def broken(error: Exception) -> Callable[[], Backend]:
    def load() -> Backend:
        raise error

    return load


@pytest.mark.parametrize(
    ("one", "other", "expected", "loads"),
    [
        ({2: 0.2, 8: 0.4}, {2: 0.1, 8: 0.3}, "other", ["one", "other"]),
        ({2: 0.1, 8: 0.3}, {2: 0.2, 8: 0.4}, "one", ["one", "other", "one"]),
        # Twice as fast for one picture outweighs 1.5 times as slow for four.
        ({2: 0.2, 8: 0.2}, {2: 0.1, 8: 0.3}, "other", ["one", "other"]),
        # Where one took too long to be tried with more, the first size decides.
        ({2: 0.6, 8: 0.7}, {2: 0.7, 8: 0.1}, "one", ["one", "other", "one"]),
    ],
)
def test_the_fastest_is_used_and_losers_are_freed(
    one: dict[int, float], other: dict[int, float], expected: str, loads: list[str]
) -> None:
    machine = Machine()
    choice = choose([machine.candidate("one", one), machine.candidate("other", other)], "velocity")
    assert (choice.backend.name, choice.unusable) == (expected, {})
    assert machine.loads == loads
    assert machine.most_alive == 1


@pytest.mark.parametrize(
    "error",
    [BundleError("damaged; `rpiae export x --onnx` makes it anew"), RuntimeError("CUDA error")],
)
@pytest.mark.parametrize("broken_first", [True, False])
def test_what_cannot_be_loaded_is_passed_over_and_remembered(
    error: Exception, broken_first: bool
) -> None:
    machine = Machine()
    candidates = [Candidate("bad", broken(error)), machine.candidate("good", {1: 1})]
    choice = choose(candidates if broken_first else candidates[::-1], "velocity")
    assert choice.backend.name == "good"
    assert choice.unusable == {"bad": str(error)}


def test_what_loads_but_fails_is_passed_over() -> None:
    class Failing(FakeBackend):
        def measure(self, call: Call, size: int) -> Cost:
            raise BackendError(f"{call} fails")

    candidates = [
        Machine().candidate("good", {1: 1}),
        Candidate("bad", lambda: Failing(LIMITS)),
    ]
    choice = choose(candidates, "velocity")
    assert (choice.backend.name, choice.unusable) == ("good", {"bad": "velocity fails"})


def test_a_single_one_is_loaded_as_it_is() -> None:
    def load() -> Backend:
        return FakeBackend(LIMITS, fail_calls=frozenset({("prefill", 1), ("velocity", 1)}))

    assert choose([Candidate("only", load)], "velocity").unusable == {}
    with pytest.raises(BundleError, match=r"^gone$"):
        choose([Candidate("only", broken(BundleError("gone")))], "velocity")


def test_without_any_the_reasons_are_told() -> None:
    candidates = [Candidate(name, broken(BundleError(f"no {name}"))) for name in ("a", "b")]
    with pytest.raises(BundleError, match="no runtime can be used: a: no a; b: no b"):
        choose(candidates, "velocity")


def test_the_mean_over_sizes_that_all_have() -> None:
    assert fastest({"a": {2: 1, 8: 4}, "b": {2: 2, 8: 1.9}}) == "b"  # 4 against 3.8
    assert fastest({"a": {2: 1, 8: 4}, "b": {2: 2}}) == "a"
    assert fastest({"a": {1: 0.0}, "b": {1: 1e-12}}) in ("a", "b")
