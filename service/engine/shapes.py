"""Which tensors the engine takes: the model's own shapes, or others in whole latent cells.

B images, C latent channels, h and w rows and columns of latents.
"""

from torch import Tensor

from service.backends.base import Limits


def check_source(source: Tensor | None, mask: Tensor | None, limits: Limits) -> None:
    """Check the picture of an edit (3, H, W), which always has the model's own size, and the mask
    (H, W) of what may change in it; None where there is none.

    Raises:
        ValueError: another shape, or a mask without a picture.
    """
    if source is not None and tuple(source.shape) != (3, *limits.image_size):
        raise _misshaped("source image", (3, *limits.image_size), source)
    if mask is None:
        return
    if source is None:
        raise ValueError("a mask needs a source image, of which it keeps a part")
    if tuple(mask.shape) != limits.image_size:
        raise _misshaped("mask", limits.image_size, mask)


def check_images(images: Tensor, limits: Limits) -> None:
    """Check images (B, 3, H, W) to encode.

    Raises:
        ValueError: none, or of a size that the model does not encode.
    """
    if not len(images):
        raise ValueError("images must not be empty")
    expected = (3, *limits.image_size)
    if tuple(images.shape[1:]) == expected:
        return
    if not limits.other_sizes or images.ndim != 4 or images.shape[1] != 3:
        raise _misshaped("images", ("B", *expected), images)
    (height, width), (high, wide) = images.shape[-2:], limits.cell
    if min(height, width) < 1 or height % high or width % wide:
        raise ValueError(
            f"images must be a whole number of {high} x {wide} pixels high and wide, "
            f"got {height} x {width}"
        )


def check_latents(latents: Tensor, limits: Limits) -> None:
    """Check latents (B, C, h, w) to decode.

    Raises:
        ValueError: none, or of a shape that the model does not decode.
    """
    if not len(latents):
        raise ValueError("latents must not be empty")
    expected = limits.latent_shape
    if tuple(latents.shape[1:]) == expected:
        return
    if not limits.other_sizes:
        raise _misshaped("latents", ("B", *expected), latents)
    if latents.ndim != 4 or latents.shape[1] != expected[0] or min(latents.shape[2:]) < 1:
        raise _misshaped("latents", ("B", expected[0], "h", "w"), latents)


def _misshaped(name: str, expected: tuple[int | str, ...], tensor: Tensor) -> ValueError:
    return ValueError(
        f"{name} must be ({', '.join(map(str, expected))}), got {tuple(tensor.shape)}"
    )
