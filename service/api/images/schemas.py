"""Fields of the image endpoints: OpenAI's names for what OpenAI has, ours for the rest.

What depends on the loaded model (offered sizes, most steps) is checked in the service, not here.
"""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from models.manifest import Sampler
from service.api.framing import Fit
from service.jobs.job import ImageFormat, Priority

# Integers above 2**53 do not survive JSON in every client; ten pictures use seed ... seed + 9.
LARGEST_SEED = 2**53 - 10
# With the stickers model more than half of the variations differ visibly from their source, next to
# none in the whole frame; at 0.6 one in three differs, at 1 one in ten is another picture.
VARIATION_STRENGTH = 0.8


class PictureFields(BaseModel):
    """What all requests for pictures have in common. A null counts as absent."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str | None = Field(None, description="Name of the loaded model; absent: that one.")
    n: int = Field(1, ge=1, le=10, description="Number of pictures, with seeds seed, seed + 1, ...")
    size: str = Field("auto", description="WIDTHxHEIGHT in pixels, or `auto`.")
    response_format: Literal["b64_json", "url"] = Field(
        "b64_json",
        description="`url` answers the addresses of the pictures, which the service keeps for a "
        "while (`expires_at`) and gives to the key that made them; not in a stream.",
    )
    output_format: ImageFormat = Field(
        "png",
        description="`Accept: image/png` (jpeg, webp) takes precedence and answers raw bytes.",
    )
    output_compression: int = Field(
        100, ge=0, le=100, description="Quality of jpeg and webp; webp at 100 is lossless."
    )
    seed: int | None = Field(None, ge=0, le=LARGEST_SEED, description="Absent: drawn at random.")
    steps: int | None = Field(
        None, ge=1, description="Denoising steps; absent: the model's default."
    )
    guidance_min_t: float | None = Field(
        None,
        ge=0,
        le=1,
        allow_inf_nan=False,
        description="Guidance acts where t is at least this; t runs from 1, noise, to 0.",
    )
    guidance_max_t: float | None = Field(
        None, ge=0, le=1, allow_inf_nan=False, description="And at most this."
    )
    sampler: Sampler | None = Field(
        None,
        description="Solver; absent: the model's own. `heun` runs the model twice for each step "
        "but the last; `dpmpp-2m` and `unipc` need fewer steps than `euler`.",
    )
    priority: Priority = "interactive"
    deadline_ms: int | None = Field(
        None, ge=1, description="Give up after so many milliseconds; absent: the service's limit."
    )
    user: str = Field("", description="Accepted, without effect.")
    safety_identifier: str = Field("", description="Accepted, without effect.")


class ImageFields(PictureFields):
    """What generations and edits have in common: a prompt and a stream."""

    prompt: str = Field(
        description="What the picture shall show, or what shall change. To a model of classes, the "
        "name or the index of one: `golden retriever`, `207`."
    )
    stream: bool = Field(
        False,
        description="Answer with server-sent events: previews if `partial_images` asks for them, "
        "and each finished picture.",
    )
    partial_images: int = Field(
        0,
        ge=0,
        le=3,
        description="Previews of each picture in a stream, or in the events of an asynchronous "
        "job: what the model expects the picture to become. A preview may be left out, the "
        "picture never is. Elsewhere without effect.",
    )
    guidance_scale: float | None = Field(
        None,
        ge=0,
        le=30,
        allow_inf_nan=False,
        description="Weight of the prompt, 1 is off; absent: the model's default.",
    )
    negative_prompt: str = Field(
        "", description="What the picture shall not show; not for a model with autoguidance."
    )
    background: Literal["transparent", "opaque", "auto"] = Field(
        "auto", description="Pictures are opaque; `transparent` is refused."
    )
    quality: str = Field("auto", description="Accepted, without effect: ask for `steps`.")
    moderation: str = Field("auto", description="Accepted, without effect.")
    complexity: str = Field("auto", description="Accepted, without effect.")


class GenerationFields(ImageFields):
    """JSON body of `POST /v1/images/generations`."""

    style: str = Field("", description="Accepted, without effect.")


class SourceFields(PictureFields):
    """What edits and variations have in common: a source picture, the file `image`."""

    size: str = Field(
        "auto",
        description="`auto` answers pictures of the source's aspect ratio: bars that `pad` painted "
        "are cut off again. The model's size as WIDTHxHEIGHT answers the whole frame.",
    )
    fit: Fit = Field(
        "pad",
        description="How a picture of another size comes to the model's size: `pad` keeps all of "
        "it and paints bars beside it, `center-crop` cuts, `stretch` distorts.",
    )
    image_guidance_scale: float | None = Field(
        None,
        ge=0,
        le=30,
        allow_inf_nan=False,
        description="Weight of the source picture, 1 is off; absent: the model's default.",
    )
    strength: float = Field(
        1.0,
        gt=0,
        le=1,
        allow_inf_nan=False,
        description="Below 1 the result starts from the source instead of noise.",
    )


class EditFields(SourceFields, ImageFields):
    """Text fields of `POST /v1/images/edits`, multipart; the files are `image` and `mask`."""

    input_fidelity: str = Field("high", description="Accepted, without effect.")


class VariationFields(SourceFields):
    """Text fields of `POST /v1/images/variations`, multipart; the picture is the file `image`."""

    strength: float = Field(
        VARIATION_STRENGTH,
        gt=0,
        le=1,
        allow_inf_nan=False,
        description="How far a picture may get from its source: near 0 it repeats it, 1 starts "
        "from noise.",
    )

    @property
    def prompt(self) -> str:
        """None: a variation follows its source alone."""
        return ""

    @property
    def negative_prompt(self) -> str:
        """None."""
        return ""

    @property
    def guidance_scale(self) -> float:
        """Off: there is no prompt to weigh."""
        return 1.0


class ImageItem(BaseModel):
    """One finished picture: itself, or where it is."""

    b64_json: str | None = None
    url: str | None = None
    expires_at: int | None = Field(None, description="Unix time in seconds at which `url` ends.")
    seed: int = Field(description="Send it again, with the same fields, for the same picture.")


class InputTokens(BaseModel):
    text_tokens: int
    image_tokens: int


class Usage(BaseModel):
    """Sizes of the model's input and output: words of the prompt, latent cells of the pictures."""

    input_tokens: int
    input_tokens_details: InputTokens
    output_tokens: int
    total_tokens: int


