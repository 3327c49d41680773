"""What the image endpoints answer with: OpenAI's list of pictures, or one picture's bytes."""

from base64 import b64encode
from typing import Literal

from service.api.answer import Answer, AnswerPlan, Made
from service.api.images.schemas import ImageItem, ImagesResponse, Usage
from service.jobs.job import GenerateParams, ImageFormat, Job

JSON_TYPE = "application/json"


class ImagesAnswer(AnswerPlan):
    """The answer to a request for pictures, one from each job."""

    kind: Literal["images"] = "images"
    output_format: ImageFormat
    raw: bool
    """Answer with the only picture's bytes instead of JSON."""
    response_format: Literal["b64_json", "url"]
    size: str
    usage: Usage

    @property
    def links(self) -> bool:
        return self.response_format == "url" and not self.raw

    @property
    def media_type(self) -> str:
        return f"image/{self.output_format}" if self.raw else JSON_TYPE

    def build(self, made: Made) -> Answer:
        if self.raw:
            headers = {**self.headers, "x-rpiae-seed": str(_seed(made.jobs[0]))}
            return Answer(made.outputs[0], self.media_type, headers)
        if self.links:
            items = [
                ImageItem(url=url, expires_at=made.expires_at, seed=_seed(job))
                for job, url in zip(made.jobs, made.urls, strict=True)
            ]
        else:
            items = [
                ImageItem(b64_json=b64encode(picture).decode(), seed=_seed(job))
                for job, picture in zip(made.jobs, made.outputs, strict=True)
            ]
        answer = ImagesResponse(
            created=int(made.created_at),
            data=items,
            output_format=self.output_format,
            size=self.size,
            usage=self.usage,
        )
        return Answer(
            answer.model_dump_json(exclude_none=True).encode(), self.media_type, self.headers
        )


def _seed(job: Job) -> int:
    assert isinstance(job.params, GenerateParams)
    return job.params.seed
