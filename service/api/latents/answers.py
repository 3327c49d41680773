"""What the latent endpoints answer with: the worker's outputs in the format a client asks for."""

from base64 import b64encode
from collections.abc import Sequence
from typing import Literal

from fastapi import Request
from safetensors.numpy import load

from service.api.answer import Answer, AnswerPlan, Made
from service.api.latents.formats import (
    BOXES,
    JSON_TYPE,
    NPY_TYPES,
    SAFETENSORS_TYPES,
    TENSOR_TYPES,
    write_json,
    write_npy,
    write_safetensors,
)
from service.api.latents.schemas import DecodedImage, DecodedImages, DecodeQuery
from service.api.negotiation import IMAGE_TYPES, choose_media_type, not_acceptable
from service.boxes import Box, array_of_boxes, same_size
from service.errors import InvalidRequest
from service.jobs.job import DecodeParams, ImageFormat


class EncodedAnswer(AnswerPlan):
    """The answer to encode: the worker's safetensors (latents, mean, logvar) and the boxes."""

    kind: Literal["encoded"] = "encoded"
    wanted: str
    model: str
    frame_size: str
    """WIDTHxHEIGHT."""
    boxes: list[Box]

    @property
    def media_type(self) -> str:
        return self.wanted

    def build(self, made: Made) -> Answer:
        arrays = load(made.outputs[0])
        if self.wanted in NPY_TYPES:
            return Answer(write_npy(arrays["latents"]), self.wanted, self.headers)
        arrays[BOXES] = array_of_boxes(self.boxes)
        if self.wanted in SAFETENSORS_TYPES:
            return Answer(write_safetensors(arrays), self.wanted, self.headers)
        fields = {
            "model": self.model,
            "shape": list(arrays["latents"].shape),
            "size": self.frame_size,
        }
        return Answer(write_json({**fields, **arrays}), self.wanted, self.headers)


class DecodedAnswer(AnswerPlan):
    """The answer to decode: the worker's picture files, or its safetensors of images."""

    kind: Literal["decoded"] = "decoded"
    wanted: str
    output_format: ImageFormat
    sizes: list[str]
    """WIDTHxHEIGHT of each picture."""

    @property
    def media_type(self) -> str:
        return self.wanted

    def build(self, made: Made) -> Answer:
        if self.wanted in IMAGE_TYPES or self.wanted in SAFETENSORS_TYPES:
            return Answer(made.outputs[0], self.wanted, self.headers)
        if self.wanted in NPY_TYPES:
            array = load(made.outputs[0])["images"]
            return Answer(write_npy(array), self.wanted, self.headers)
        answer = DecodedImages(
            created=int(made.created_at),
            data=[
                DecodedImage(b64_json=b64encode(output).decode(), size=size)
                for output, size in zip(made.outputs, self.sizes, strict=True)
            ],
            output_format=self.output_format,
            size=self.sizes[0] if len(set(self.sizes)) == 1 else None,
        )
        return Answer(answer.model_dump_json().encode(), self.wanted, self.headers)


def encode_media_type(request: Request) -> str:
    """What encode answers with: safetensors unless the client asks for another.

    Raises:
        InvalidRequest: 406.
    """
    return _negotiate(request, TENSOR_TYPES)


def decode_media_type(request: Request, query: DecodeQuery, num_latents: int) -> str:
    """What decode answers with: a picture for one item and JSON for many, unless asked otherwise.

    Raises:
        InvalidRequest: 406, also when a picture is asked for and there are many.
    """
    own_type = f"image/{query.output_format}"
    pictures = [own_type, *(name for name in IMAGE_TYPES if name != own_type)]
    tensors = (JSON_TYPE, *SAFETENSORS_TYPES, *NPY_TYPES)
    return _negotiate(request, (*pictures, *tensors) if num_latents == 1 else tensors)


def decode_params(wanted: str, query: DecodeQuery, boxes: Sequence[Box]) -> DecodeParams:
    """What the worker shall make so that the answer can have the wanted media type.

    Raises:
        InvalidRequest: 422 when boxes of several sizes are to become one array.
    """
    tensors = wanted in SAFETENSORS_TYPES or wanted in NPY_TYPES
    if tensors and not same_size(boxes):
        sizes = ", ".join(dict.fromkeys(box.size for box in boxes))
        raise InvalidRequest(
            f"box cuts pictures of {sizes}, which do not fit one array: send box=none, or accept "
            "pictures or JSON",
            status=422,
            param="box",
            code="invalid_value",
        )
    return DecodeParams(
        output_format="tensor" if tensors else IMAGE_TYPES.get(wanted, query.output_format),
        output_compression=query.output_compression,
        boxes=tuple(boxes),
    )


def _negotiate(request: Request, offered: Sequence[str]) -> str:
    accept = request.headers.get("accept")
    chosen = choose_media_type(accept, offered)
    if chosen is None:
        raise not_acceptable(accept, offered)
    return chosen
