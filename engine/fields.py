"""Keyword arguments as types, so that editors complete them and type checkers refuse others.

Each mirrors a dataclass, which has the meaning, defaults and checks; a test compares them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, TypedDict

from halfbyte.choices import ActivationsName, BackendName, DeviceName, DType, KVDtype

from ..loaders.model.schemes import SchemeName

if TYPE_CHECKING:
    from .grammar.base import GrammarSpec
    from .grammar.limit import ReasoningLimit
    from .params import Processor


class EngineOptions(TypedDict, total=False):
    """Keywords of ``Engine``: the fields of :class:`~halfbyte.engine.config.EngineConfig`."""

    device: DeviceName
    dtype: DType
    kv_dtype: KVDtype
    backend: BackendName
    activations: ActivationsName
    max_context: int
    max_batch: int
    max_batch_tokens: int
    max_step_ms: int | None
    block_size: int
    kv_tokens: int
    prefix_cache: bool
    snapshot_mib: int | None
    exact: bool
    threads: int
    overlap: bool | None
    warmup: bool
    packed_cache: bool
    quantize: SchemeName | None
    seed: int | None


class SamplingFields(TypedDict, total=False):
    """Keywords of ``generate`` and its kin: the fields of ``SamplingParams``."""

    temperature: float
    dynatemp_range: float
    dynatemp_exponent: float
    top_k: int
    top_n_sigma: float
    typical_p: float
    top_p: float
    min_p: float
    xtc_probability: float
    xtc_threshold: float
    mirostat: int
    mirostat_tau: float
    mirostat_eta: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    dry_multiplier: float
    dry_base: float
    dry_allowed_length: int
    dry_penalty_last_n: int
    dry_sequence_breakers: Sequence[str]
    logit_bias: Mapping[int, float]
    allowed_token_ids: Sequence[int] | None
    bad_words: Sequence[str]
    grammar: GrammarSpec | None
    reasoning_limit: ReasoningLimit | None
    processors: Sequence[Processor]
    seed: int | None
    n: int
    best_of: int | None
    max_tokens: int | None
    min_tokens: int
    stop: Sequence[str]
    stop_token_ids: Sequence[int]
    shown_special_ids: Sequence[int]
    skip_special_tokens: bool
    include_stop_str_in_output: bool
    ignore_eos: bool
    logprobs: int | None
    prompt_logprobs: int | None
    logprobs_mode: str
