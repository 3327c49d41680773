"""Every error as OpenAI's error object: one handler per family of errors."""

import math

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response
from starlette.routing import Match

from service.api.body import invalid_fields
from service.errors import ErrorBody, InvalidRequest, ServiceError

_SHOWN_PATH = 200  # characters
CLIENT_CLOSED_REQUEST = 499  # nobody reads this answer, but the log and the metrics do


def error_response(error: ServiceError) -> Response:
    """The answer to a request that failed with one of the service's own errors."""
    headers = {}
    if error.retry_after_s is not None:
        headers["Retry-After"] = str(max(1, math.ceil(error.retry_after_s)))
    if error.status == 408:
        headers["Connection"] = "close"  # the rest of the body is not waited for
    if error.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse({"error": error.body.to_dict()}, error.status, headers)


def internal_error() -> Response:
    """The answer to a failure nobody foresaw; the log has what happened, by the request's id."""
    body = ErrorBody("the service failed to answer: report the x-request-id of this answer")
    return JSONResponse({"error": body.to_dict()}, 500)


def shutting_down() -> Response:
    """The answer to a request that the drain did not wait for."""
    return error_response(
        ServiceError(
            "the service is shutting down: send the request again",
            status=503,
            code="shutting_down",
            retry_after_s=1,
        )
    )


def install_error_handlers(app: FastAPI) -> None:
    """Register the handlers; the last one, for what is left, sits in the request-context layer."""
    app.add_exception_handler(ServiceError, _on_service_error)
    app.add_exception_handler(RequestValidationError, _on_validation_error)
    app.add_exception_handler(HTTPException, _on_http_exception)
    app.add_exception_handler(ClientDisconnect, _on_disconnect)


async def _on_service_error(_request: Request, error: Exception) -> Response:
    assert isinstance(error, ServiceError)
    return error_response(error)


async def _on_validation_error(_request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return error_response(invalid_fields(error.errors()))


async def _on_http_exception(request: Request, error: Exception) -> Response:
    """The framework's own refusals: unknown routes, wrong methods, broken multipart bodies."""
    assert isinstance(error, HTTPException)
    status = error.status_code
    path = request.url.path[:_SHOWN_PATH]
    message, code = {
        404: (f"there is no {path} here: /docs lists what there is", "unknown_route"),
        405: (f"{path} does not answer {request.method}", "method_not_allowed"),
    }.get(status, (error.detail, "malformed_request"))
    response = error_response(InvalidRequest(message, status=status, code=code))
    response.headers.update(error.headers or {})
    if status == 405:
        response.headers["allow"] = ", ".join(_methods_of(request))
    return response


def _methods_of(request: Request) -> list[str]:
    """What the path answers, over all routes; the framework names only those of the first."""
    return [
        method
        for method in ("DELETE", "GET", "HEAD", "POST")
        if any(
            route.matches({**request.scope, "method": method})[0] is Match.FULL
            for route in request.app.routes
        )
    ]


async def _on_disconnect(_request: Request, _error: Exception) -> Response:
    return Response(status_code=CLIENT_CLOSED_REQUEST)
