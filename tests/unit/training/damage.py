"""Ways in which a picture may be damaged and still show the same."""

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

Picture = NDArray[np.uint8]


def untouched(image: Picture, rng: np.random.Generator) -> Picture:
    return image


def noisy(image: Picture, rng: np.random.Generator) -> Picture:
    noise = rng.normal(0, 0.05 * 255, image.shape)
    return np.clip(np.rint(image + noise), 0, 255).astype(np.uint8)


def blurred(image: Picture, rng: np.random.Generator) -> Picture:
    return np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(1.5)))


def compressed(image: Picture, rng: np.random.Generator) -> Picture:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=60)
    return np.asarray(Image.open(file))
