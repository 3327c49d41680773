"""The two-expert denoiser: what sees what, and rows that do not see each other."""

from dataclasses import replace

import pytest
import torch

from models.text import PAD_ID
from models.text_context import TextContext
from models.text_denoiser import TextDenoiser, TextDenoiserConfig

CONFIG = TextDenoiserConfig(
    latent_channels=4,
    latent_side=4,
    patch_size=2,
    width=32,
    depth=2,
    num_heads=2,
    text_width=16,
    vocabulary_size=10,
    max_prompt_tokens=6,
)


@pytest.fixture(params=[0, 2], ids=["causal words", "words that see each other first"])
def denoiser(request: pytest.FixtureRequest) -> TextDenoiser:
    torch.manual_seed(0)
    model = TextDenoiser(replace(CONFIG, prompt_depth=request.param)).eval().requires_grad_(False)
    for parameter in model.parameters():  # zero-initialised parts must take part in the test
        parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def _inputs(num_rows: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    prompts = torch.randint(3, 10, (num_rows, 6))
    for row, length in enumerate((6, 3, 1, 4)[:num_rows]):
        prompts[row, length:] = PAD_ID
    x, source = torch.randn(2, num_rows, *CONFIG.latent_shape)
    return prompts, x, source, torch.rand(num_rows)


def test_velocity_starts_at_zero() -> None:
    prompts, x, source, t = _inputs(2)
    model = TextDenoiser(CONFIG)
    assert not model.velocity(x, t, model.prefill(prompts, source)).any()


@pytest.mark.parametrize("edit", [False, True])
def test_rows_do_not_depend_on_their_neighbours(denoiser: TextDenoiser, edit: bool) -> None:
    prompts, x, source, t = _inputs(4)
    together = denoiser.velocity(x, t, denoiser.prefill(prompts, source if edit else None))
    for row in range(4):
        one = slice(row, row + 1)
        context = denoiser.prefill(prompts[one], source[one] if edit else None)
        assert torch.allclose(
            denoiser.velocity(x[one], t[one], context)[0], together[row], atol=1e-5
        )


def test_generate_and_edit_rows_share_a_call(denoiser: TextDenoiser) -> None:
    prompts, x, source, t = _inputs(4)
    generate, edit = denoiser.prefill(prompts[:2]), denoiser.prefill(prompts[2:], source[2:])
    mixed = TextContext.cat([generate, edit])
    together = denoiser.velocity(x, t, mixed)
    assert torch.allclose(together[:2], denoiser.velocity(x[:2], t[:2], generate), atol=1e-5)
    assert torch.allclose(together[2:], denoiser.velocity(x[2:], t[2:], edit), atol=1e-5)
    swapped = denoiser.velocity(x.flip(0), t.flip(0), mixed.select([3, 2, 1, 0]))
    assert torch.allclose(swapped.flip(0), together, atol=1e-5)


def test_prompt_source_and_time_all_matter(denoiser: TextDenoiser) -> None:
    prompts, x, source, t = _inputs(1)
    base = denoiser.velocity(x, t, denoiser.prefill(prompts, source))
    other_prompt = torch.where(prompts == PAD_ID, prompts, prompts % 9 + 1)
    for changed in (
        denoiser.velocity(x, t, denoiser.prefill(other_prompt, source)),
        denoiser.velocity(x, t, denoiser.prefill(prompts, source.flip(-1))),
        denoiser.velocity(x, t, denoiser.prefill(prompts)),
        denoiser.velocity(x, 1 - t, denoiser.prefill(prompts, source)),
    ):
        assert (changed - base).abs().max() > 1e-3


def test_text_is_causal() -> None:
    torch.manual_seed(0)
    denoiser = TextDenoiser(CONFIG)
    prompts, *_ = _inputs(1)
    changed = prompts.clone()
    changed[0, 4] = prompts[0, 4] % 9 + 1
    start = CONFIG.num_image_tokens
    before, after = (denoiser.prefill(p).keys[:, :, :, start:] for p in (prompts, changed))
    assert torch.equal(before[..., :4, :], after[..., :4, :])
    assert not torch.equal(before[..., 4, :], after[..., 4, :])


def test_bad_shapes_are_named(denoiser: TextDenoiser) -> None:
    prompts, _, source, _ = _inputs(1)
    with pytest.raises(ValueError, match="7 prompt tokens exceed max_prompt_tokens 6"):
        denoiser.prefill(torch.ones(1, 7, dtype=torch.int64))
    with pytest.raises(ValueError, match="source_latents must be"):
        denoiser.prefill(prompts, source[:, :2])
    with pytest.raises(ValueError, match="not divisible by patch_size"):
        TextDenoiserConfig(latent_side=7)


def test_a_prompt_encoder_starts_as_identity_and_then_looks_ahead() -> None:
    torch.manual_seed(0)
    plain = TextDenoiser(CONFIG)
    deep = TextDenoiser(replace(CONFIG, prompt_depth=2))
    deep.load_state_dict(plain.state_dict(), strict=False)
    prompts, _, _, _ = _inputs(3)
    torch.testing.assert_close(deep.prefill(prompts).keys, plain.prefill(prompts).keys)

    other = prompts.clone()
    other[0, 5] = 3 + (prompts[0, 5] - 2) % 7  # another last word
    first_word = CONFIG.num_image_tokens
    for model in (plain, deep):
        for parameter in model.parameters():
            parameter.data.add_(0.05 * torch.randn_like(parameter))
    changed = [
        not torch.equal(
            model.prefill(prompts).keys[0, :, :, first_word],
            model.prefill(other).keys[0, :, :, first_word],
        )
        for model in (plain, deep)
    ]
    assert changed == [False, True]


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"prompt_depth": -1}, "prompt_depth"),
        ({"prompt_depth": 1, "text_width": 18, "num_heads": 2}, "text_width 18"),
    ],
)
def test_a_prompt_encoder_that_cannot_be_is_named(fields: dict[str, int], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        replace(CONFIG, **fields)
