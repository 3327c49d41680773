"""The pretrained text expert computes what transformers' Qwen2 computes, and stays causal."""

from dataclasses import replace

import pytest
import torch
from transformers import Qwen2Config, Qwen2Model

from models.text import NO_TOKEN
from models.text_denoiser import TextDenoiser, TextDenoiserConfig
from models.text_expert import Qwen2Block
from training.pretrained_text import renamed

CONFIG = TextDenoiserConfig(
    latent_channels=4,
    latent_side=4,
    patch_size=2,
    width=64,
    depth=3,
    num_heads=4,
    hidden_width=48,
    text_expert="qwen2",
    text_width=64,
    text_hidden_width=96,
    text_key_heads=2,
    text_theta=5e4,
    text_eps=1e-5,
    vocabulary_size=50,
    max_prompt_tokens=9,
)


@pytest.fixture
def qwen() -> Qwen2Model:
    torch.manual_seed(0)
    model = Qwen2Model(
        Qwen2Config(
            vocab_size=50,
            hidden_size=64,
            intermediate_size=96,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=2,
            rms_norm_eps=1e-5,
            rope_parameters={"rope_type": "default", "rope_theta": 5e4},
        )
    ).eval()
    for parameter in model.parameters():  # biases and norms start at values that hide errors
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    return model.requires_grad_(False)


@pytest.fixture
def denoiser(qwen: Qwen2Model) -> TextDenoiser:
    model = TextDenoiser(CONFIG).eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.add_(0.05 * torch.randn_like(parameter))
    model.load_state_dict(renamed(qwen.state_dict()), strict=False)
    return model


def prompts(*lengths: int) -> torch.Tensor:
    ids = torch.randint(0, 50, (len(lengths), CONFIG.max_prompt_tokens))
    for row, length in enumerate(lengths):
        ids[row, length:] = NO_TOKEN
    return ids


def test_hidden_states_are_those_of_transformers(qwen: Qwen2Model, denoiser: TextDenoiser) -> None:
    ids = prompts(9, 9, 5)
    known = ids != NO_TOKEN
    theirs = qwen(
        ids.clamp(min=0), attention_mask=known.long(), output_hidden_states=True
    ).hidden_states
    text, mask = denoiser.words(ids.clamp(min=0)), known[:, None, None] & _causal(9)
    for layer, block in enumerate(denoiser.text_blocks):
        torch.testing.assert_close(text[known], theirs[layer][known], rtol=1e-5, atol=1e-5)
        q, k, v = block.project(text, denoiser.text_table)
        text = block.finish(text, q, k, v, mask)
    last = qwen.norm(text)
    torch.testing.assert_close(last[known], theirs[-1][known], rtol=1e-5, atol=1e-5)


def _causal(length: int) -> torch.Tensor:
    return torch.ones(length, length, dtype=torch.bool).tril()


def test_prefill_keeps_their_keys_and_values(qwen: Qwen2Model, denoiser: TextDenoiser) -> None:
    """Values as they are; keys as the image expert's own, normed by a weight that is learned."""
    ids = prompts(9, 4)
    cache = qwen(
        ids.clamp(min=0), attention_mask=(ids != NO_TOKEN).long(), use_cache=True
    ).past_key_values
    context = denoiser.prefill(ids)
    source = CONFIG.num_image_tokens
    for layer, (block, theirs) in enumerate(zip(denoiser.text_blocks, cache.layers, strict=True)):
        assert isinstance(block, Qwen2Block)
        for row, length in enumerate((9, 4)):
            place = (row, layer, slice(None), slice(source, source + length))
            keys, values = (
                part[row, :, :length].repeat_interleave(2, 0)
                for part in (theirs.keys, theirs.values)
            )
            torch.testing.assert_close(context.values[place], values, rtol=1e-5, atol=1e-5)
            normed = keys * (keys.square().mean(-1, keepdim=True) + 1e-6).rsqrt()
            expected = normed * block.key_norm.weight
            torch.testing.assert_close(context.keys[place], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("edit", [False, True])
def test_rows_do_not_depend_on_their_neighbours(denoiser: TextDenoiser, edit: bool) -> None:
    ids = prompts(9, 3, 1)
    x, source = torch.randn(2, 3, *CONFIG.latent_shape)
    t = torch.rand(3)
    together = denoiser.velocity(x, t, denoiser.prefill(ids, source if edit else None))
    for row in range(3):
        one = slice(row, row + 1)
        context = denoiser.prefill(ids[one], source[one] if edit else None)
        alone = denoiser.velocity(x[one], t[one], context)[0]
        torch.testing.assert_close(alone, together[row], rtol=1e-5, atol=1e-5)
    other = denoiser.velocity(x, t, denoiser.prefill(ids.flip(0), source if edit else None))
    assert (other - together).abs().max() > 1e-3


def test_a_frozen_text_expert_has_no_gradients(denoiser: TextDenoiser) -> None:
    denoiser.requires_grad_(True).freeze_text()
    x = torch.randn(2, *CONFIG.latent_shape)
    denoiser.velocity(x, torch.rand(2), denoiser.prefill(prompts(4, 9), x)).sum().backward()
    text = {
        name
        for name, parameter in denoiser.named_parameters()
        if name.startswith(("words", "text_blocks")) and "key_norm" not in name
    }
    for name, parameter in denoiser.named_parameters():
        assert parameter.requires_grad == (name not in text), name
    assert denoiser.embed.weight.grad is not None
    assert denoiser.text_blocks[0].key_norm.weight.grad is not None


def test_sizes_that_do_not_fit_are_named() -> None:
    with pytest.raises(ValueError, match="text_key_heads that divides num_heads 4, got 96 and 3"):
        replace(CONFIG, text_key_heads=3)
    with pytest.raises(ValueError, match="text_expert qwen2 needs text_hidden_width"):
        replace(CONFIG, text_hidden_width=0)
