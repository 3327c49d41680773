"""Answers of the model endpoints: OpenAI's model object, with the manifest as an extra field."""

from typing import Literal

from pydantic import BaseModel, Field

from models.manifest import Manifest


class ModelCard(BaseModel):
    """A served model."""

    id: str
    object: Literal["model"] = "model"
    created: int = Field(description="Unix time in seconds at which the bundle was written.")
    owned_by: str = "rpiae"
    backends: list[str] = Field(
        description="Runtimes of the live workers; empty while none is there, or Redis is away."
    )
    unusable_backends: dict[str, str] = Field(
        description="Runtimes for which the bundle has files that some worker could not use, and "
        "why: damaged, of other weights, or not what PyTorch computes."
    )
    manifest: Manifest = Field(
        description="Tasks, sizes, latent shape and normalisation, defaults, measured quality."
    )


class ModelList(BaseModel):
    """All served models."""

    object: Literal["list"] = "list"
    data: list[ModelCard]
