"""Samplers as plans: everything a picture's steps need, computed once from its options.

Between two times every solver here is linear in what it keeps and in the new velocity. So a plan
is a list of times and of small matrices, and one function advances pictures of any samplers
together. Times run from 1 (noise) to 0 (data); see `models.transport`.

R pictures, K slots that a picture keeps, C latent channels.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from models.manifest import SAMPLERS, Sampler, min_steps
from models.transport import shift_timesteps, start_step, timestep_schedule

REFERENCE_END = 0.001
"""Where the published sampler stops, before the shift (RPiAE src/sample.py: 1 - 0.999)."""

# How far from t = 1 to the second time lambda begins, chosen by the error on the stickers bundle
# for 4 to 50 steps. Near 0 the second step is one of first order; 0.5 gives it the slope of a clean
# prediction that is linear in t. DPM-Solver++ gains up to a fifth by 0.4, which is better than 0.5
# for 4 steps. UniPC's corrector sees to that by itself: a larger share makes few steps worse.
_DPM_FIRST, _UNIPC_FIRST = 0.4, 0.03


@dataclass(frozen=True, kw_only=True, eq=False)
class SamplingPlan:
    """How one picture is sampled.

    times: t of each velocity evaluation, in order; maps: (len(times), K, K + 1) float64, for each
    evaluation the matrix that takes [slot 0, ..., slot K - 1, velocity] to the new slots. Slot 0 is
    the point whose velocity is wanted next and, after the last evaluation, the result; the other
    slots are the solver's memory. At the start slot 0 is the picture's noise, or its noised source
    at times[0], and the memory is zero.
    """

    times: tuple[float, ...]
    maps: Tensor

    @property
    def num_evaluations(self) -> int:
        """Velocity evaluations of the whole run."""
        return len(self.times)

    @property
    def num_slots(self) -> int:
        """K."""
        return self.maps.shape[1]

    def initial_state(self, x: Tensor) -> Tensor:
        """Slots (K, C, h, w) before the first evaluation at the point x (C, h, w)."""
        state = x.new_zeros(self.num_slots, *x.shape)
        state[0] = x
        return state


def plan_sampling(
    sampler: Sampler, num_steps: int, shift: float, *, strength: float = 1.0
) -> SamplingPlan:
    """The plan of one picture.

    Args:
        sampler: `heun` takes two evaluations for each step but the last, the others one;
            `euler-reference` counts grid points as the published sampler does, which makes one
            step less, and ends at a shifted t of 0.001, where the others end at 0.
        num_steps: at least `min_steps(sampler)`.
        strength: in (0, 1]; below 1 only the last part of the grid is used, at least one step.

    Raises:
        ValueError: an option is out of its range.
    """
    if sampler not in SAMPLERS:
        raise ValueError(f"unknown sampler {sampler!r}, expected one of {', '.join(SAMPLERS)}")
    if num_steps < min_steps(sampler):
        raise ValueError(
            f"num_steps must be >= {min_steps(sampler)} for {sampler}, got {num_steps}"
        )
    grid = _reference_grid(num_steps, shift)
    if sampler != "euler-reference":
        grid = timestep_schedule(num_steps, shift)
    times = grid[start_step(len(grid) - 1, strength) :].tolist()
    match sampler:
        case "euler" | "euler-reference":
            return SamplingPlan(times=tuple(times[:-1]), maps=_euler(times))
        case "heun":
            # A step's end is evaluated twice: by its second stage, and by the next step's first.
            inner = [t for t in times[1:-1] for _ in range(2)]
            return SamplingPlan(times=(times[0], *inner), maps=_heun(times))
        case "dpmpp-2m":
            return SamplingPlan(times=tuple(times[:-1]), maps=_dpmpp_2m(times))
        case "unipc":
            return SamplingPlan(times=tuple(times[:-1]), maps=_unipc(times))


def advance(states: Tensor, velocity: Tensor, maps: Tensor) -> Tensor:
    """Slots (R, K, C, h, w) after one evaluation of each row.

    Args:
        states: (R, K, C, h, w); rows that keep fewer than K slots are filled up with zeros.
        velocity: (R, C, h, w), at slot 0.
        maps: (R, K, K + 1), one matrix of each row's plan, filled up with `pad_map`.

    Sums are written out term by term, so that a row comes out the same to the bit whichever rows
    are beside it; a matrix product may add in another order for another batch.
    """
    weights = maps.to(states).view(*maps.shape, *[1] * (velocity.ndim - 1))
    *of_slots, of_velocity = weights.unbind(2)  # each (R, K, 1, 1, 1)
    new: Tensor = of_velocity * velocity.unsqueeze(1)
    for weight, slot in zip(of_slots, states.unbind(1), strict=True):
        new += weight * slot.unsqueeze(1)
    return new


def pad_map(matrix: Tensor, num_slots: int) -> Tensor:
    """Maps (..., k, k + 1) as ones of num_slots slots, the further ones staying zero."""
    own = matrix.shape[-2]
    padded = matrix.new_zeros(*matrix.shape[:-2], num_slots, num_slots + 1)
    padded[..., :own, :own] = matrix[..., :own]
    padded[..., :own, num_slots] = matrix[..., own]
    return padded


def _reference_grid(num_points: int, shift: float) -> Tensor:
    """The published sampler's times, float64: 1 - linspace(0, 0.999, N), shifted."""
    points = torch.linspace(0, 1 - REFERENCE_END, num_points, dtype=torch.float64)
    return shift_timesteps(1 - points, shift)


