"""What a client may ask of a server's models as such: a list, and to load or unload one."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from ..job import Call
from ..request_model import RequestModel
from ..responses import ModelCard, ModelList, ResponseModel
from .host import HostedModel, ModelHost


class ModelRequest(RequestModel):
    """Body of POST /models/load and /models/unload."""

    model: Annotated[str, Field(min_length=1)]


class ModelChanged(ResponseModel):
    """Response of POST /models/load and /models/unload."""

    success: Literal[True] = True


def list_models(host: ModelHost) -> ModelList:
    """GET /v1/models, /models."""
    return ModelList(
        data=[_card(model, name) for model in host.models for name in model.offer.names]
    )


def find_model(host: ModelHost, name: str) -> ModelCard:
    """GET /v1/models/{name}; raises a 404 for another model."""
    return _card(host.find(name), name)


async def load_model(host: ModelHost, asked: ModelRequest, call: Call) -> ModelChanged:
    """POST /models/load: answered when the model is there. Raises ApiError."""
    call.tenant.check_manages()
    (await host.take(host.find(asked.model).offer.names[0])).release()
    return ModelChanged()


async def unload_model(host: ModelHost, asked: ModelRequest, call: Call) -> ModelChanged:
    """POST /models/unload: answered when the model's memory is free. Raises ApiError."""
    call.tenant.check_manages()
    await host.unload(asked.model)
    return ModelChanged()


def _card(model: HostedModel, name: str) -> ModelCard:
    return ModelCard(
        id=name,
        created=model.created,
        root=model.offer.root,
        aliases=[other for other in model.offer.names if other != name],
        max_model_len=model.offer.max_context,
        status={"value": model.state.value},
    )
