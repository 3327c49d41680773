"""`/v1/admin`: another bundle for the workers while they serve. Only where there are admin keys."""

import asyncio
import hmac
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from starlette.responses import JSONResponse, Response

from service.api.admin.schemas import ReloadFields, ReloadStatus, State, WorkerReload
from service.api.body import parse_json
from service.api.negotiation import prefers_async
from service.api.openapi import ERROR
from service.api.state import Gateway, GatewayDep
from service.api_keys import hash_api_key
from service.errors import Conflict, NoWorker, Unauthorized
from service.jobs.reloads import Reload

_LOOK_EVERY_S = 0.2
_DESCRIBED = HTTPBearer(auto_error=False, description="One of RPIAE_ADMIN_KEYS.")


async def require_admin(
    request: Request,
    gateway: GatewayDep,
    _described: Annotated[HTTPAuthorizationCredentials | None, Security(_DESCRIBED)],
) -> None:
    """Let only those in who have an admin key.

    Raises:
        Unauthorized: the request carries none, or another.
    """
    scheme, _, key = request.headers.get("authorization", "").partition(" ")
    digest = hash_api_key(key.strip())
    matches = [hmac.compare_digest(digest, known) for known in gateway.settings.admin_keys]
    if scheme.lower() != "bearer" or not any(matches):
        raise Unauthorized(
            "an admin key is required: send the header Authorization: Bearer <one of "
            "RPIAE_ADMIN_KEYS>"
        )


router = APIRouter(prefix="/v1/admin", tags=["admin"], dependencies=[Depends(require_admin)])


@router.get("/reload")
async def show_reload(gateway: GatewayDep) -> ReloadStatus:
    """How far the workers are with the latest request."""
    return await _status(gateway, await gateway.reloads.latest())


@router.post(
    "/reload",
    response_model=ReloadStatus,
    responses={
        202: {"model": ReloadStatus, "description": "Some have not acted yet: see GET."},
        "default": ERROR,
    },
    openapi_extra={
        "requestBody": {
            "required": False,
            "content": {"application/json": {"schema": ReloadFields.model_json_schema()}},
        }
    },
)
async def reload_workers(request: Request, gateway: GatewayDep) -> Response:
    """Have every worker read its bundle again, or load another one, while it serves.

    No request fails or waits for it: jobs that run end on the model before, and a bundle that
    cannot be loaded, or whose sizes and tasks are others, leaves it in place. Answers 200 when all
    serve the new one, 409 `reload_refused` when some could not load it, and 202 when some have not
    acted within the time of a request, or at once with `Prefer: respond-async`.
    """
    body = await request.body()
    fields = parse_json(body, ReloadFields) if body else ReloadFields()
    if not await gateway.queue.workers():
        raise NoWorker("no worker is there to load a bundle: start one with it")
    asked = await gateway.reloads.ask(fields.bundle or "")
    status = await _status(gateway, asked)
    if not prefers_async(request):
        try:
            async with asyncio.timeout(gateway.settings.request_timeout_s):
                while status.state == "loading":
                    await asyncio.sleep(_LOOK_EVERY_S)
                    status = await _status(gateway, asked)
        except TimeoutError:
            pass
    if status.state == "refused":
        reasons = {str(each.reason) for each in status.workers if each.state == "refused"}
        raise Conflict(
            f"the model before is served on: {'; '.join(sorted(reasons))}", code="reload_refused"
        )
    return JSONResponse(status.model_dump(), 202 if status.state == "loading" else 200)


async def _status(gateway: Gateway, asked: Reload) -> ReloadStatus:
    announced = await gateway.queue.workers()
    workers = [_worker(name, info) for name, info in announced.items() if "reload" in info]
    return ReloadStatus(
        number=asked.number,
        bundle=asked.bundle or None,
        requested_at=asked.at or None,
        state=_state(workers, asked.number),
        workers=sorted(workers, key=lambda each: each.worker),
    )


def _worker(name: str, info: dict[str, Any]) -> WorkerReload:
    return WorkerReload(
        worker=name,
        host=info["host"],
        model=info["model"],
        backend=info["backend"],
        bundle=info["bundle"],
        **info["reload"],
    )


def _state(workers: list[WorkerReload], number: int) -> State:
    if not workers or any(each.number != number or each.state == "loading" for each in workers):
        return "loading"
    return "refused" if any(each.state == "refused" for each in workers) else "done"
