"""API keys: `Authorization: Bearer <key>`, compared as digests and in constant time."""

import hmac
from typing import Annotated

from fastapi import Depends, Request, Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from service.api.rate_limit import caller_address
from service.api.request_context import context_of
from service.api.state import GatewayDep
from service.api_keys import hash_api_key
from service.errors import Unauthorized

# For the description of the interface, and the button in /docs: what it reads is read again below,
# where every refusal has one shape.
_DESCRIBED = HTTPBearer(auto_error=False, description="Needed where the service has API keys.")


async def owner_of(
    request: Request,
    gateway: GatewayDep,
    _described: Annotated[HTTPAuthorizationCredentials | None, Security(_DESCRIBED)],
) -> str:
    """Digest of the caller's key, which the jobs it makes belong to; empty when no keys are set.

    Names the caller for the limits of each.

    Raises:
        Unauthorized: keys are set, and the request carries none or another.
    """
    context = context_of(request)
    if not gateway.settings.api_keys:
        context.caller = caller_address(request.client.host if request.client else None)
        return ""
    scheme, _, key = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not key.strip():
        raise Unauthorized("an API key is required: send the header Authorization: Bearer <key>")
    digest = hash_api_key(key.strip())
    # Every key is compared, so that the time taken does not tell which one came close.
    matches = [hmac.compare_digest(digest, known) for known in gateway.settings.api_keys]
    if not any(matches):
        raise Unauthorized("this API key is not known: check the header Authorization")
    context.caller = digest
    return digest


OwnerDep = Annotated[str, Depends(owner_of)]
