"""Names of the published checkpoints and ours, both ways.

The authors' files hold queries, keys and values of the pixel decoder apart and some tensors with
axes of one more; everything else differs in name only. Nothing is computed here: tensors are
renamed, reshaped and stacked. Layout: 360CVGroup/RPiAE at a4c6242, RPiAE_VB and LightningDiT.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from models.autoencoder import RPiAE
from models.class_denoiser import ClassDenoiser
from models.manifest import BundleError
from models.weights import check_tensors

_ROUNDING = 1e-2  # of cosines that were saved as bfloat16
_WEIGHT_AND_BIAS = ("weight", "bias")

# transformers renamed the parts of DINOv2's attention after the checkpoints were made.
_DINOV2_NAMES = (
    (r"\.attention\.q_proj\.", ".attention.attention.query."),
    (r"\.attention\.k_proj\.", ".attention.attention.key."),
    (r"\.attention\.v_proj\.", ".attention.attention.value."),
    (r"\.attention\.o_proj\.", ".attention.output.dense."),
)


@dataclass(frozen=True)
class Entry:
    """One tensor of ours and what it is called there.

    theirs: several names are parts of ours, stacked along its first axis; leading, trailing: axes
    of one that theirs has around ours.
    """

    ours: str
    theirs: tuple[str, ...]
    leading: int = 0
    trailing: int = 0


@dataclass(frozen=True)
class NameMap:
    """How one module's tensors are called in a published checkpoint.

    constants: tensors that the checkpoint holds and our module computes; defaults: tensors that
    our module holds and the checkpoint lacks.
    """

    entries: tuple[Entry, ...]
    constants: Mapping[str, Tensor]
    defaults: Mapping[str, Tensor]

    def to_published(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Our tensors in the published layout; on the meta device, the layout itself."""
        published = dict(self.constants)
        for entry in self.entries:
            ours = state[entry.ours]
            parts = ours.chunk(len(entry.theirs)) if len(entry.theirs) > 1 else (ours,)
            for name, part in zip(entry.theirs, parts, strict=True):
                shape = (1,) * entry.leading + tuple(part.shape) + (1,) * entry.trailing
                published[name] = part.reshape(shape)
        return published

    def to_ours(
        self, published: Mapping[str, Tensor], state: Mapping[str, Tensor], name: str
    ) -> dict[str, Tensor]:
        """Published tensors under our names.

        Args:
            published: all tensors of the checkpoint.
            state: of our module, for names and shapes; its tensors may be on the meta device.
            name: of the checkpoint, for messages.

        Raises:
            BundleError: lists every missing, unexpected and misshaped tensor, and constants that
                differ from what our module computes.
        """
        check_tensors(self.to_published(state), published, name)
        self._check_constants(published, name)
        ours = dict(self.defaults)
        for entry in self.entries:
            parts = [published[part] for part in entry.theirs]
            joined = parts[0] if len(parts) == 1 else torch.cat(parts)
            ours[entry.ours] = joined.reshape(state[entry.ours].shape)
        return ours

    def _check_constants(self, published: Mapping[str, Tensor], name: str) -> None:
        different = [
            constant
            for constant, expected in self.constants.items()
            if not torch.allclose(published[constant].float(), expected, atol=_ROUNDING)
        ]
        if different:
            raise BundleError(
                f"{name} was trained with other rotary positions than this model computes: "
                + ", ".join(different)
            )


def tokenizer_map(model: RPiAE) -> NameMap:
    """Names of a tokenizer with its bridge (`RPiAE_VB`, stages 2 and 3)."""
    return NameMap(
        entries=(
            *encoder_entries(model.encoder.state_dict(), "encoder.", "encoder.encoder."),
            *_bridge_entries(model),
            *decoder_entries(len(model.decoder.blocks)),
        ),
        constants={},
        # Published latents are not normalised.
        defaults={
            "latents_mean": torch.zeros_like(model.latents_mean),
            "latents_std": torch.ones_like(model.latents_std),
        },
    )


def class_denoiser_map(model: ClassDenoiser) -> NameMap:
    """Names of a LightningDiT."""
    entries = [
        *_layer("embed", "x_embedder.proj"),
        Entry("position", ("pos_embed",), leading=1),
        Entry("time.frequencies", ("t_embedder.W",)),
        *_layer("time.mlp.0", "t_embedder.mlp.0"),
        *_layer("time.mlp.2", "t_embedder.mlp.2"),
        Entry("labels.weight", ("y_embedder.embedding_table.weight",)),
        Entry("norm.weight", ("final_layer.norm_final.weight",)),
        *_layer("final_modulation", "final_layer.adaLN_modulation.1"),
        *_layer("to_velocity", "final_layer.linear"),
    ]
    entries[0] = Entry("embed.weight", ("x_embedder.proj.weight",), trailing=2)  # 1 x 1 convolution
    for index in range(len(model.blocks)):
        block = f"blocks.{index}"
        names = ("norm1.weight", "norm2.weight", "attn.q_norm.weight", "attn.k_norm.weight")
        entries += [Entry(f"{block}.{name}", (f"{block}.{name}",)) for name in names]
        for name in ("attn.qkv", "attn.proj", "mlp.w12", "mlp.w3"):
            entries += _layer(f"{block}.{name}", f"{block}.{name}")
        entries += _layer(f"{block}.modulation", f"{block}.adaLN_modulation.1")
    cosines, sines = model.rotary
    return NameMap(
        entries=tuple(entries),
        constants={"feat_rope.freqs_cos": cosines, "feat_rope.freqs_sin": sines},
        defaults={},
    )


