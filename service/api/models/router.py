"""`/v1/models`: what is served, and what it can do."""

from fastapi import APIRouter, Depends

from service.api.auth import owner_of
from service.api.models.schemas import ModelCard, ModelList
from service.api.state import Gateway, GatewayDep
from service.errors import NotFound

router = APIRouter(prefix="/v1/models", tags=["models"], dependencies=[Depends(owner_of)])


@router.get("")
async def list_models(gateway: GatewayDep) -> ModelList:
    """The served models."""
    return ModelList(data=[_card(gateway)])


@router.get("/{model_id}")
async def get_model(model_id: str, gateway: GatewayDep) -> ModelCard:
    """One model and its manifest."""
    if model_id != gateway.manifest.name:
        raise NotFound(
            f"there is no model {model_id}: this service has {gateway.manifest.name}",
            param="model",
            code="model_not_found",
        )
    return _card(gateway)


def _card(gateway: Gateway) -> ModelCard:
    return ModelCard(
        id=gateway.manifest.name, created=gateway.bundle_written_at, manifest=gateway.manifest
    )
