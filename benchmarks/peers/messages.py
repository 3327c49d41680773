"""What the other servers are asked and what they answer: JSON, or raw bytes for encode and decode.

A request has `task`, and for pictures `prompt`, `seed`, `steps` and `guidance_scale`; `image` is a
picture file and `latents` a safetensors file, both in base64. The answer has `image`, a PNG file,
or `latents`, in the same way.
"""

import io
from base64 import b64decode, b64encode
from dataclasses import dataclass
from typing import Any

import numpy as np
import safetensors.torch
import torch
from PIL import Image
from torch import Tensor

from benchmarks.serving_load import Task
from service.engine.images import encode_file, picture_text

_BEST_QUALITY = 100


@dataclass(frozen=True, kw_only=True)
class Ask:
    """A request that is read: image (3, H, W) uint8 for edit and encode, latents (C, h, w) float32
    for decode.
    """

    task: Task
    prompt: str = ""
    seed: int = 0
    steps: int = 20
    guidance_scale: float | None = None
    image: Tensor | None = None
    latents: Tensor | None = None

    @classmethod
    def read(cls, fields: dict[str, Any]) -> "Ask":
        """A request from its JSON fields."""
        files: dict[str, Any] = {
            name: reader(b64decode(fields[name]))
            for name, reader in (("image", _read_image), ("latents", _read_latents))
            if name in fields
        }
        plain = {name: value for name, value in fields.items() if name not in files}
        return cls(**plain, **files)

    @classmethod
    def of_bytes(cls, task: Task, body: bytes) -> "Ask":
        """A request for encode or decode from a raw body."""
        if task == "encode":
            return cls(task=task, image=_read_image(body))
        return cls(task=task, latents=_read_latents(body))


@dataclass(frozen=True)
class Made:
    """An answer before it is written: image (3, H, W) uint8, or latents (C, h, w)."""

    ask: Ask
    image: Tensor | None
    latents: Tensor | None

    def body(self) -> bytes:
        """A PNG file with its origin, or a safetensors file."""
        if self.ask.task == "encode":
            assert self.latents is not None
            return safetensors.torch.save({"latents": self.latents[None].contiguous()})
        assert self.image is not None
        text = None
        if self.ask.task != "decode":
            text = picture_text(
                prompt=self.ask.prompt,
                seed=self.ask.seed,
                num_steps=self.ask.steps,
                sampler="",
                guidance_scale=self.ask.guidance_scale or 0,
                model="",
            )
        return encode_file(self.image, "png", _BEST_QUALITY, text)

    def fields(self) -> dict[str, str]:
        """The answer as JSON fields."""
        name = "latents" if self.ask.task == "encode" else "image"
        return {name: b64encode(self.body()).decode()}


def _read_image(data: bytes) -> Tensor:
    with Image.open(io.BytesIO(data)) as picture:
        pixels = np.array(picture.convert("RGB"))
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


def _read_latents(data: bytes) -> Tensor:
    return safetensors.torch.load(data)["latents"][0]
