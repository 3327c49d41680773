"""The batch curve of a GPU: its arithmetic, and its measurement of a tiny model on the CPU."""

import pytest
import torch

from benchmarks.gpu_curve import compilers, knee, markdown, measure, median_s
from models.class_denoiser import ClassDenoiserConfig
from tests.recorded_calls import Recording

TINY = ClassDenoiserConfig(
    latent_channels=6, latent_side=4, width=64, depth=2, num_heads=4, num_classes=5
)


@pytest.mark.parametrize(
    ("seconds", "batch"),
    [
        ({1: 1.0, 2: 1.0, 4: 1.0}, 4),  # a step costs the same: more is better
        ({1: 1.0, 2: 2.0, 4: 4.0}, 1),  # nothing is gained
        ({1: 1.0, 2: 1.02, 4: 2.0, 8: 4.0}, 2),  # nearly the best is enough
    ],
)
def test_the_knee_is_the_smallest_batch_of_nearly_the_best_rate(
    seconds: dict[int, float], batch: int
) -> None:
    assert knee(seconds) == batch


def test_a_median_leaves_the_warm_up_out() -> None:
    calls, settled = [], []
    assert median_s(lambda: calls.append(1), 4, lambda: settled.append(1)) >= 0
    assert len(calls) == 3 + 4
    assert len(settled) == 2 * len(calls)


def test_every_side_runs_every_batch_and_two_are_recorded() -> None:
    recording = Recording()
    sides = compilers(recording)
    for name in ("compiled", "compiled, CUDA graph"):  # compiling takes too long here
        sides[name] = type(sides[name])(lambda _: None, sides[name].capture)
    found = list(measure(TINY, torch.device("cpu"), [1, 3], 2, sides, lambda: None))
    assert [(side, batch) for side, batch, _ in found] == [
        (side, batch) for side in sides for batch in (1, 3)
    ]
    assert all(seconds > 0 for *_, seconds in found)
    assert recording.num_captured == 2 * 2


def test_the_table_shows_gains_over_one_row() -> None:
    report = {
        "batches": [1, 4],
        "rounds": 5,
        "rows": [["eager", 1, 0.010], ["eager", 4, 0.020], ["fast", 1, 0.004], ["fast", 4, 0.004]],
        "hardware": {"gpu": "X1"},
        "versions": {"torch": "2"},
        "revision": "0123456789abcdef",
    }
    table = markdown(report)
    assert "| batch | eager | fast |" in table
    assert "| 4 | 20.00 ms, 200/s, **2.00** | 4.00 ms, 1000/s, **4.00** |" in table
    assert "Knees: 4 (eager), 4 (fast). X1" in table
