"""Averages against their closed forms, also over a resume."""

import pytest
import torch
from torch import nn

from training.ema import Averages, Ema, weights_file


def set_weight(module: nn.Linear, value: float) -> None:
    with torch.no_grad():
        module.weight.fill_(value)


def trajectory(num_steps: int) -> list[float]:
    return torch.randn(num_steps, generator=torch.Generator().manual_seed(0)).tolist()


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.9, 0.9978])
def test_a_bias_free_average_is_the_weighted_mean_of_what_was_seen(decay: float) -> None:
    module = nn.Linear(1, 1)
    set_weight(module, 100.0)  # must leave no trace
    ema = Ema(module, decay, bias_free=True)
    seen = trajectory(12)
    for step, value in enumerate(seen):
        set_weight(module, value)
        ema.update(module, step)
        shares = [decay ** (step - index) for index in range(step + 1)]
        expected = sum(s * v for s, v in zip(shares, seen, strict=False)) / sum(shares)
        assert float(ema.module.weight) == pytest.approx(expected, abs=1e-5)


def test_the_other_average_keeps_its_warm_up() -> None:
    module = nn.Linear(1, 1)
    set_weight(module, 2.0)
    ema, expected = Ema(module, 0.8), 2.0
    for step, value in enumerate(trajectory(9)):
        set_weight(module, value)
        ema.update(module, step)
        decay = min(0.8, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * value
        assert float(ema.module.weight) == pytest.approx(expected, abs=1e-5)


def test_frozen_parameters_stay_exact() -> None:
    module = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    module[0].requires_grad_(False)
    averages = Averages({"model": module}, 0.9)
    for step in range(5):
        nn.init.normal_(module[1].weight)
        averages.update(step)
    copy = averages.modules["model_ema"]
    assert copy[0].weight.equal(module[0].weight)
    assert not copy[1].weight.equal(module[1].weight)
    assert not any(parameter.requires_grad for parameter in copy.parameters())


def test_the_copy_is_all_that_a_resume_needs() -> None:
    module = nn.Linear(2, 2)
    whole = Averages({"model": module}, 0.9)
    parts = Averages({"model": module}, 0.9)
    for step in range(6):
        nn.init.normal_(module.weight)
        if step == 3:
            saved = parts.modules["model_ema"].state_dict()
            parts = Averages({"model": nn.Linear(2, 2)}, 0.9)
            parts._pairs["model_ema"] = (parts._pairs["model_ema"][0], module)
            parts.modules["model_ema"].load_state_dict(saved)
        whole.update(step)
        parts.update(step)
    assert whole.modules["model_ema"].weight.equal(parts.modules["model_ema"].weight)


def test_without_a_decay_there_are_none() -> None:
    averages = Averages({"model": nn.Linear(1, 1)}, 0.0)
    averages.update(0)
    assert averages.modules == {}
    assert weights_file("decoder", False) == "decoder.safetensors"
    assert weights_file("decoder", True) == "decoder_ema.safetensors"


def test_a_decay_of_one_is_refused() -> None:
    with pytest.raises(ValueError, match=r"in \[0, 1\), got 1"):
        Ema(nn.Linear(1, 1), 1.0)