def _slots(num_slots: int) -> Sequence[Tensor]:
    """Each slot, then the velocity, as a row of a map: sums of them are what a new slot holds."""
    return torch.eye(num_slots + 1, dtype=torch.float64).unbind()


def _euler(times: Sequence[float]) -> Tensor:
    x, velocity = _slots(1)
    return torch.stack([(x + (t_next - t) * velocity)[None] for t, t_next in pairwise(times)])


def _heun(times: Sequence[float]) -> Tensor:
    """Slots: point, and where half of the step's first velocity leads.

    The last step is Euler's: at t = 0 there is no noise left to ask the denoiser about.
    """
    x, half, velocity = _slots(2)
    maps = []
    for t, t_next in pairwise(times[:-1]):
        dt = t_next - t
        maps.append(torch.stack([x + dt * velocity, x + dt / 2 * velocity]))
        maps.append(torch.stack([half + dt / 2 * velocity, 0 * half]))
    last = x + (times[-1] - times[-2]) * velocity
    return torch.stack([*maps, torch.stack([last, 0 * half])])


def _dpmpp_2m(times: Sequence[float]) -> Tensor:
    """Slots: point, previous clean prediction.

    DPM-Solver++(2M), data prediction (Lu et al. 2022, arXiv 2211.01095, algorithm 2), with
    alpha = 1 - t and sigma = t.
    """
    x, before, velocity = _slots(2)
    lambdas = _lambdas(times, _DPM_FIRST)
    maps = []
    for index, t in enumerate(times[:-1]):
        clean = x - t * velocity
        point = _predict(times, lambdas, index, x, clean, before)
        maps.append(torch.stack([point, clean]))
    return torch.stack(maps)


def _unipc(times: Sequence[float]) -> Tensor:
    """Slots: predicted point, corrected point but for the term of its own clean prediction,
    previous clean prediction.

    UniPC of order 2 with B2(h), data prediction (Zhao et al. 2023, arXiv 2302.04867, algorithms
    5 and 6): the predictor is DPM-Solver++'s; the corrector of a point uses the velocity at it,
    so it costs no evaluation. The result itself is not corrected: it has no velocity.
    """
    x, partial, before, velocity = _slots(3)
    lambdas = _lambdas(times, _UNIPC_FIRST)
    maps = []
    for index, t in enumerate(times[:-1]):
        clean = x - t * velocity
        corrected = x
        if index:
            corrected = partial + _corrector_weights(times, lambdas, index - 1)[0] * clean
        point = _predict(times, lambdas, index, corrected, clean, before)
        _, at_start, at_before = _corrector_weights(times, lambdas, index)
        rest = times[index + 1] / t * corrected + at_start * clean + at_before * before
        maps.append(torch.stack([point, rest, clean]))
    return torch.stack(maps)


def _lambdas(times: Sequence[float], first_share: float) -> list[float]:
    """Half the logarithm of the signal-to-noise ratio, log((1 - t) / t), at each time.

    At t = 1 it is minus infinity; there it is taken that share of the way to the second time.
    """
    first = times[0] if times[0] < 1 else 1 - first_share * (1 - times[1])
    return [math.log((1 - t) / t) if t else math.inf for t in (first, *times[1:])]


def _predict(
    times: Sequence[float],
    lambdas: Sequence[float],
    index: int,
    x: Tensor,
    clean: Tensor,
    before: Tensor,
) -> Tensor:
    """The point at times[index + 1], from the clean predictions at this time and the one before.

    First order where there is none before, and to t = 0, where the step in lambda is infinite.
    First order is Euler's step on this path, and exact for a constant clean prediction.
    """
    t, t_next = times[index], times[index + 1]
    if index and t_next:
        step, step_before = lambdas[index + 1] - lambdas[index], lambdas[index] - lambdas[index - 1]
        clean = clean + step / (2 * step_before) * (clean - before)
    return t_next / t * x + (1 - t_next / t) * clean


def _corrector_weights(
    times: Sequence[float], lambdas: Sequence[float], index: int
) -> tuple[float, float, float]:
    """Weights of the clean predictions at the end and the start of the step from times[index],
    and at the time before: the polynomial in lambda through the three, integrated exactly.

    The first step has no time before: half and half.
    """
    t, t_next = times[index], times[index + 1]
    whole = 1 - t_next / t
    if t_next == 0:
        return 0.0, 0.0, 0.0  # never used: the result is not corrected
    if index == 0:
        return whole / 2, whole / 2, 0.0
    step = lambdas[index + 1] - lambdas[index]
    ratio = (lambdas[index - 1] - lambdas[index]) / step  # below 0
    # Means of s and s^2 over the step, s from 0 to 1, under the path's weight exp(step * s).
    end = -1 / math.expm1(-step)
    mean = end - 1 / step
    square = end - 2 * mean / step
    at_before = (square - mean) / (ratio * (ratio - 1))
    at_end = mean - ratio * at_before
    return whole * at_end, whole * (1 - at_end - at_before), whole * at_before
