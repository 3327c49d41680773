"""Samplers: orders of convergence, exact cases, and plans that share a batch."""

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from models.manifest import SAMPLERS, Sampler, min_steps
from models.solvers import SamplingPlan, advance, pad_map, plan_sampling
from models.transport import initial_noise, interpolate, timestep_schedule

SHAPE = (2, 3, 3)
ORDERS: dict[Sampler, int] = {"euler": 1, "heun": 2, "dpmpp-2m": 2, "unipc": 2}


class GaussianData:
    """Data N(mean, std^2): the exact velocity of a point, and where its path ends, in float64."""

    mean, std = 0.7, 0.4

    def spread(self, t: float) -> float:
        return math.sqrt((1 - t) ** 2 * self.std**2 + t**2)

    def velocity(self, x: Tensor, t: float) -> Tensor:
        # d/dt of the path that keeps (x - (1 - t) mean) / spread.
        slope = (t - (1 - t) * self.std**2) / self.spread(t) ** 2
        return slope * (x - (1 - t) * self.mean) - self.mean

    def data(self, noise: Tensor) -> Tensor:
        return self.mean + self.std * noise


def run(plan: SamplingPlan, x: Tensor, velocity: object) -> Tensor:
    """The result of one picture's plan."""
    states = plan.initial_state(x)[None]
    for t, matrix in zip(plan.times, plan.maps, strict=True):
        states = advance(states, velocity(states[:, 0], t), matrix[None])  # type: ignore[operator]
    return states[0, 0]


def noise(seed: int = 1) -> Tensor:
    return initial_noise(seed, SHAPE).double()


def error(sampler: Sampler, num_steps: int, shift: float) -> float:
    field = GaussianData()
    end = run(plan_sampling(sampler, num_steps, shift), noise(), field.velocity)
    return float((end - field.data(noise())).abs().max())


@pytest.mark.parametrize("shift", [1.0, 2.0])
@pytest.mark.parametrize("sampler", ORDERS)
def test_halving_the_steps_divides_the_error_as_the_order_says(
    sampler: Sampler, shift: float
) -> None:
    ratio = error(sampler, 640, shift) / error(sampler, 1280, shift)
    assert math.log2(ratio) == pytest.approx(ORDERS[sampler], abs=0.3)


@pytest.mark.parametrize("num_steps", [8, 20, 50])
def test_higher_orders_are_better_than_euler_at_every_number_of_steps(num_steps: int) -> None:
    euler = error("euler", num_steps, 1.0)
    assert error("unipc", num_steps, 1.0) < error("dpmpp-2m", num_steps, 1.0) < euler / 3


@pytest.mark.parametrize("num_steps", [2, 3, 7, 50])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_constant_velocity_leads_to_the_data(sampler: Sampler, num_steps: int) -> None:
    data = noise(2)
    plan = plan_sampling(sampler, num_steps, 2.0)
    end = run(plan, noise(), lambda x, t: (noise() - data).expand_as(x))
    if sampler == "euler-reference":  # stops at the shifted 0.001
        t = 2.0 * 0.001 / 1.001
        data = (1 - t) * data + t * noise()
    torch.testing.assert_close(end, data, rtol=0, atol=1e-10)


@pytest.mark.parametrize("strength", [0.1, 0.5])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_run_from_a_noised_source_ends_at_the_data(sampler: Sampler, strength: float) -> None:
    data = noise(2)
    plan = plan_sampling(sampler, 10, 1.0, strength=strength)
    assert plan.times[0] < 1
    t = torch.tensor(plan.times[:1], dtype=torch.float64)
    start = interpolate(data[None], noise()[None], t)[0]
    end = run(plan, start, lambda x, _: (noise() - data).expand_as(x))
    tolerance = 0.01 if sampler == "euler-reference" else 1e-10
    torch.testing.assert_close(end, data, rtol=0, atol=tolerance)


def test_euler_is_its_formula() -> None:
    times = timestep_schedule(5, 1.5)
    expected = noise()
    for t, t_next in pairwise(times):
        expected = expected + (t_next - t) * expected.sin()
    end = run(plan_sampling("euler", 5, 1.5), noise(), lambda x, _: x.sin())
    torch.testing.assert_close(end, expected)


