"""What jobs cost: the arithmetic of the engine's samplers and guidance, without the engine."""

from collections.abc import Sequence

from models.manifest import Manifest
from service.jobs.job import EditParams, GenerateParams, Params

_REFERENCE_END = 0.001  # where the grid of `euler-reference` ends; the others end at 0


def row_steps(params: Params, manifest: Manifest) -> int:
    """The cost of a job: model rows x velocity evaluations; 1 for encode and decode.

    Guidance rows count only where guidance acts.
    """
    if not isinstance(params, GenerateParams):
        return 1
    num_rows = _num_rows(params, manifest)
    low, high = params.guidance_min_t, params.guidance_max_t
    times = _evaluation_times(params, manifest.timestep_shift)
    return sum(num_rows if low <= t <= high else 1 for t in times)


def num_evaluations(params: Params) -> int:
    """Velocity evaluations that a job needs one after the other; 1 for encode and decode."""
    if not isinstance(params, GenerateParams):
        return 1
    return len(_evaluation_times(params, 1.0))


def _num_rows(params: GenerateParams, manifest: Manifest) -> int:
    """Model rows where guidance acts: 1 to 3."""
    guided = params.guidance_scale != 1
    if manifest.guidance == "autoguidance":
        return 1 + guided
    image_guided = isinstance(params, EditParams) and params.image_guidance_scale != 1
    return 1 + (guided or image_guided) + image_guided


def _evaluation_times(params: GenerateParams, shift: float) -> Sequence[float]:
    """t of each evaluation, 1 being noise; the arithmetic of the solvers, without torch."""
    reference = params.sampler == "euler-reference"
    num_steps = params.steps - 1 if reference else params.steps
    end = _REFERENCE_END if reference else 0.0
    strength = params.strength if isinstance(params, EditParams) else 1.0
    first = num_steps - max(1, round(num_steps * strength))
    even = [1 - (1 - end) * step / num_steps for step in range(first, num_steps)]
    times = [shift * t / (1 + (shift - 1) * t) for t in even]
    return _twice_but_the_first(times) if params.sampler == "heun" else times


def _twice_but_the_first(times: Sequence[float]) -> Sequence[float]:
    """heun: where a step ends is evaluated by that step and by the next one."""
    return [times[0], *(t for t in times[1:] for _ in range(2))]
