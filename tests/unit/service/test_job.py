"""Jobs survive the way through Redis, and what does not fit is refused with the field's name."""

import math
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from models.manifest import Task
from service.errors import ErrorBody, InvalidRequest, JobFailed, Overloaded, ServiceError
from service.jobs.group import Group
from service.jobs.job import (
    PARAMS_OF_TASK,
    DecodeParams,
    EditParams,
    EncodeParams,
    Event,
    GenerateParams,
    Job,
    Params,
    Status,
    to_json,
)

GENERATE = GenerateParams(prompt="a star", seed=1, steps=20, guidance_scale=3)
PARAMS: dict[Task, Params] = {
    "generate": GENERATE,
    "edit": EditParams(**GENERATE.model_dump(), image_guidance_scale=1.5),
    "variation": EditParams(**GENERATE.model_dump(), image_guidance_scale=1, strength=0.5),
    "encode": EncodeParams(sample=True, seed=4),
    "decode": DecodeParams(output_format="tensor"),
}


def make_job(**fields: Any) -> Job:
    defaults: dict[str, Any] = {
        "id": "job-1",
        "task": "generate",
        "model": "stickers",
        "params": GENERATE,
        "created_at": 1_795_000_000.25,
    }
    return Job(**{**defaults, **fields})


def test_every_task_has_its_parameters() -> None:
    assert set(PARAMS_OF_TASK) == set(get_args(Task)) == set(PARAMS)


@pytest.mark.parametrize("task", PARAMS)
def test_fields_give_the_job_back(task: Task) -> None:
    job = make_job(task=task, params=PARAMS[task])
    assert Job.from_fields(job.to_fields()) == job


@given(
    prompt=st.text(),
    seed=st.integers(0, 2**63 - 1),
    guidance_scale=st.floats(0, 1e6),
    created_at=st.floats(0, 1e11),
    deadline_at=st.none() | st.floats(0, 1e11),
    owner=st.text(max_size=64),
    row_steps=st.integers(1, 10**9),
)
def test_fields_keep_every_bit(
    prompt: str,
    seed: int,
    guidance_scale: float,
    created_at: float,
    deadline_at: float | None,
    owner: str,
    row_steps: int,
) -> None:
    params = GenerateParams(prompt=prompt, seed=seed, steps=1, guidance_scale=guidance_scale)
    times: dict[str, Any] = {"created_at": created_at, "deadline_at": deadline_at}
    job = make_job(params=params, owner=owner, row_steps=row_steps, **times)
    fields = job.to_fields()
    assert all(isinstance(value, str) and value for value in fields.values())
    assert Job.from_fields(fields) == job


def test_fields_of_a_newer_version_are_ignored() -> None:
    assert Job.from_fields({**make_job().to_fields(), "status": "running", "x": "1"}) == make_job()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"params": None}, "'params'"),
        ({"params": "{"}, "params: Invalid JSON"),
        ({"params": '{"prompt": "a", "seed": -1, "steps": 1, "guidance_scale": 1}'}, "params.seed"),
        ({"task": "paint"}, "'paint'"),
        ({"created_at": "noon"}, "noon"),
        ({"priority": "urgent"}, "'urgent'"),
    ],
)
def test_broken_fields_name_what_is_wrong(change: dict[str, str | None], message: str) -> None:
    fields = {**make_job().to_fields(), **change}
    with pytest.raises(ValueError, match=message):
        Job.from_fields({name: value for name, value in fields.items() if value is not None})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"task": "encode"}, "EncodeParams"),
        ({"params": PARAMS["edit"]}, "GenerateParams"),
        ({"priority": "urgent"}, "urgent"),
        ({"id": ""}, "job id"),
        ({"id": "a}b"}, "job id"),
        ({"row_steps": 0}, "row_step"),
    ],
)
def test_a_job_that_makes_no_sense_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_job(**change)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"seed": -1}, "seed"),
        ({"seed": 2**63}, "seed"),
        ({"steps": 0}, "steps"),
        ({"guidance_scale": math.nan}, "guidance_scale"),
        ({"guidance_scale": math.inf}, "guidance_scale"),
        ({"sampler": "magic"}, "sampler"),
        ({"output_compression": 101}, "output_compression"),
        ({"negative": "x"}, "negative"),
    ],
)
def test_parameters_out_of_range_are_refused(change: dict[str, Any], field: str) -> None:
    with pytest.raises(ValidationError) as refused:
        GenerateParams.model_validate({**GENERATE.model_dump(), **change})
    assert refused.value.errors()[0]["loc"] == (field,)


def make_group(**fields: Any) -> Group:
    defaults: dict[str, Any] = {
        "id": "group-1",
        "owner": "",
        "job_ids": ("job-1", "job-2"),
        "created_at": 1_795_000_000.25,
        "answer": {"size": [128, None], "prompt": "Käfer"},
    }
    return Group(**{**defaults, **fields})


@pytest.mark.parametrize(
    "fields", [{}, {"owner": "o", "idempotency_key": "k: {}", "fingerprint": "f", "answer": {}}]
)
def test_fields_give_the_group_back(fields: dict[str, Any]) -> None:
    group = make_group(**fields)
    assert Group.from_fields({**group.to_fields(), "num_left": "2"}) == group


@pytest.mark.parametrize(
    ("change", "message"),
    [({"id": ""}, "group id"), ({"id": "a:b"}, "group id"), ({"job_ids": ()}, "no jobs")],
)
def test_a_group_that_makes_no_sense_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_group(**change)


def test_a_broken_group_names_what_is_missing() -> None:
    fields = make_group().to_fields()
    del fields["job_ids"]
    with pytest.raises(ValueError, match="'job_ids'"):
        Group.from_fields(fields)


def test_a_key_is_its_owner_s_alone() -> None:
    digests = {
        make_group(owner=owner, idempotency_key=key).key_digest()
        for owner, key in (("a", "b"), ("b", "a"), ("", "ab"), ("ab", "c"), ("a", "bc"))
    }
    assert len(digests) == 5
    assert make_group().key_digest() == ""


def test_only_three_states_are_final() -> None:
    final = {status for status in Status if status.final}
    assert final == {Status.SUCCEEDED, Status.FAILED, Status.CANCELLED}
    assert Event("1-0", "succeeded", {}).final
    assert not Event("1-0", "preview", {}).final


def test_json_is_compact_and_holds_no_nan() -> None:
    assert to_json({"prompt": "Käfer", "steps": [1, 2]}) == '{"prompt":"Käfer","steps":[1,2]}'
    with pytest.raises(ValueError, match="JSON compliant"):
        to_json({"seconds": math.nan})


def test_errors_carry_what_the_caller_needs() -> None:
    error = InvalidRequest("n must be 1 to 10, got 0", status=422, param="n")
    assert error.status == 422
    assert error.body == ErrorBody(
        "n must be 1 to 10, got 0", "invalid_request_error", "invalid_request", "n"
    )
    assert ErrorBody.from_dict(error.body.to_dict()) == error.body
    assert Overloaded("full", retry_after_s=3).retry_after_s == 3

    failed = JobFailed("job-1", ErrorBody("too large", code="out_of_memory", param="size"))
    assert isinstance(failed, ServiceError)
    assert (failed.status, failed.code, failed.param) == (500, "out_of_memory", "size")
    assert failed.message == "job job-1 failed: too large"