def test_heun_is_its_formula() -> None:
    times = timestep_schedule(4, 1.5)
    x = noise()
    for t, t_next in pairwise(times):
        slope = x.sin() * t
        if t_next > 0:
            slope = (slope + (x + (t_next - t) * slope).sin() * t_next) / 2
        x = x + (t_next - t) * slope
    end = run(plan_sampling("heun", 4, 1.5), noise(), lambda x, t: x.sin() * t)
    torch.testing.assert_close(end, x)


def test_dpm_solver_is_its_formula() -> None:
    """Algorithm 2 of arXiv 2211.01095 as it is written there, on a run that starts below t = 1."""
    plan = plan_sampling("dpmpp-2m", 10, 1.0, strength=0.5)
    times = [*plan.times, 0.0]
    x, before = noise(), None
    for index, (t, t_next) in enumerate(pairwise(times[:-1])):
        clean = x - t * x.sin()
        step = math.log((1 - t_next) / t_next) - math.log((1 - t) / t)
        direction = clean
        if before is not None:
            ratio = (
                math.log((1 - t) / t) - math.log((1 - times[index - 1]) / times[index - 1])
            ) / step
            direction = (1 + 1 / (2 * ratio)) * clean - 1 / (2 * ratio) * before
        x = t_next / t * x - (1 - t_next) * math.expm1(-step) * direction
        before = clean
    x = x - times[-2] * x.sin()
    torch.testing.assert_close(run(plan, noise(), lambda x, _: x.sin()), x)


@pytest.mark.parametrize(
    ("sampler", "expected"),
    [("euler", 10), ("euler-reference", 9), ("heun", 19), ("dpmpp-2m", 10), ("unipc", 10)],
)
def test_number_of_evaluations(sampler: Sampler, expected: int) -> None:
    plan = plan_sampling(sampler, 10, 2.0)
    assert plan.num_evaluations == len(plan.maps) == expected
    assert plan.times[0] == 1
    assert min(plan.times) > 0  # the denoiser is never asked about data without noise


def test_the_published_grid() -> None:
    """N points, shifted, of which the last is where the run ends."""
    shift = 2.0
    plan = plan_sampling("euler-reference", 8, shift)
    points = [1 - 0.999 * index / 7 for index in range(8)]
    grid = [shift * u / (1 + (shift - 1) * u) for u in points]
    assert plan.times == pytest.approx(grid[:-1], abs=1e-12)
    steps = plan.maps[:, 0, 1].tolist()
    assert steps == pytest.approx([b - a for a, b in pairwise(grid)], abs=1e-12)


@pytest.mark.parametrize("shift", [1.0, 7.0])
@pytest.mark.parametrize("num_steps", [2, 3, 50, 1000])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_coefficients_are_finite_and_moderate(
    sampler: Sampler, num_steps: int, shift: float
) -> None:
    maps = plan_sampling(sampler, num_steps, shift).maps
    assert maps.isfinite().all()
    assert maps.abs().max() < 10


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_shortest_run(sampler: Sampler) -> None:
    fewest = min_steps(sampler)
    assert plan_sampling(sampler, fewest, 2.0).num_evaluations == 1
    with pytest.raises(ValueError, match=f"num_steps must be >= {fewest} for {sampler}, got"):
        plan_sampling(sampler, fewest - 1, 2.0)


def test_options_out_of_range() -> None:
    with pytest.raises(ValueError, match="unknown sampler 'ddim', expected one of euler, "):
        plan_sampling("ddim", 5, 1.0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="strength must be in"):
        plan_sampling("unipc", 5, 1.0, strength=0.0)


def test_a_row_does_not_depend_on_its_neighbours() -> None:
    """To the bit, with other samplers, other times and other numbers of slots beside it."""
    generator = torch.Generator().manual_seed(3)
    plans = [plan_sampling(sampler, 6, 1.5) for sampler in SAMPLERS]
    widest = max(plan.num_slots for plan in plans)
    states = [torch.randn(plan.num_slots, *SHAPE, generator=generator) for plan in plans]
    velocity = torch.randn(len(plans), *SHAPE, generator=generator)
    maps = [plan.maps[2 + index % 3] for index, plan in enumerate(plans)]
    padded = torch.zeros(len(plans), widest, *SHAPE)
    for row, state in zip(padded, states, strict=True):
        row[: len(state)] = state
    together = advance(padded, velocity, torch.stack([pad_map(one, widest) for one in maps]))
    for index, plan in enumerate(plans):
        alone = advance(states[index][None], velocity[index][None], maps[index][None])
        assert torch.equal(together[index, : plan.num_slots], alone[0]), plan
        assert not together[index, plan.num_slots :].any()