class ImagesResponse(BaseModel):
    """Answer of the image endpoints."""

    created: int = Field(description="Unix time in seconds.")
    data: list[ImageItem]
    background: Literal["opaque"] = "opaque"
    output_format: ImageFormat
    size: str = Field(description="WIDTHxHEIGHT in pixels.")
    usage: Usage


class PartialImageEvent(BaseModel):
    """`image_generation.partial_image` or `image_edit.partial_image` of a stream: a preview."""

    type: Literal["image_generation.partial_image", "image_edit.partial_image"]
    b64_json: str
    partial_image_index: int = Field(description="From 0 on; those of one picture ascend.")
    created_at: int = Field(description="Unix time in seconds.")
    size: str = Field(description="WIDTHxHEIGHT in pixels.")
    quality: Literal["auto"] = "auto"
    background: Literal["opaque"] = "opaque"
    output_format: ImageFormat
    image_index: int = Field(description="Which of the `n` pictures, from 0 on.")


class CompletedEvent(BaseModel):
    """`image_generation.completed` or `image_edit.completed` of a stream, one per picture."""

    type: Literal["image_generation.completed", "image_edit.completed"]
    b64_json: str
    created_at: int = Field(description="Unix time in seconds.")
    size: str = Field(description="WIDTHxHEIGHT in pixels.")
    quality: Literal["auto"] = "auto"
    background: Literal["opaque"] = "opaque"
    output_format: ImageFormat
    usage: Usage = Field(description="Of the whole request.")
    image_index: int = Field(description="Which of the `n` pictures, from 0 on.")
    seed: int = Field(description="Send it again, with the same fields, for the same picture.")
