"""Requests with bodies that were good before somebody damaged them."""

import io
import json
import random
import struct
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from safetensors.numpy import save

from tests.integration.api.queue_worker import LATENT_SHAPE, paint

EDIT = "/v1/images/edits"
VARIATION = "/v1/images/variations"
GENERATE = "/v1/images/generations"
ENCODE = "/v1/latents/encode"
DECODE = "/v1/latents/decode"


class Body(NamedTuple):
    """One request; `files` for multipart, else `content`."""

    path: str
    content_type: str
    content: bytes
    files: tuple[str, ...] = ()

    def request(self) -> dict[str, Any]:
        """Keyword arguments of a POST."""
        if not self.files:
            return {"content": self.content, "headers": {"content-type": self.content_type}}
        files = {name: (f"{name}.png", self.content) for name in self.files}
        return {"files": files, "data": {"prompt": "a circle"} if self.path == EDIT else {}}


def mutated(count: int, seed: int) -> Iterator[Body]:
    """Bodies of all kinds, each damaged in another way."""
    numbers = random.Random(seed)
    good = good_bodies()
    for index in range(count):
        body = good[index % len(good)]
        content = body.content
        for _ in range(numbers.randint(1, 4)):
            content = damaged(content, numbers, numbers.choice(good).content)
        yield body._replace(content=content)


def damaged(content: bytes, numbers: random.Random, other: bytes) -> bytes:
    """Flipped, cut, repeated, filled, or joined with something else."""
    data = bytearray(content)
    start = numbers.randrange(len(data)) if data else 0
    end = min(len(data), start + numbers.choice((1, 2, 4, 8, 64, 512)))
    match numbers.randrange(7):
        case 0:  # anywhere
            for _ in range(numbers.randint(1, 16)):
                if data:
                    data[numbers.randrange(len(data))] = numbers.randrange(256)
        case 1:  # where most formats keep sizes and types
            for _ in range(numbers.randint(1, 4)):
                if data:
                    data[numbers.randrange(min(len(data), 64))] = numbers.choice((0, 1, 127, 255))
        case 2:
            del data[start:]
        case 3:
            del data[start:end]
        case 4:
            data[start:start] = data[start:end] * numbers.choice((1, 2, 1000))
        case 5:  # sizes that do not fit
            number = numbers.choice((0, 2**31 - 1, 2**31, 2**32 - 1))
            data[start : start + 4] = struct.pack(numbers.choice(("<I", ">I")), number)
        case _:
            data[start:] = other[start:]
    return bytes(data)


def good_bodies() -> list[Body]:
    """What the service would answer."""
    pictures = _pictures()
    latents = np.random.default_rng(0).standard_normal((2, *LATENT_SHAPE)).astype(np.float32)
    npy = io.BytesIO()
    np.save(npy, latents)
    half = Image.fromarray(paint(0).transpose(1, 2, 0)).convert("RGBA")
    half.putalpha(Image.linear_gradient("L").resize(half.size).point(lambda a: 255 * (a > 128)))
    bodies = [
        Body(ENCODE, f"image/{kind}", content)
        for kind, content in (("png", pictures[0]), ("jpeg", pictures[1]), ("webp", pictures[2]))
    ]
    bodies += [Body(EDIT, "", content, ("image",)) for content in pictures]
    bodies += [
        Body(EDIT, "", _file(half, "png"), ("image", "mask")),
        Body(VARIATION, "", pictures[0], ("image",)),
        Body(ENCODE, "", pictures[1], ("image",)),
        Body(DECODE, "application/vnd.safetensors", save({"latents": latents})),
        Body(DECODE, "application/x-npy", npy.getvalue()),
        Body(DECODE, "application/json", json.dumps({"latents": latents.tolist()}).encode()),
        Body(GENERATE, "application/json", b'{"prompt": "a red circle", "n": 2, "seed": 7}'),
    ]
    return bodies


def _pictures() -> list[bytes]:
    """PNG, JPEG, WebP, then with alpha, a palette, 16 bits, four inks, a rotation, two frames."""
    image = Image.fromarray(paint(0).transpose(1, 2, 0))
    exif = Image.Exif()
    exif[0x0112] = 6
    deep = Image.fromarray(np.arange(1024, dtype=np.uint16).reshape(32, 32))
    return [
        _file(image, "png"),
        _file(image, "jpeg"),
        _file(image, "webp"),
        _file(image.convert("RGBA"), "png"),
        _file(image.convert("P"), "png"),
        _file(deep, "png"),
        _file(image.convert("CMYK"), "jpeg"),
        _file(image, "jpeg", exif=exif),
        _file(image, "webp", save_all=True, append_images=[image.rotate(90)]),
    ]


def _file(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()
