"""The graphs of a bundle: modules, names of inputs and outputs, dynamic axes, samples, profiles.

The only list of them. R rows or images, T prompt tokens, N context tokens, C latent channels.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from models.autoencoder import RPiAE
from models.bundle import Bundle
from models.class_denoiser import ClassDenoiser
from models.encoder import resize_images
from models.manifest import GraphName
from models.text_context import TextContext
from models.text_denoiser import TextDenoiser

MAX_ROWS = 512  # of a batch, in the profiles
TYPICAL_ROWS = 4
_SEED = 0


@dataclass(frozen=True)
class Axis:
    """A dimension that differs from call to call: its name, and the sizes it takes."""

    name: str
    smallest: int
    typical: int
    largest: int


@dataclass(frozen=True, kw_only=True)
class Graph:
    """One exportable call.

    axes: input -> its dynamic dimensions; sample: (rows, length) -> inputs, where `length` is that
    of the prompt or the context and is ignored by graphs without one; max_length: 0 without one.
    """

    name: GraphName
    module: nn.Module
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    axes: dict[str, dict[int, Axis]]
    sample: Callable[[int, int], tuple[Tensor, ...]]
    max_length: int = 0

    def profile(self) -> dict[str, tuple[tuple[int, ...], ...]]:
        """Input -> its smallest, typical and largest shape."""
        shapes = zip(self.inputs, (tuple(i.shape) for i in self.sample(2, 2)), strict=True)
        profile = {}
        for name, shape in shapes:
            axes = self.axes[name]
            profile[name] = tuple(
                tuple(
                    getattr(axes[i], size) if i in axes else length
                    for i, length in enumerate(shape)
                )
                for size in ("smallest", "typical", "largest")
            )
        return profile


class _Encode(nn.Module):
    """An encoder that sees another size than the picture's stretches it by two matrix products:
    the same as bicubic interpolation, for which TensorRT has no operator.
    """

    stretch: Tensor | None

    def __init__(self, autoencoder: RPiAE) -> None:
        super().__init__()
        self.autoencoder = autoencoder
        side, seen = autoencoder.config.image_size, autoencoder.config.encoder.image_size
        stretch = None
        if side != seen:
            stretch = resize_images(torch.eye(side).expand(1, 3, -1, -1), (seen, side))[0, 0]
        self.register_buffer("stretch", stretch, persistent=False)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        if self.stretch is not None:
            images = self.stretch @ images @ self.stretch.T
        posterior = self.autoencoder.encode(images).latent_dist
        return posterior.mean, posterior.logvar


class _Decode(nn.Module):
    def __init__(self, autoencoder: RPiAE) -> None:
        super().__init__()
        self.autoencoder = autoencoder

    def forward(self, latents: Tensor) -> Tensor:
        return self.autoencoder.decode(latents).sample


class _Prefill(nn.Module):
    def __init__(self, denoiser: TextDenoiser) -> None:
        super().__init__()
        self.denoiser = denoiser

    def forward(self, prompt_tokens: Tensor) -> tuple[Tensor, Tensor]:
        keys, values, _ = self.denoiser.see(prompt_tokens)
        return keys, values


class _PrefillSource(nn.Module):
    def __init__(self, denoiser: TextDenoiser) -> None:
        super().__init__()
        self.denoiser = denoiser

    def forward(
        self, prompt_tokens: Tensor, source_latents: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        keys, values, source = self.denoiser.see(prompt_tokens, source_latents)
        assert source is not None
        return keys, values, source


class _Velocity(nn.Module):
    def __init__(self, denoiser: TextDenoiser) -> None:
        super().__init__()
        self.denoiser = denoiser

    def forward(
        self, x: Tensor, t: Tensor, keys: Tensor, values: Tensor, mask: Tensor, source: Tensor
    ) -> Tensor:
        return self.denoiser.velocity(x, t, TextContext(keys, values, mask, source))


def graphs(bundle: Bundle) -> Iterator[Graph]:
    """The graphs of `models.exports.graph_names`, in that order.

    Encode and decode have the bundle's own size: other sizes interpolate positions by code that
    depends on them.
    """
    yield from _autoencoder_graphs(bundle.autoencoder)
    match bundle.denoiser:
        case TextDenoiser() as denoiser:
            yield from _text_graphs(denoiser)
        case ClassDenoiser() as denoiser:
            yield _class_graph("velocity", denoiser)
    if bundle.guide is not None:
        yield _class_graph("guide_velocity", bundle.guide)


def _autoencoder_graphs(autoencoder: RPiAE) -> Iterator[Graph]:
    side, shape = autoencoder.config.image_size, autoencoder.latent_shape
    rows = _rows()
    yield Graph(
        name="encode",
        module=_Encode(autoencoder),
        inputs=("images",),
        outputs=("mean", "logvar"),
        axes={"images": {0: rows}},
        sample=lambda r, _: (torch.rand(r, 3, side, side, generator=_generator()),),
    )
    yield Graph(
        name="decode",
        module=_Decode(autoencoder),
        inputs=("latents",),
        outputs=("images",),
        axes={"latents": {0: rows}},
        sample=lambda r, _: (_randn(_generator(), r, *shape),),
    )


def _text_graphs(denoiser: TextDenoiser) -> Iterator[Graph]:
    config, rows = denoiser.config, _rows()
    longest = config.max_prompt_tokens
    tokens = {0: rows, 1: Axis("prompt_length", 1, max(1, longest // 2), longest)}
    context_length = config.num_image_tokens + longest
    length = Axis("context_length", 1, context_length, context_length)
    cached = {0: rows, 3: length}

    def prompts(generator: torch.Generator, r: int, n: int) -> Tensor:
        """Prompts of which all but the first are padded, up to half of them."""
        ids = torch.randint(0, config.vocabulary_size, (r, n), generator=generator)
        ids = torch.where(ids == config.pad_id, ids + 1, ids) % config.vocabulary_size
        padding = torch.arange(r) % (n // 2 + 1)
        kept = torch.arange(n)[None] < (n - padding)[:, None]
        return torch.where(kept, ids, config.pad_id)

    def prefill_source(r: int, n: int) -> tuple[Tensor, ...]:
        generator = _generator()
        return prompts(generator, r, n), _randn(generator, r, *config.latent_shape)

    def velocity(r: int, n: int) -> tuple[Tensor, ...]:
        """Contexts of which every second row sees one key less, where it has two."""
        generator = _generator()
        heads = (config.depth, config.num_heads, n, config.width // config.num_heads)
        mask = torch.ones(r, n, dtype=torch.bool)
        mask[1::2, n - 1] = n == 1
        return (
            _randn(generator, r, *config.latent_shape),
            torch.rand(r, generator=generator),
            _randn(generator, r, *heads),
            _randn(generator, r, *heads),
            mask,
            _randn(generator, r, config.num_image_tokens, config.width),
        )

    yield Graph(
        name="prefill",
        module=_Prefill(denoiser),
        inputs=("prompt_tokens",),
        outputs=("keys", "values"),
        axes={"prompt_tokens": tokens},
        sample=lambda r, n: (prompts(_generator(), r, n),),
        max_length=longest,
    )
    yield Graph(
        name="prefill_source",
        module=_PrefillSource(denoiser),
        inputs=("prompt_tokens", "source_latents"),
        outputs=("keys", "values", "source"),
        axes={"prompt_tokens": tokens, "source_latents": {0: rows}},
        sample=prefill_source,
        max_length=longest,
    )
    yield Graph(
        name="velocity",
        module=_Velocity(denoiser),
        inputs=("x", "t", "keys", "values", "mask", "source"),
        outputs=("velocity",),
        axes={
            "x": {0: rows},
            "t": {0: rows},
            "keys": cached,
            "values": cached,
            "mask": {0: rows, 1: length},
            "source": {0: rows},
        },
        sample=velocity,
        max_length=context_length,
    )


def _class_graph(name: GraphName, denoiser: ClassDenoiser) -> Graph:
    config, rows = denoiser.config, _rows()

    def sample(r: int, _: int) -> tuple[Tensor, ...]:
        generator = _generator()
        return (
            _randn(generator, r, *config.latent_shape),
            torch.rand(r, generator=generator),
            torch.randint(0, config.num_classes + 1, (r,), generator=generator),
        )

    return Graph(
        name=name,
        module=denoiser,
        inputs=("latents", "t", "labels"),
        outputs=("velocity",),
        axes={"latents": {0: rows}, "t": {0: rows}, "labels": {0: rows}},
        sample=sample,
    )


def _rows() -> Axis:
    return Axis("rows", 1, TYPICAL_ROWS, MAX_ROWS)


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(_SEED)


def _randn(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator)
