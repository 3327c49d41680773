"""A bundle's calls at sizes that are compiled and recorded, beside those at any other size.

R rows, S source tokens, C latent channels.
"""

import weakref
from collections.abc import Callable

import torch
from torch import Tensor

from models.autoencoder import RPiAE
from models.bridge import Posterior
from models.bundle import Denoiser
from models.class_denoiser import ClassContext
from models.context import Context
from models.text_context import TextContext
from models.text_denoiser import TextDenoiser
from service.backends.compiling import Compiler
from service.backends.static_batches import StaticBatches, Tensors


class StaticDenoiser:
    """A denoiser's steps, ready at some numbers of rows, and with and without sources.

    Rows without a source have no keys at a source's places, a third less in all. Rows of both kinds
    never run in one call: in bf16 the number of keys changes how sums are rounded, and a row would
    depend on whether its neighbours are edits. Prompts are always as long as the longest that the
    model takes; beside a picture they are short.
    """

    def __init__(self, denoiser: Denoiser, compiler: Compiler) -> None:
        self._any_size = denoiser
        self._twin = compiler.compiled(denoiser)
        self._batches = StaticBatches(self._step, compiler.capture)
        self._kind: tuple[Callable[[], Context | None], bool | None] = (lambda: None, None)

    def prepare(self, size: int, context: Context) -> None:
        """Make `size` rows ready whose contexts are as this one, of one row."""
        x = torch.zeros(size, *self._any_size.config.latent_shape, device=self._any_size.device)
        rows = context.select([0] * size)
        self._batches.prepare(x, x.new_ones(size), *_tensors(rows, bool(_edits(context).all())))

    def velocity(self, x: Tensor, t: Tensor, context: Context) -> Tensor:
        """See `Backend.velocity`; more rows than are ready run as they are."""
        kind = self._kind_of(context)
        if kind is not None:
            return self._alike(x, t, context, edits=kind)
        edits = _edits(context)
        velocity = torch.empty_like(x, dtype=torch.float32, device=edits.device)
        for chosen, kind in ((edits, True), (~edits, False)):
            index = chosen.nonzero()[:, 0]
            here = index.to(x.device)
            velocity[index] = self._alike(x[here], t[here], context.select(index), edits=kind)
        return velocity

    def _kind_of(self, context: Context) -> bool | None:
        """Whether its rows are edits; None: some. The device is asked once per context."""
        if self._kind[0]() is not context:
            edits = _edits(context)
            num_edits = int(edits.sum())
            mixed = 0 < num_edits < len(edits)
            self._kind = weakref.ref(context), None if mixed else num_edits > 0
        return self._kind[1]

    def _alike(self, x: Tensor, t: Tensor, context: Context, *, edits: bool) -> Tensor:
        """Velocity of rows of one kind."""
        outputs = self._batches(x, t, fixed=lambda: _tensors(context, edits), owner=context)
        if outputs is not None:
            return outputs[0]
        device = self._any_size.device
        return _velocity(self._any_size, x.to(device), t.to(device), *_tensors(context, edits))

    def _step(self, x: Tensor, t: Tensor, *tensors: Tensor) -> Tensors:
        return (_velocity(self._twin, x, t, *tensors),)


def _velocity(denoiser: Denoiser, x: Tensor, t: Tensor, *tensors: Tensor) -> Tensor:
    """Velocity of rows whose context has these tensors."""
    if isinstance(denoiser, TextDenoiser):
        return denoiser.velocity(x, t, TextContext(*tensors))
    velocity: Tensor = denoiser(x, t, *tensors)
    return velocity


def _edits(context: Context) -> Tensor:
    """(R,) bool: which rows have a source."""
    if isinstance(context, TextContext):
        return context.mask[:, : context.source.shape[1]].any(dim=1)
    return torch.zeros(context.num_rows, dtype=torch.bool)


def _tensors(context: Context, edits: bool) -> Tensors:
    """What a step reads of a context whose rows are of one kind."""
    if isinstance(context, ClassContext):
        return (context.labels,)
    assert isinstance(context, TextContext)
    num_absent = 0 if edits else context.source.shape[1]
    keys, values = (tensor[:, :, :, num_absent:] for tensor in (context.keys, context.values))
    # Those of prompts alone are zeros of the keys' type.
    return keys, values, context.mask[:, num_absent:], context.source.float()


class StaticAutoencoder:
    """Encode and decode at the model's own size, ready at some numbers of images."""

    def __init__(self, autoencoder: RPiAE, compiler: Compiler) -> None:
        self._twin = compiler.compiled(autoencoder)
        self._encodes = StaticBatches(self._encode, compiler.capture)
        self._decodes = StaticBatches(self._decode, compiler.capture)

    def prepare_encode(self, size: int, image_size: tuple[int, int]) -> None:
        """Make `size` images of that height and width ready."""
        self._encodes.prepare(torch.zeros(size, 3, *image_size, device=self._twin.device))

    def prepare_decode(self, size: int) -> None:
        """Make as many latents of the model's own shape ready."""
        self._decodes.prepare(torch.zeros(size, *self._twin.latent_shape, device=self._twin.device))

    def encode(self, images: Tensor) -> Posterior | None:
        """See `Backend.encode`; None where nothing is ready for them."""
        outputs = self._encodes(images)
        return None if outputs is None else Posterior(*outputs)

    def decode(self, latents: Tensor) -> Tensor | None:
        """See `Backend.decode`; None where nothing is ready for them."""
        outputs = self._decodes(latents)
        return None if outputs is None else outputs[0]

    def _encode(self, images: Tensor) -> Tensors:
        posterior = self._twin.encode(images).latent_dist
        return posterior.mean, posterior.logvar

    def _decode(self, latents: Tensor) -> Tensors:
        return (self._twin.decode(latents).sample,)
