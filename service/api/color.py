"""Pictures of any mode and colour profile to 8-bit sRGB, with their transparency."""

from io import BytesIO

import numpy as np
from PIL import Image, ImageCms

_SIXTEEN_BIT_MODES = ("I;16", "I;16L", "I;16B", "I;16N", "I")
_SRGB = ImageCms.createProfile("sRGB")


def to_srgb(image: Image.Image) -> Image.Image:
    """RGB, or RGBA where the picture has any transparency.

    16 bits become 8. An embedded colour profile is followed; one that is broken, or made for other
    colours than the picture's, is as good as none.
    """
    profile = image.info.get("icc_profile")
    plain, alpha = _split(image)
    if profile:
        plain = _follow(plain, profile)
    plain = plain.convert("RGB")
    if alpha is not None:
        plain.putalpha(alpha)
    return plain


def _split(image: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """The colours in 8 bits (L, RGB or CMYK), and the alpha channel if there is one."""
    if image.mode in _SIXTEEN_BIT_MODES:
        levels = np.asarray(image).astype(np.uint32)
        # Pillow's own conversion cuts at 255 instead of scaling.
        plain = Image.fromarray(((levels + 128) // 257).astype(np.uint8))
        key = image.info.get("transparency")
        if not isinstance(key, int):
            return plain, None
        return plain, Image.fromarray(np.where(levels == key, 0, 255).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("LA" if image.mode in ("LA", "La") else "RGBA")
        alpha = image.getchannel("A")
        return image.convert("L" if image.mode == "LA" else "RGB"), alpha
    if image.mode in ("L", "CMYK"):
        return image, None
    return image.convert("L" if image.mode == "1" else "RGB"), None


def _follow(image: Image.Image, profile: bytes) -> Image.Image:
    """Colours that a profile describes as sRGB."""
    try:
        source = ImageCms.ImageCmsProfile(BytesIO(profile))
        converted = ImageCms.profileToProfile(image, source, _SRGB, outputMode="RGB")
    except (ImageCms.PyCMSError, OSError):
        return image
    return image if converted is None else converted
