"""Addresses of jobs and results, as their clients reach this service."""

from fastapi import Request

from service.settings import Settings


def base_url(request: Request, settings: Settings) -> str:
    """`https://host`, without a slash at its end: the public address, else the request's own."""
    return settings.public_url or str(request.base_url).rstrip("/")


def job_path(job_id: str) -> str:
    """Path of a request's job."""
    return f"/v1/jobs/{job_id}"


def file_path(file_id: str) -> str:
    """Path of a result that is answered by its address."""
    return f"/v1/files/{file_id}"
