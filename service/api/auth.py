"""API keys: `Authorization: Bearer <key>`, compared as digests and in constant time."""

import hmac
from typing import Annotated

from fastapi import Depends, Request

from service.api.state import GatewayDep
from service.errors import Unauthorized
from service.settings import hash_api_key


def owner_of(request: Request, gateway: GatewayDep) -> str:
    """Digest of the caller's key, which the jobs it makes belong to; empty when no keys are set.

    Raises:
        Unauthorized: keys are set, and the request carries none or another.
    """
    if not gateway.settings.api_keys:
        return ""
    scheme, _, key = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not key.strip():
        raise Unauthorized("an API key is required: send the header Authorization: Bearer <key>")
    digest = hash_api_key(key.strip())
    # Every key is compared, so that the time taken does not tell which one came close.
    matches = [hmac.compare_digest(digest, known) for known in gateway.settings.api_keys]
    if not any(matches):
        raise Unauthorized("this API key is not known: check the header Authorization")
    return digest


OwnerDep = Annotated[str, Depends(owner_of)]
