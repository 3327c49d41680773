"""The tokenizer where diffusers' pipelines expect one of their autoencoders."""

import numpy as np
import pytest
import torch
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Img2ImgPipeline,
    StableDiffusion3Pipeline,
)
from diffusers.image_processor import VaeImageProcessor
from PIL import Image
from torch import Tensor

from models.autoencoder import RPiAE, RPiAEConfig
from models.bridge import BridgeConfig
from models.decoder import PixelDecoderConfig
from models.encoder import SmallViTConfig

CONFIG = RPiAEConfig(
    encoder=SmallViTConfig(image_size=32, patch_size=8, width=32, depth=1, num_heads=4),
    bridge=BridgeConfig(token_width=32, latent_width=8, num_heads=4, decoder_depth=1),
    decoder=PixelDecoderConfig(
        token_width=32, grid=4, patch_size=8, width=32, depth=1, num_heads=4
    ),
)
NUM_STEPS = 3


@pytest.fixture(scope="module")
def tokenizer() -> RPiAE:
    torch.manual_seed(0)
    return RPiAE(CONFIG).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def pipeline(tokenizer: RPiAE) -> StableDiffusion3Pipeline:
    """Stable Diffusion 3's own transformer and scheduler, at a small size, on our latents."""
    torch.manual_seed(1)
    transformer = SD3Transformer2DModel(
        sample_size=4,
        patch_size=1,
        in_channels=CONFIG.latent_channels,
        out_channels=CONFIG.latent_channels,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=4,
        joint_attention_dim=32,
        caption_projection_dim=32,
        pooled_projection_dim=64,
        pos_embed_max_size=8,
    )
    return StableDiffusion3Pipeline(
        transformer=transformer.eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=tokenizer,
        **dict.fromkeys(
            (
                "text_encoder",
                "tokenizer",
                "text_encoder_2",
                "tokenizer_2",
                "text_encoder_3",
                "tokenizer_3",
            )
        ),
    )


def prompt() -> dict[str, Tensor]:
    return {
        "prompt_embeds": torch.zeros(1, 5, 32),
        "pooled_prompt_embeds": torch.zeros(1, 64),
    }


def run(pipeline: StableDiffusion3Pipeline, **options: object) -> object:
    """Images in [0, 1] as we have them: the pipeline is told not to map them to [-1, 1]."""
    pipeline.set_progress_bar_config(disable=True)
    pipeline.image_processor = VaeImageProcessor(
        vae_scale_factor=pipeline.vae_scale_factor, do_normalize=False
    )
    return pipeline(
        guidance_scale=1.0,
        num_inference_steps=NUM_STEPS,
        generator=torch.Generator().manual_seed(2),
        **prompt(),
        **options,
    ).images


def test_a_pipeline_decodes_with_our_tokenizer(
    tokenizer: RPiAE, pipeline: StableDiffusion3Pipeline
) -> None:
    assert pipeline.vae_scale_factor == 8
    latents = run(pipeline, height=32, width=32, output_type="latent")
    images = run(pipeline, height=32, width=32, output_type="np")
    assert isinstance(latents, Tensor)
    assert isinstance(images, np.ndarray)
    assert latents.shape == (1, *CONFIG.latent_shape)
    expected = tokenizer.decode(latents).sample.permute(0, 2, 3, 1).numpy()
    assert np.abs(images - expected).max() < 1e-5


def test_a_pipeline_encodes_with_our_tokenizer(
    tokenizer: RPiAE, pipeline: StableDiffusion3Pipeline
) -> None:
    """What the pipeline hands over is the source in [0, 1], and it goes on with our latents."""
    editing = StableDiffusion3Img2ImgPipeline(**pipeline.components)
    pixels = np.random.default_rng(3).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    asked: list[Tensor] = []
    encode = tokenizer.encode

    def spy(images: Tensor, *args: object, **kwargs: object) -> object:
        asked.append(images)
        return encode(images, *args, **kwargs)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokenizer, "encode", spy)
        images = run(editing, image=Image.fromarray(pixels), strength=0.5, output_type="np")
    assert isinstance(images, np.ndarray)
    assert images.shape == (1, 32, 32, 3)
    (seen,) = asked
    assert torch.allclose(seen[0], torch.from_numpy(pixels).permute(2, 0, 1) / 255, atol=1e-6)


def test_outputs_serve_as_tuples_too(tokenizer: RPiAE) -> None:
    images = torch.rand(2, 3, 32, 32)
    (posterior,) = tokenizer.encode(images, return_dict=False)
    assert torch.equal(posterior.mode(), tokenizer.encode(images).latent_dist.mean)
    painted = tokenizer.decode(posterior.mode(), return_dict=False)[0]
    assert torch.equal(painted, tokenizer.decode(posterior.mode()).sample)
    draw = posterior.sample(generator=torch.Generator().manual_seed(1))
    assert not torch.equal(draw, posterior.mode())
