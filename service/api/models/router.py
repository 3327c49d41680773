"""`/v1/models`: what is served, and what it can do."""

import asyncio
from contextlib import suppress
from typing import Any

from fastapi import APIRouter, Depends

from service.api.auth import owner_of
from service.api.models.schemas import ModelCard, ModelList
from service.api.state import Gateway, GatewayDep
from service.errors import NotFound, QueueUnavailable

_PATIENCE_S = 0.8
router = APIRouter(prefix="/v1/models", tags=["models"], dependencies=[Depends(owner_of)])


@router.get("")
async def list_models(gateway: GatewayDep) -> ModelList:
    """The served models."""
    return ModelList(data=[await _card(gateway)])


@router.get("/{model_id}")
async def get_model(model_id: str, gateway: GatewayDep) -> ModelCard:
    """One model and its manifest."""
    if model_id != gateway.manifest.name:
        raise NotFound(
            f"there is no model {model_id}: this service has {gateway.manifest.name}",
            param="model",
            code="model_not_found",
        )
    return await _card(gateway)


async def _card(gateway: Gateway) -> ModelCard:
    workers: dict[str, dict[str, Any]] = {}
    # What the model is does not hang on who runs it.
    with suppress(QueueUnavailable, TimeoutError):
        async with asyncio.timeout(_PATIENCE_S):
            workers = await gateway.serving_workers()
    return ModelCard(
        id=gateway.manifest.name,
        created=gateway.model.served.written_at,
        backends=sorted({str(info["backend"]) for info in workers.values() if "backend" in info}),
        unusable_backends={
            name: reason
            for info in workers.values()
            for name, reason in info.get("unusable_backends", {}).items()
        },
        manifest=gateway.manifest,
    )
