"""Learning rates: warm-up, constant part, the two falls and their ends; clipping or none."""

import math
from itertools import pairwise

import pytest
import torch
from torch import nn

from training.config import OptimConfig
from training.optim import learning_rate, make_optimizer, update


def test_the_papers_tokenizer_schedule() -> None:
    """One epoch up, a cosine to 2e-5 at epoch 16, constant afterwards; 10 steps an epoch here."""
    config = OptimConfig(lr=2e-4, warmup_steps=10, decay_to=0.5, min_lr_ratio=0.1)
    rates = [learning_rate(step, 320, config) for step in range(320)]
    assert rates[:10] == pytest.approx([2e-4 * (step + 1) / 10 for step in range(10)])
    half = (10 + 160) // 2
    assert rates[half] == pytest.approx((2e-4 + 2e-5) / 2)
    assert rates[85:160] == sorted(rates[85:160], reverse=True)
    assert rates[160:] == pytest.approx([2e-5] * 160)


def test_constant_then_linear() -> None:
    """The paper's denoiser: constant for 40 epochs, linear to a tenth at 800, kept to 1400."""
    config = OptimConfig(
        lr=2e-4,
        warmup_steps=0,
        decay="linear",
        decay_from=40 / 1400,
        decay_to=800 / 1400,
        min_lr_ratio=0.1,
    )
    rates = [learning_rate(epoch, 1400, config) for epoch in range(1400)]
    assert rates[:41] == [2e-4] * 41
    assert rates[420] == pytest.approx(1.1e-4)
    slopes = [after - before for before, after in pairwise(rates[40:801])]
    assert slopes == pytest.approx([-1.8e-4 / 760] * 760)
    assert rates[800:] == pytest.approx([2e-5] * 600)


def test_the_default_falls_to_its_end() -> None:
    config = OptimConfig(lr=1.0, warmup_steps=5)
    for step in range(5, 50):
        left = 0.5 * (1 + math.cos(math.pi * (step - 5) / 45))
        assert learning_rate(step, 50, config) == pytest.approx(0.03 + 0.97 * left)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"decay_from": 0.5, "decay_to": 0.5}, "decay_to must be above decay_from 0.5"),
        ({"decay_to": 1.5}, "at most 1, got 1.5"),
        ({"clip": -1.0}, "clip must not be negative, got -1"),
    ],
)
def test_values_out_of_range_are_refused(fields: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        OptimConfig(lr=1.0, **fields)


@pytest.mark.parametrize(("clip", "left"), [(0.0, 50.0), (1.0, 1.0), (60.0, 50.0)])
def test_gradients_are_clipped_unless_clip_is_zero(clip: float, left: float) -> None:
    parameter = nn.Parameter(torch.zeros(2))
    config = OptimConfig(lr=1e-3, clip=clip, warmup_steps=0)
    optimizer = make_optimizer([parameter], config)
    parameter.grad = torch.tensor([30.0, 40.0])
    assert update(optimizer, 0, 10, config) == 50
    # The first moment after one step is (1 - beta1) times the gradient that was used.
    used = optimizer.state[parameter]["exp_avg"].norm().item() / (1 - config.betas[0])
    assert used == pytest.approx(left, rel=1e-4)


def test_a_schedule_may_begin_late() -> None:
    config = OptimConfig(lr=1.0, warmup_steps=4)
    parameter = nn.Parameter(torch.zeros(1))
    optimizer = make_optimizer([parameter], config)
    for step, rate in ((20, 0.25), (21, 0.5), (59, learning_rate(39, 40, config))):
        parameter.grad = torch.ones(1)
        update(optimizer, step, 60, config, first_step=20)
        assert optimizer.param_groups[0]["lr"] == pytest.approx(rate)
