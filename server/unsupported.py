"""Request fields that OpenAI and vLLM know and this server does not honour yet.

Such a field is accepted with a value that changes nothing and refused with any other: a
constraint that is silently dropped is the worst answer. Other fields are ignored, as vLLM does.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from halfbyte.errors import RequestError

_OFF = (None, False)
_NONE = (None,)
_EMPTY: tuple[Any, ...] = (None, [], {}, "")

# Field -> values without effect. Compared with their types, so that true is not 1.
COMMON: Mapping[str, tuple[Any, ...]] = {
    "guided_decoding_backend": _NONE,
    "guided_whitespace_pattern": _NONE,
    "structural_tag": _NONE,
    "json_schema": _NONE,
    "regex": _NONE,
    "ebnf": _NONE,
    "grammar": _EMPTY,
    "spaces_between_special_tokens": (None, True, False),
    "use_beam_search": _OFF,
    "length_penalty": (None, 1, 1.0),
    "logits_processors": _EMPTY,
    "prompt_embeds": _NONE,
    "mm_processor_kwargs": _EMPTY,
    "kv_transfer_params": _NONE,
    "vllm_xargs": _EMPTY,
    "lora_path": _NONE,
    # Names of other programs for things that would change the text.
    "tfs_z": _NONE,
    "top_a": _NONE,
    "repeat_penalty": (None, 1, 1.0),
    "repeat_last_n": _NONE,
    "num_predict": _NONE,
    "n_predict": _NONE,
    "max_new_tokens": _NONE,
    "num_ctx": _NONE,
    "stop_strings": _EMPTY,
    "do_sample": (None, True),
    "enable_thinking": _NONE,
}

COMPLETION: Mapping[str, tuple[Any, ...]] = {
    **COMMON,
    "parallel_tool_calls": (None, True),
    "max_completion_tokens": _NONE,
}

CHAT: Mapping[str, tuple[Any, ...]] = {
    **COMMON,
    "best_of": (None, 1),
    "functions": _EMPTY,
    "function_call": (None, "none", "auto"),
    "audio": _NONE,
    "modalities": (None, ["text"]),
    "prediction": _NONE,
    "web_search_options": _NONE,
    "verbosity": (None, "medium"),
    "store": _OFF,
    "service_tier": (None, "auto", "default"),
    "echo": _OFF,
    "chat_template": _NONE,
    "documents": _EMPTY,
}

EMBEDDING: Mapping[str, tuple[Any, ...]] = {
    "dimensions": _NONE,
    "input_type": _NONE,
    "embed_dtype": (None, "float32"),
    "messages": _NONE,
    "prompt": _NONE,
}

STRUCTURED: Mapping[str, tuple[Any, ...]] = {
    "structural_tag": _NONE,
    "whitespace_pattern": _NONE,
    "disable_fallback": _OFF,
    "disable_any_whitespace": _OFF,
    "disable_additional_properties": _OFF,
}

STREAM_OPTIONS: Mapping[str, tuple[Any, ...]] = {
    "continuous_usage_stats": _OFF,
    "include_obfuscation": _OFF,
}


def refuse_unsupported(
    fields: Mapping[str, Any], known: Mapping[str, tuple[Any, ...]], prefix: str = ""
) -> None:
    """Check the fields of a request that its model does not declare.

    Args:
        fields: name to JSON value.
        known: one of this module's tables.
        prefix: put before the name in messages, such as ``stream_options.``.

    Raises:
        RequestError: a known field has a value that would have to be honoured.
    """
    for name, value in fields.items():
        if name in known and not _among(value, known[name]):
            allowed = ", ".join(_show(v) for v in known[name] if v not in ([], {}, ""))
            raise RequestError(
                f"{prefix}{name} is {_show(value)}, which this server does not support",
                param=prefix + name,
                code="unsupported_value",
                hint=f"leave it out, or use {allowed}",
            )


def _among(value: Any, neutral: Iterable[Any]) -> bool:
    return any(type(value) is type(v) and value == v for v in neutral)


def _show(value: Any) -> str:
    """A value as JSON spells it, at most 60 characters."""
    words = {None: "null", True: "true", False: "false"}
    if value is None or isinstance(value, bool):
        return words[value]
    try:
        text = repr(value)
    except ValueError:  # an integer of thousands of digits
        text = "a huge number"
    return text if len(text) <= 60 else text[:57] + "..."
