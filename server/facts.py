"""What a client may GET about the model that is served: vLLM's and llama.cpp's endpoints."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import orjson

import halfbyte

from ..engine.params import SamplingParams
from .responses import ResponseModel

if TYPE_CHECKING:
    from .service import OpenAIService

# Sampling fields whose names and defaults llama.cpp's clients may read; those of this server.
_SHOWN = (
    *("temperature", "top_k", "top_p", "min_p", "typical_p", "presence_penalty"),
    *("frequency_penalty", "dry_multiplier", "mirostat"),
)


@dataclass(frozen=True, slots=True)
class ServedModel:
    """What is known of a model's files; empty texts and 0 stand for the unknown.

    Attributes:
        file_format: ``gguf`` or ``safetensors``.
        architecture: such as ``llama``.
        quantization: the format that most bytes of the weights have.
        nbytes: of its files.
        backend: what computes.
        kernels: how, in words.
        kv_dtype: type of kept keys and values.
    """

    file_format: str = ""
    architecture: str = ""
    quantization: str = ""
    nbytes: int = 0
    backend: str = ""
    kernels: str = ""
    kv_dtype: str = ""


class TokenizerInfo(ResponseModel):
    """Response of GET /tokenizer_info; a token that the model has not is null."""

    bos_token: str | None
    eos_token: str | None
    pad_token: str | None
    unk_token: str | None
    chat_template: str | None


class ServerProps(ResponseModel):
    """Response of GET /props, as llama.cpp writes it."""

    default_generation_settings: dict[str, Any]
    total_slots: int
    model_alias: str
    chat_template: str
    bos_token: str
    eos_token: str
    modalities: dict[str, bool]
    build_info: str


class SlotList(ResponseModel):
    """Response of GET /slots, as llama.cpp writes it: a place in the batch each."""

    shape = list[dict[str, Any]]
    slots: list[dict[str, Any]]

    def to_json(self) -> bytes:
        """The list alone."""
        return orjson.dumps(self.slots)


def tokenizer_info(service: OpenAIService) -> TokenizerInfo:
    """GET /tokenizer_info."""
    tokenizer = service.engine.tokenizer
    names = ("bos_token", "eos_token", "pad_token", "unk_token")
    found = {name: tokenizer.named_tokens.get(name) for name in names}
    return TokenizerInfo(**found, chat_template=tokenizer.template_source(tools=False) or None)


def server_props(service: OpenAIService) -> ServerProps:
    """GET /props. The settings are what a request gets that asks for nothing."""
    engine, tokenizer = service.engine, service.engine.tokenizer
    defaults = {name: getattr(SamplingParams(), name) for name in _SHOWN}
    return ServerProps(
        default_generation_settings={"n_ctx": engine.max_context, "params": defaults},
        total_slots=engine.config.max_batch,
        model_alias=service.names[0],
        chat_template=tokenizer.template_source(tools=False),
        bos_token=tokenizer.named_tokens.get("bos_token", ""),
        eos_token=tokenizer.named_tokens.get("eos_token", ""),
        modalities={"vision": False, "audio": False},
        build_info=f"halfbyte {halfbyte.__version__}",
    )


def slot_list(service: OpenAIService) -> SlotList:
    """GET /slots. A place has no number of its own here: the first ones count as taken."""
    engine, running = service.engine, service.stats().running
    return SlotList(
        slots=[
            {"id": index, "n_ctx": engine.max_context, "is_processing": index < running}
            for index in range(engine.config.max_batch)
        ]
    )


def info_labels(service: OpenAIService) -> dict[str, dict[str, str]]:
    """What ``/metrics`` tells of a server that never changes: name of a metric -> its labels."""
    config, facts = service.engine.config, service.facts
    return {
        "build_info": {
            "version": halfbyte.__version__,
            "model_name": service.names[0],
            "backend": facts.backend,
            "kernels": facts.kernels,
        },
        # vLLM's name for the number of KV blocks, wherever they lie.
        "cache_config_info": {
            "block_size": str(config.block_size),
            "cache_dtype": facts.kv_dtype or config.kv_dtype,
            "enable_prefix_caching": str(config.prefix_cache),
            "num_gpu_blocks": str(service.stats().kv_blocks_total),
            "model_name": service.names[0],
            "engine": "0",
        },
    }
