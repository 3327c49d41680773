"""The offline loop: what guidance starts from, where it acts, and which calls that takes."""

import pytest
import torch
from torch import Tensor

from models.class_denoiser import ClassContext, ClassDenoiser, ClassDenoiserConfig
from models.class_labels import ClassEncoder
from models.sampler import SamplingOptions, generate_latents
from models.transport import initial_noise

CONFIG = ClassDenoiserConfig(
    latent_channels=4, latent_side=2, width=16, depth=1, num_heads=2, num_classes=3
)
ENCODER = ClassEncoder(["cat", "dog", "owl"])
SHAPE = CONFIG.latent_shape


class Counted(ClassDenoiser):
    """Notes the rows and the time of each velocity call."""

    def __init__(self, seed: int) -> None:
        super().__init__(CONFIG)
        self.calls: list[tuple[int, float]] = []
        generator = torch.Generator().manual_seed(seed)
        for parameter in self.parameters():
            # Gates and heads start at zero, which would hide every dependence.
            parameter.data.add_(0.3 * torch.randn(parameter.shape, generator=generator))
        self.eval().requires_grad_(False)

    def velocity(self, x: Tensor, t: Tensor, context: ClassContext) -> Tensor:
        assert len(set(t.tolist())) == 1
        self.calls.append((len(x), float(t[0])))
        return super().velocity(x, t, context)


@pytest.fixture
def denoiser() -> Counted:
    return Counted(1)


@pytest.fixture
def weaker() -> Counted:
    return Counted(2)


def draw(denoiser: Counted, guide: Counted | None = None, **options: object) -> Tensor:
    fields: dict[str, object] = {"num_steps": 4, "shift": 1.0, "guidance_scale": 3.0}
    return generate_latents(
        denoiser,
        ENCODER,
        ["cat", "owl"],
        [5, 6],
        SamplingOptions(**(fields | options)),  # type: ignore[arg-type]
        guide=guide,
    )


def euler(denoiser: Counted, base: Counted, labels: list[int], scale: float) -> Tensor:
    """Four steps, written out; guidance starts from `base` with these labels."""
    x = torch.stack([initial_noise(seed, SHAPE) for seed in (5, 6)])
    for t in (1.0, 0.75, 0.5, 0.25):
        times = torch.full((2,), t)
        start = base(x, times, torch.tensor(labels))
        x = x - 0.25 * (start + scale * (denoiser(x, times, torch.tensor([0, 2])) - start))
    return x


def test_guidance_starts_from_the_null_class(denoiser: Counted) -> None:
    null = CONFIG.num_classes
    torch.testing.assert_close(draw(denoiser), euler(denoiser, denoiser, [null, null], 3.0))
    assert [rows for rows, _ in denoiser.calls] == [4] * 4


def test_autoguidance_starts_from_the_guide_with_the_same_class(
    denoiser: Counted, weaker: Counted
) -> None:
    expected = euler(denoiser, weaker, [0, 2], 3.0)
    torch.testing.assert_close(draw(denoiser, weaker), expected)
    assert [rows for rows, _ in denoiser.calls] == [2] * 4
    assert denoiser.calls == weaker.calls


def test_a_scale_of_one_never_runs_the_guide(denoiser: Counted, weaker: Counted) -> None:
    guided = draw(denoiser, weaker, guidance_scale=1.0)
    torch.testing.assert_close(guided, draw(denoiser, guidance_scale=1.0))
    assert weaker.calls == []


@pytest.mark.parametrize(
    ("interval", "guided"),
    [
        ((0.0, 1.0), [1.0, 0.75, 0.5, 0.25]),
        ((0.5, 1.0), [1.0, 0.75, 0.5]),
        ((0.3, 0.75), [0.75, 0.5]),
        ((0.0, 0.1), []),
    ],
)
def test_guidance_costs_rows_only_inside_its_interval(
    denoiser: Counted, weaker: Counted, interval: tuple[float, float], guided: list[float]
) -> None:
    """Both ends belong to the interval; t = 1 is noise."""
    draw(denoiser, weaker, guidance_interval=interval)
    assert [t for _, t in weaker.calls] == guided
    denoiser.calls.clear()
    draw(denoiser, guidance_interval=interval)
    assert [t for rows, t in denoiser.calls if rows == 4] == guided


def test_every_evaluation_is_told(denoiser: Counted) -> None:
    told: list[tuple[int, int]] = []
    options = SamplingOptions(num_steps=3, shift=1.0, sampler="heun")
    generate_latents(
        denoiser, ENCODER, ["dog"], [1], options, on_step=lambda *step: told.append(step)
    )
    assert told == [(done, 5) for done in range(1, 6)]


@pytest.mark.parametrize("interval", [(0.6, 0.5), (-0.1, 1.0), (0.0, 1.5)])
def test_an_interval_has_its_ends_in_order(interval: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="guidance_interval must be 0 <= low <= high <= 1, got"):
        SamplingOptions(num_steps=3, shift=1.0, guidance_interval=interval)