def encoder_entries(names: Iterable[str], ours: str, theirs: str) -> list[Entry]:
    """Entries of a DINOv2 encoder; `ours` and `theirs` are what stands before its names.

    The published pivot replica is `teacher_encoder.encoder.`.
    """
    entries = []
    for name in names:
        published = name.removeprefix("model.")
        for pattern, replacement in _DINOV2_NAMES:
            published = re.sub(pattern, replacement, published)
        entries.append(Entry(ours + name, (theirs + published,)))
    return entries


def decoder_entries(depth: int) -> list[Entry]:
    """Entries of a pixel decoder with `depth` blocks."""
    entries = [
        *_layer("decoder.embed", "decoder.decoder_embed"),
        Entry("decoder.class_token", ("decoder.trainable_cls_token",), leading=2),
        Entry("decoder.position", ("decoder.decoder_pos_embed",), leading=1),
        *_layer("decoder.norm", "decoder.decoder_norm"),
        *_layer("decoder.to_pixels", "decoder.decoder_pred"),
    ]
    for index in range(depth):
        ours, theirs = f"decoder.blocks.{index}", f"decoder.decoder_layers.{index}"
        entries += _layer(f"{ours}.norm1", f"{theirs}.layernorm_before")
        entries += _layer(f"{ours}.norm2", f"{theirs}.layernorm_after")
        for kind in _WEIGHT_AND_BIAS:
            parts = (f"{theirs}.attention.attention.{part}.{kind}" for part in _QKV)
            entries.append(Entry(f"{ours}.attn.qkv.{kind}", tuple(parts)))
        entries += _layer(f"{ours}.attn.proj", f"{theirs}.attention.output.dense")
        entries += _layer(f"{ours}.mlp.fc1", f"{theirs}.intermediate.dense")
        entries += _layer(f"{ours}.mlp.fc2", f"{theirs}.output.dense")
    return entries


_QKV = ("query", "key", "value")


def _bridge_entries(model: RPiAE) -> Iterator[Entry]:
    encoder, theirs = "bridge_encoder.blocks.0", "vb_feature_encoder"
    for name in ("norm1", "norm2"):
        yield from _layer(f"{encoder}.{name}", f"{theirs}.{name}")
    yield from _layer(f"{encoder}.skip", f"{theirs}.skip_proj")
    yield from _torch_attention(f"{encoder}.attn", f"{theirs}.attn")
    yield from _layer(f"{encoder}.mlp.fc1", f"{theirs}.proj2.0")
    yield from _layer(f"{encoder}.mlp.fc2", f"{theirs}.proj2.3")
    yield from _layer("bridge_encoder.to_moments", f"{theirs}.to_moments")
    yield from _layer("bridge_decoder.in_proj", "vb_feature_decoder.in_proj")
    yield from _layer("bridge_decoder.out_proj", "vb_feature_decoder.out_proj")
    for index in range(model.config.bridge.decoder_depth):
        ours, theirs = f"bridge_decoder.blocks.{index}", f"vb_feature_decoder.net.{index}"
        yield from _torch_attention(f"{ours}.attn", f"{theirs}.self_attn")
        yield from _layer(f"{ours}.mlp.fc1", f"{theirs}.linear1")
        yield from _layer(f"{ours}.mlp.fc2", f"{theirs}.linear2")
        yield from _layer(f"{ours}.norm1", f"{theirs}.norm1")
        yield from _layer(f"{ours}.norm2", f"{theirs}.norm2")


def _layer(ours: str, theirs: str) -> list[Entry]:
    return [Entry(f"{ours}.{kind}", (f"{theirs}.{kind}",)) for kind in _WEIGHT_AND_BIAS]


def _torch_attention(ours: str, theirs: str) -> list[Entry]:
    """`nn.MultiheadAttention`, which stacks queries, keys and values as we do."""
    return [
        *(Entry(f"{ours}.qkv.{kind}", (f"{theirs}.in_proj_{kind}",)) for kind in _WEIGHT_AND_BIAS),
        *_layer(f"{ours}.proj", f"{theirs}.out_proj"),
    ]
