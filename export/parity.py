"""Whether an artifact computes what PyTorch computes: each graph, then whole pictures."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from export.graphs import Graph
from models.bundle import Bundle, Tokenizer
from models.class_labels import ClassEncoder
from models.manifest import Manifest, Parity
from models.onnx_model import OnnxModel
from models.onnx_session import GraphSession
from models.sampler import AnyDenoiser, SamplingOptions, generate_latents
from models.sessions import Session
from models.text import SPECIAL_TOKENS, PromptTokenizer

BATCHES = (1, 3, 16)
_MAX_LENGTHS = 64
_PICTURES = 4
_MAX_STEPS = 20
_PROMPT_WORDS = 6
_SENTENCES = (
    "a red circle on a blue background",
    "two cats asleep on a green sofa",
    "an old lighthouse by the sea at night",
    "a bowl of oranges",
)


@dataclass(frozen=True, kw_only=True)
class Tolerances:
    """What an artifact of one precision may differ by; see `Parity.max_error`."""

    tolerance: float
    min_picture_psnr_db: float


def compare_graph(
    graph: Graph, path: Path, tolerance: float, batches: Sequence[int] = BATCHES
) -> Parity:
    """Run both on the same inputs, at every batch size and context length.

    Of more than 64 lengths as many are taken, the shortest and the longest among them.
    """
    session = GraphSession(path, threads=torch.get_num_threads())
    return compare_session(graph, session, tolerance, batches)


def compare_session(
    graph: Graph, session: Session, tolerance: float, batches: Sequence[int] = BATCHES
) -> Parity:
    """`compare_graph` with a graph that is loaded; the module runs where its weights are."""
    device = next(graph.module.parameters()).device
    lengths = _lengths(graph.max_length)
    worst = 0.0
    for rows in batches:
        for length in lengths or (0,):
            inputs = graph.sample(rows, length)
            with torch.inference_mode():
                expected: Any = graph.module(*(tensor.to(device) for tensor in inputs))
            if isinstance(expected, Tensor):
                expected = (expected,)
            named = dict(zip(graph.inputs, inputs, strict=True))
            found = session.run(named, [output.shape for output in expected])
            for ours, theirs in zip(expected, found, strict=True):
                worst = max(worst, _error(ours, theirs.to(device)))
    return Parity(
        passed=worst <= tolerance,
        max_error=worst,
        tolerance=tolerance,
        batches=list(batches),
        context_lengths=list(lengths),
    )


def picture_psnr(bundle: Bundle, model: OnnxModel) -> float | None:
    """Least PSNR in dB of a few pictures and edits of them against PyTorch's, from the same seeds.

    None where the bundle draws nothing; 100 for equal pictures.
    """
    if bundle.denoiser is None or bundle.tokenizer is None or model.denoiser is None:
        return None
    autoencoder = bundle.autoencoder
    ours = _Painter(
        denoiser=bundle.denoiser,
        guide=bundle.guide,
        encode=lambda images: autoencoder.encode(images).latent_dist.mean,
        decode=lambda latents: autoencoder.decode(latents).sample,
    )
    theirs = _Painter(
        denoiser=model.denoiser,
        guide=model.guide,
        encode=lambda images: model.encode(images).mean,
        decode=model.decode,
    )
    expected = _pictures(ours, bundle.manifest, bundle.tokenizer)
    found = _pictures(theirs, bundle.manifest, bundle.tokenizer)
    return min(_psnr(a.cpu(), b.cpu()) for a, b in zip(expected, found, strict=True))


@dataclass(frozen=True, kw_only=True)
class _Painter:
    """What draws pictures, in either runtime."""

    denoiser: AnyDenoiser
    guide: AnyDenoiser | None
    encode: Callable[[Tensor], Tensor]
    decode: Callable[[Tensor], Tensor]


@torch.inference_mode()
def _pictures(painter: _Painter, manifest: Manifest, tokenizer: Tokenizer) -> list[Tensor]:
    """Pictures (3, H, W), and edits of them where the model edits."""
    options = SamplingOptions(
        num_steps=min(manifest.default_steps, _MAX_STEPS),
        shift=manifest.timestep_shift,
        guidance_scale=manifest.default_guidance_scale,
        image_guidance_scale=manifest.default_image_guidance_scale,
    )
    prompts, seeds = example_prompts(tokenizer, _PICTURES), list(range(_PICTURES))

    def draw(source: Tensor | None) -> Tensor:
        latents = generate_latents(
            painter.denoiser,
            tokenizer,
            prompts,
            seeds,
            options,
            source_latents=source,
            guide=painter.guide,
        )
        return painter.decode(latents).clamp(0, 1)

    drawn = draw(None)
    if "edit" not in manifest.tasks:
        return list(drawn)
    return [*drawn, *draw(painter.encode(drawn.flip(0)))]


def example_prompts(tokenizer: Tokenizer, count: int) -> list[str]:
    """Prompts that a tokenizer reads: classes, or words of its vocabulary, or plain sentences."""
    if isinstance(tokenizer, ClassEncoder):
        return [str(index % len(tokenizer.names)) for index in range(count)]
    if not isinstance(tokenizer, PromptTokenizer):
        return [_SENTENCES[index % len(_SENTENCES)] for index in range(count)]
    words = tokenizer.words[len(SPECIAL_TOKENS) :]
    generator = torch.Generator().manual_seed(0)
    picks = torch.randint(0, len(words), (count, _PROMPT_WORDS), generator=generator)
    return [" ".join(words[index] for index in row) for row in picks.tolist()]


def _lengths(longest: int) -> tuple[int, ...]:
    if longest <= _MAX_LENGTHS:
        return tuple(range(1, longest + 1))
    spread = torch.linspace(1, longest, _MAX_LENGTHS).round().int()
    return tuple(spread.tolist())


def _error(expected: Tensor, found: Tensor) -> float:
    scale = max(1.0, float(expected.abs().max()))
    error = float((expected - found).abs().max()) / scale
    return error if math.isfinite(error) else math.inf


def _psnr(expected: Tensor, found: Tensor) -> float:
    error = float((expected - found).square().mean())
    return min(100.0, -10 * math.log10(error)) if error > 0 else 100.0
