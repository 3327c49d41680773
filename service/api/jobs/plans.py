"""The plans that requests may leave beside their jobs, read back."""

from typing import Annotated, TypeAlias

from pydantic import Field, TypeAdapter

from service.api.answer import AnswerPlan
from service.api.images.answers import ImagesAnswer
from service.api.latents.answers import DecodedAnswer, EncodedAnswer
from service.jobs.group import Group

_Plan: TypeAlias = Annotated[
    ImagesAnswer | EncodedAnswer | DecodedAnswer, Field(discriminator="kind")
]
_PLANS: TypeAdapter[_Plan] = TypeAdapter(_Plan)


def plan_of(group: Group) -> AnswerPlan:
    """How the request of these jobs is to be answered."""
    return _PLANS.validate_python(group.answer)
