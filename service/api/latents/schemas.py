"""Fields of the latent endpoints: query parameters and JSON bodies."""

from pydantic import BaseModel, ConfigDict, Field

from service.api.framing import Fit
from service.jobs.job import ImageFormat

LARGEST_SEED = 2**53 - 1  # integers above do not survive JSON in every client


class EncodeQuery(BaseModel):
    """Query parameters of `POST /v1/latents/encode`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    sample: bool = Field(False, description="Draw from the posterior instead of taking its mean.")
    seed: int | None = Field(
        None, ge=0, le=LARGEST_SEED, description="Of the draw; absent: random, see x-rpiae-seed."
    )
    size: str = Field(
        "auto",
        description=(
            "Frame to encode at: `auto` is the model's own size, WIDTHxHEIGHT another in whole "
            "latent cells, `native` each picture's own size, padded to whole cells. Others than "
            "`auto` need a model with `other_sizes` in its manifest."
        ),
    )
    fit: Fit = Field(
        "pad",
        description=(
            "How pictures of another size come to the frame: `pad` keeps all of the picture and "
            "paints bars beside it, see x-rpiae-box; `center-crop` cuts; `stretch` distorts. "
            "`native` takes `pad` only."
        ),
    )


class EncodeFields(BaseModel):
    """JSON body of `POST /v1/latents/encode`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    images: list[str] = Field(
        min_length=1, description="Picture files in base64, with or without a data: prefix."
    )


class EncodedLatents(BaseModel):
    """JSON answer of encode; the arrays are (B, C, h, w), normalised."""

    model: str
    shape: list[int]
    size: str = Field(description="WIDTHxHEIGHT in pixels of the frame.")
    boxes: list[list[int]] = Field(
        description="Left, top, width, height of each picture in its frame, as in x-rpiae-box."
    )
    latents: list[list[list[list[float]]]] = Field(
        description="The posterior's mean, or a draw from it with `sample=true`."
    )
    mean: list[list[list[list[float]]]]
    logvar: list[list[list[list[float]]]]


class DecodeQuery(BaseModel):
    """Query parameters of `POST /v1/latents/decode`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    output_format: ImageFormat = Field(
        "png", description="Of pictures; `Accept: image/png` (jpeg, webp) takes precedence."
    )
    output_compression: int = Field(100, ge=0, le=100, description="Quality of jpeg and webp.")
    box: str = Field(
        "auto",
        description=(
            "What to keep of each decoded picture: `left,top,width,height` in pixels, one for each "
            "latent, separated by `;`, as encode's x-rpiae-box gives them. `auto` takes the tensor "
            "`boxes` of a safetensors body where it has one, `none` keeps the whole frame. In one "
            "array of pixels all boxes must be of one size."
        ),
    )


class DecodeFields(BaseModel):
    """JSON body of `POST /v1/latents/decode`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    latents: list[list[list[list[float]]]] = Field(
        description="(B, C, h, w), normalised as encode gives them; one (C, h, w) item also passes."
    )


class DecodedImage(BaseModel):
    """One decoded picture."""

    b64_json: str
    size: str = Field(description="WIDTHxHEIGHT in pixels.")


class DecodedImages(BaseModel):
    """JSON answer of decode."""

    created: int = Field(description="Unix time in seconds.")
    data: list[DecodedImage]
    output_format: ImageFormat
    size: str | None = Field(
        description="WIDTHxHEIGHT in pixels; null where the pictures differ, see each one's own."
    )
