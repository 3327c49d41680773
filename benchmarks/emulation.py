"""A device without a model, whose steps take the time of a table: it stands for a GPU."""

from models.manifest import Manifest
from service.backends.base import Limits
from service.backends.fake_backend import FakeBackend

_MAX_IMAGES = 4


def emulated_backend(manifest: Manifest, max_rows: int, step_s: float, row_s: float) -> FakeBackend:
    """Steps take `step_s` and `row_s` more for each row; all other calls take no time."""
    limits = Limits(
        image_size=manifest.image_size,
        latent_shape=manifest.latent_shape,
        max_rows=max_rows,
        max_images=_MAX_IMAGES,
        other_sizes=manifest.other_sizes,
    )
    rows = range(1, max_rows + 1)
    return FakeBackend(limits, step_seconds={count: step_s + count * row_s for count in rows})
