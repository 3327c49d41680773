"""The gateway learns which model the workers serve, which a reload changes."""

import asyncio

from service.api.state import Gateway
from service.errors import QueueUnavailable
from service.log import get_logger
from service.metrics import MODEL
from service.served_model import ServedModel

_LOOK_EVERY_S = 1.0


async def follow_workers(gateway: Gateway) -> None:
    """Check requests against the workers' model as soon as all of them have the same one.

    Until then some take only jobs for the model before, and all take those.
    """
    _show(gateway)
    unreadable = ""
    while True:
        try:
            digest = await _common_digest(gateway)
            if digest not in (None, unreadable, gateway.model.served.digest):
                assert digest is not None
                described = await gateway.reloads.description(digest)
                if described is not None:
                    gateway.model.served = ServedModel.from_json(described)
                    _show(gateway)
                    get_logger(__name__).info("the workers' model", model=gateway.manifest.name)
        except QueueUnavailable:
            pass
        except ValueError as error:
            unreadable = str(digest)
            get_logger(__name__).error("the workers' model cannot be read", reason=str(error))
        await asyncio.sleep(_LOOK_EVERY_S)


async def _common_digest(gateway: Gateway) -> str | None:
    """Of the model that all serving workers have, if it is one."""
    workers = await gateway.serving_workers()
    digests = {info.get("digest") for info in workers.values()}
    return digests.pop() if len(digests) == 1 else None


def _show(gateway: Gateway) -> None:
    MODEL.info({"name": gateway.manifest.name, "licence": gateway.manifest.licence})
