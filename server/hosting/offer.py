"""A model that requests may name, as it is known before it is loaded."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import halfbyte

from ..facts import ServedModel
from ..json_bytes import json_bytes
from ..service import OpenAIService

if TYPE_CHECKING:
    from ...engine.advise.start_plan import StartPlan


@dataclass(frozen=True, slots=True)
class Offer:
    """One model of a server.

    Attributes:
        names: that requests may use, the first is the one shown.
        root: the model's own name.
        max_context: most tokens of prompt plus answer.
        digest: hexadecimal digits that stand for model and options.
        facts: what is known of its files.
        batch: most requests running at once.
        block_size: tokens in a block of the KV cache.
        nbytes: that it holds in memory at most; 0 where nobody counts.
    """

    names: Sequence[str]
    root: str
    max_context: int
    digest: str
    facts: ServedModel
    batch: int
    block_size: int
    nbytes: int = 0


def planned_offer(plan: StartPlan, names: Sequence[str]) -> Offer:
    """The offer of a model that is known by its headers.

    Args:
        plan: what an engine would hold.
        names: that requests may use.
    """
    facts = served_model(plan)
    context, batch = plan.memory.max_context, plan.batch
    known = [halfbyte.__version__, plan.name, context, batch, facts.quantization, facts.nbytes]
    digest = hashlib.sha256(json_bytes(known)).hexdigest()
    size = plan.memory.block_size
    return Offer(tuple(names), plan.name, context, digest, facts, batch, size, plan.most)


def offer_of(service: OpenAIService) -> Offer:
    """The offer of a model that is there."""
    engine, config = service.engine, service.engine.config
    return Offer(
        service.names,
        engine.name,
        engine.max_context,
        service.digest,
        service.facts,
        config.max_batch,
        config.block_size,
    )


def served_model(plan: StartPlan) -> ServedModel:
    """What the headers tell of a model's files, and what computes."""
    return ServedModel(
        plan.file_format,
        plan.architecture,
        next(iter(plan.formats), ""),
        plan.file_bytes,
        plan.backend,
        plan.detail,
        plan.memory.kv_dtype,
    )
