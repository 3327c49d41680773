"""Formulas of the linear path."""

import pytest
import torch
from torch import Tensor

from models.transport import (
    default_shift,
    guide,
    guide_edit,
    initial_noise,
    interpolate,
    predict_clean,
    sample_timesteps,
    shift_timesteps,
    start_step,
    target_velocity,
    timestep_schedule,
)


@pytest.fixture
def pair() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(4, 2, 3, 3, generator=generator), torch.randn(
        4, 2, 3, 3, generator=generator
    )


def test_schedule_ends_exactly_at_noise_and_data() -> None:
    times = timestep_schedule(7, shift=2.0)
    assert times.shape == (8,)
    assert times[0] == 1
    assert times[-1] == 0
    assert (times.diff() < 0).all()


def test_shift_matches_its_formula() -> None:
    shifted = shift_timesteps(torch.tensor([0.0, 0.5, 1.0]), 2.0)
    assert torch.allclose(shifted, torch.tensor([0.0, 2 / 3, 1.0]))
    with pytest.raises(ValueError, match=r"shift must be >= 1, got 0\.5"):
        shift_timesteps(torch.tensor([0.5]), 0.5)


def test_default_shift_follows_the_number_of_latent_values() -> None:
    assert default_shift((64, 16, 16)) == 2.0
    assert default_shift((32, 8, 8)) == 1.0


def test_path_ends_are_data_and_noise(pair: tuple[Tensor, Tensor]) -> None:
    data, noise = pair
    assert torch.equal(interpolate(data, noise, torch.zeros(4)), data)
    assert torch.equal(interpolate(data, noise, torch.ones(4)), noise)


def test_rows_may_be_at_different_times(pair: tuple[Tensor, Tensor]) -> None:
    data, noise = pair
    t = torch.tensor([0.1, 0.4, 0.7, 1.0])
    x = interpolate(data, noise, t)
    assert torch.allclose(predict_clean(x, target_velocity(data, noise), t), data, atol=1e-6)
    alone = predict_clean(x[2:3], noise[2:3], t[2:3])
    assert torch.equal(alone[0], predict_clean(x, noise, t)[2])


def test_guidance_scale_one_is_unguided(pair: tuple[Tensor, Tensor]) -> None:
    cond, uncond = pair
    one = torch.ones(4)
    assert torch.allclose(guide(cond, uncond, one), cond, atol=1e-6)
    assert torch.allclose(guide_edit(cond, uncond, uncond, one, one), cond, atol=1e-6)


def test_guidance_is_per_row(pair: tuple[Tensor, Tensor]) -> None:
    cond, uncond = pair
    scales = torch.tensor([0.0, 1.0, 2.0, 3.0])
    guided = guide(cond, uncond, scales)
    assert torch.equal(guided[0], uncond[0])
    assert torch.allclose(guided[3], uncond[3] + 3 * (cond[3] - uncond[3]))


def test_edit_guidance_matches_its_formula(pair: tuple[Tensor, Tensor]) -> None:
    full, source = pair
    uncond = full.flip(0)
    guided = guide_edit(full, source, uncond, torch.full((4,), 3.0), torch.full((4,), 1.5))
    assert torch.allclose(guided, uncond + 1.5 * (source - uncond) + 3 * (full - source), atol=1e-5)


def test_noise_belongs_to_its_seed() -> None:
    assert torch.equal(initial_noise(5, (2, 4, 4)), initial_noise(5, (2, 4, 4)))
    assert not torch.equal(initial_noise(5, (2, 4, 4)), initial_noise(6, (2, 4, 4)))


def test_training_times_are_inside_the_unit_interval() -> None:
    times = sample_timesteps(1000, 2.0, torch.Generator().manual_seed(0))
    assert times.min() > 0
    assert times.max() < 1
    assert times.mean() > 0.55  # shift 2 leans towards noise; 0.5 without it


def test_strength_chooses_the_start() -> None:
    assert start_step(20, 1.0) == 0
    assert start_step(20, 0.25) == 15
    assert start_step(20, 0.001) == 19
    with pytest.raises(ValueError, match=r"strength must be in \(0, 1\], got 0"):
        start_step(20, 0)
