"""Small random models of every family, made and saved by transformers."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import (
    Cohere2Config,
    Cohere2ForCausalLM,
    Ernie4_5Config,
    Ernie4_5ForCausalLM,
    Exaone4Config,
    Exaone4ForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GemmaConfig,
    GemmaForCausalLM,
    Glm4Config,
    Glm4ForCausalLM,
    GlmConfig,
    GlmForCausalLM,
    GptOssConfig,
    GptOssForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Ministral3Config,
    Ministral3ForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    Olmo2Config,
    Olmo2ForCausalLM,
    Olmo3Config,
    Olmo3ForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3_5ForCausalLM,
    Qwen3_5TextConfig,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
    Qwen3NextConfig,
    Qwen3NextForCausalLM,
    SeedOssConfig,
    SeedOssForCausalLM,
    SmolLM3Config,
    SmolLM3ForCausalLM,
)

VOCAB = 270  # 256 bytes, some rows that no token has, and an end
CLASSES: dict[str, tuple[Any, Any]] = {
    "llama": (LlamaConfig, LlamaForCausalLM),
    "mistral": (MistralConfig, MistralForCausalLM),
    "ministral3": (Ministral3Config, Ministral3ForCausalLM),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM),
    "mixtral": (MixtralConfig, MixtralForCausalLM),
    "qwen3_moe": (Qwen3MoeConfig, Qwen3MoeForCausalLM),
    "smollm3": (SmolLM3Config, SmolLM3ForCausalLM),
    "phi3": (Phi3Config, Phi3ForCausalLM),
    "olmo2": (Olmo2Config, Olmo2ForCausalLM),
    "olmo3": (Olmo3Config, Olmo3ForCausalLM),
    "granite": (GraniteConfig, GraniteForCausalLM),
    "glm": (GlmConfig, GlmForCausalLM),
    "glm4": (Glm4Config, Glm4ForCausalLM),
    "seed_oss": (SeedOssConfig, SeedOssForCausalLM),
    "exaone4": (Exaone4Config, Exaone4ForCausalLM),
    "cohere2": (Cohere2Config, Cohere2ForCausalLM),
    "ernie4_5": (Ernie4_5Config, Ernie4_5ForCausalLM),
    "gemma": (GemmaConfig, GemmaForCausalLM),
    "gemma2": (Gemma2Config, Gemma2ForCausalLM),
    "gemma3": (Gemma3TextConfig, Gemma3ForCausalLM),
    "gpt_oss": (GptOssConfig, GptOssForCausalLM),
    "qwen3_next": (Qwen3NextConfig, Qwen3NextForCausalLM),
    "qwen3_5": (Qwen3_5TextConfig, Qwen3_5ForCausalLM),
}
BASE: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 112,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": None,
    "eos_token_id": 256,
    "tie_word_embeddings": False,
}
FACTORS = {
    "short_factor": [1.0 + 0.1 * i for i in range(8)],
    "long_factor": [2.0 + 0.5 * i for i in range(8)],
}


def rope(kind: str, **more: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 10000.0, **more}}


PHI3: dict[str, Any] = {"pad_token_id": None}
GEMMA: dict[str, Any] = {
    "pad_token_id": None,
    "tie_word_embeddings": True,
    "query_pre_attn_scalar": 12,
}

# The norm of a head's output would lift what rounding leaves of an output near 0 a thousandfold by
# the usual epsilon; transformers' own two forms of the rule then differ by more than 1e-4.
DELTA: dict[str, Any] = {
    "rms_norm_eps": 1e-3,
    "head_dim": 32,
    "linear_key_head_dim": 12,
    "linear_value_head_dim": 20,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 6,
    "layer_types": ["linear_attention", "full_attention", "linear_attention"],
}

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama-no-gqa-tied": ("llama", {"num_key_value_heads": 4, "tie_word_embeddings": True}),
    "llama-biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama-wide-heads": ("llama", {"head_dim": 40, "num_key_value_heads": 1}),
    "llama-odd-heads": (
        "llama",
        {"hidden_size": 72, "num_attention_heads": 6, "head_dim": 20, "intermediate_size": 100},
    ),
    "llama-llama3": (
        "llama",
        rope(
            "llama3",
            factor=8.0,
            low_freq_factor=1.0,
            high_freq_factor=4.0,
            original_max_position_embeddings=32,
        ),
    ),
    "llama-linear": ("llama", rope("linear", factor=4.0)),
    "llama-dynamic": ("llama", {"max_position_embeddings": 64, **rope("dynamic", factor=4.0)}),
    "llama-yarn": ("llama", rope("yarn", factor=4.0, original_max_position_embeddings=64)),
    "llama-longrope": (
        "llama",
        {**rope("longrope", original_max_position_embeddings=64, **FACTORS)},
    ),
    "mistral-window": ("mistral", {"sliding_window": 16}),
    "mistral-no-window": ("mistral", {"sliding_window": None, "head_dim": 32}),
    # The scale of the queries changes at 32, 64 and 96.
    "ministral3": (
        "ministral3",
        {
            "head_dim": 32,
            **rope(
                "yarn",
                factor=8.0,
                original_max_position_embeddings=32,
                beta_fast=32.0,
                beta_slow=1.0,
                mscale=1.0,
                mscale_all_dim=1.0,
                llama_4_scaling_beta=0.8,
            ),
        },
    ),
    "qwen2": ("qwen2", {}),
    "qwen2-tied-window": (
        "qwen2",
        {
            "tie_word_embeddings": True,
            "use_sliding_window": True,
            "sliding_window": 16,
            "max_window_layers": 1,
        },
    ),
    "qwen3": ("qwen3", {"head_dim": 32}),
    "qwen3-bias-tied": (
        "qwen3",
        {"head_dim": 16, "attention_bias": True, "tie_word_embeddings": True},
    ),
    "mixtral": ("mixtral", {"num_local_experts": 4, "sliding_window": 16}),
    "qwen3_moe": (
        "qwen3_moe",
        {
            "head_dim": 16,
            "num_experts": 6,
            "num_experts_per_tok": 3,
            "moe_intermediate_size": 40,
            "norm_topk_prob": True,
            "mlp_only_layers": [1],
        },
    ),
    "qwen3_moe-shares": (
        "qwen3_moe",
        {
            "head_dim": 32,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 48,
            "decoder_sparse_step": 2,
            "num_hidden_layers": 4,
        },
    ),
    "smollm3": ("smollm3", {"no_rope_layers": [1, 0, 1], "pad_token_id": None}),
    "smollm3-window": (
        "smollm3",
        {
            "no_rope_layer_interval": 2,
            "use_sliding_window": True,
            "sliding_window": 16,
            "pad_token_id": None,
        },
    ),
    "phi3": ("phi3", PHI3),
    "phi3-window": ("phi3", {**PHI3, "sliding_window": 16}),
    "phi3-partial-longrope": (
        "phi3",
        {
            **PHI3,
            "hidden_size": 128,
            "original_max_position_embeddings": 64,
            **rope(
                "longrope",
                partial_rotary_factor=0.5,
                original_max_position_embeddings=64,
                **FACTORS,
            ),
        },
    ),
    "olmo2": ("olmo2", {"pad_token_id": None}),
    "olmo2-bias": (
        "olmo2",
        {"attention_bias": True, "num_key_value_heads": 1, "pad_token_id": None},
    ),
    "olmo3": (
        "olmo3",
        {
            "pad_token_id": None,
            "num_hidden_layers": 5,
            "sliding_window": 16,
            "rope_parameters": {
                "full_attention": {
                    "rope_type": "yarn",
                    "factor": 4.0,
                    "original_max_position_embeddings": 64,
                    "rope_theta": 5e5,
                },
                "sliding_attention": {"rope_type": "default", "rope_theta": 5e5},
            },
        },
    ),
    "granite": (
        "granite",
        {
            "embedding_multiplier": 3.0,
            "residual_multiplier": 0.22,
            "attention_multiplier": 0.4,
            "logits_scaling": 0.5,
            # So large that it matters what it is divided by.
            "rms_norm_eps": 1e-2,
        },
    ),
    "granite-biases": (
        "granite",
        {"attention_bias": True, "mlp_bias": True, "attention_multiplier": 0.3},
    ),
    "glm": ("glm", {"head_dim": 32, "pad_token_id": None}),
    "glm4": ("glm4", {"head_dim": 32, "pad_token_id": None}),
    "glm4-no-bias": (
        "glm4",
        {
            "head_dim": 16,
            "attention_bias": False,
            "partial_rotary_factor": 0.25,
            "pad_token_id": None,
        },
    ),
    "seed_oss": ("seed_oss", {"head_dim": 32, "pad_token_id": None}),
    "seed_oss-biases": (
        "seed_oss",
        {"head_dim": 16, "attention_out_bias": True, "mlp_bias": True, "pad_token_id": None},
    ),
    "exaone4": (
        "exaone4",
        {"num_hidden_layers": 5, "sliding_window": 16, "head_dim": 16, "pad_token_id": None},
    ),
    "exaone4-full": (
        "exaone4",
        {
            "sliding_window": None,
            "layer_types": ["full_attention"] * 3,
            "head_dim": 16,
            "pad_token_id": None,
        },
    ),
    "cohere2": (
        "cohere2",
        {
            "num_hidden_layers": 5,
            "sliding_window": 16,
            "logit_scale": 0.7,
            "pad_token_id": None,
            "tie_word_embeddings": True,
        },
    ),
    "cohere2-bias": (
        "cohere2",
        {
            "attention_bias": True,
            "sliding_window": 16,
            "layer_types": ["full_attention", "sliding_attention", "full_attention"],
            "logit_scale": 1.5,
            "pad_token_id": None,
            "tie_word_embeddings": True,
        },
    ),
    "ernie4_5": ("ernie4_5", {"head_dim": 16, "pad_token_id": None}),
    # It has no query_pre_attn_scalar: the key must be without effect.
    "gemma": ("gemma", {**GEMMA, "num_key_value_heads": 1, "head_dim": 32}),
    # The square root of 72 is no bfloat16.
    "gemma2": ("gemma2", {**GEMMA, "hidden_size": 72, "head_dim": 24, "sliding_window": 16}),
    # Low caps, so that they bend what comes out.
    "gemma2-caps": (
        "gemma2",
        {**GEMMA, "attn_logit_softcapping": 1.5, "final_logit_softcapping": 3.0, "head_dim": 16},
    ),
    "gemma3": (
        "gemma3",
        {
            **GEMMA,
            "num_hidden_layers": 4,
            "head_dim": 24,
            "sliding_window": 16,
            "sliding_window_pattern": 3,
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            },
        },
    ),
    "gpt_oss": (
        "gpt_oss",
        {
            "head_dim": 32,
            "sliding_window": 16,
            "num_local_experts": 6,
            "num_experts_per_tok": 3,
            **rope("yarn", factor=4.0, truncate=False, original_max_position_embeddings=64),
        },
    ),
    "gpt_oss-full": (
        "gpt_oss",
        {
            "head_dim": 16,
            "num_hidden_layers": 2,
            "layer_types": ["full_attention"] * 2,
            "attention_bias": False,
            "num_local_experts": 4,
            "num_experts_per_tok": 4,
            **rope("default"),
        },
    ),
    "qwen3_next": ("qwen3_next", {**DELTA, "num_experts": 0, "pad_token_id": None}),
    "qwen3_next-experts": (
        "qwen3_next",
        {
            **DELTA,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 40,
            "shared_expert_intermediate_size": 24,
            "mlp_only_layers": [1],
        },
    ),
    "qwen3_5": ("qwen3_5", DELTA),
    "qwen3_5-tied": (
        "qwen3_5",
        {
            **DELTA,
            "tie_word_embeddings": True,
            "linear_conv_kernel_dim": 3,
            "linear_num_key_heads": 4,
            "linear_num_value_heads": 4,
            "linear_key_head_dim": 24,
            "linear_value_head_dim": 32,
            "num_hidden_layers": 4,
            "layer_types": None,
            **rope("yarn", factor=4.0, original_max_position_embeddings=64),
        },
    ),
}
# Families that multiply by 1 + w.
OFFSET_NORMS = ("gemma", "qwen3_next", "qwen3_5")


def make_model(name: str, seed: int) -> Any:
    """A model in float32 whose activations and logits are of the order of 1."""
    family, options = CASES[name]
    config_class, model_class = CLASSES[family]
    config = config_class(**{**BASE, **options})
    config._attn_implementation = "eager"
    model = model_class(config).eval()
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for key, value in model.named_parameters():
            noise = torch.randn(value.shape, generator=g)
            if "norm" in key:
                offset = family.startswith(OFFSET_NORMS) and "linear_attn" not in key
                value.copy_((0 if offset else 1) + 0.2 * noise)
            elif value.dim() == 3 and "conv" in key:
                value.copy_(noise * value.shape[-1] ** -0.5)
            elif value.dim() == 1:
                value.copy_(0.3 * noise)
            elif "embed" in key:
                value.copy_(noise * (0.25 if config.tie_word_embeddings else 1.0))
            else:
                value.copy_(noise * value.shape[1] ** -0.5 * (2.0 if "lm_head" in key else 1.2))
    return model


def save_model(model: Any, folder: Path, shard: str = "1GB") -> Path:
    """A complete Hugging Face folder: weights, config and a byte tokenizer."""
    model.save_pretrained(folder, max_shard_size=shard)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({char: i for i, char in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|end|>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


class Truth:
    """transformers' answers for one text; length-dependent rotary state starts afresh."""

    def __init__(self, model: Any) -> None:
        self.model = model
        rotary = model.model.rotary_emb
        model.model.rotary_emb = type(rotary)(model.config)
        self._cache: Any = None

    def logits(self, ids: list[int]) -> Tensor:
        """float32 [T, V] of the whole text at once; the gated delta rule token by token.

        Its other form, by chunks, is further from the true numbers than the tests allow.
        """
        module = sys.modules[type(self.model).__module__]
        step_by_step = contextlib.ExitStack()
        if hasattr(module, "torch_recurrent_gated_delta_rule"):
            rule = module.torch_recurrent_gated_delta_rule
            name = "torch_chunk_gated_delta_rule"
            step_by_step.enter_context(mock.patch.object(module, name, rule))
        with torch.no_grad(), step_by_step:
            return self.model(torch.tensor([ids]), use_cache=False).logits[0]

    def advance(self, ids: list[int]) -> Tensor:
        """Append tokens to the text so far; float32 [V] after the last of them."""
        with torch.no_grad():
            out = self.model(torch.tensor([ids]), past_key_values=self._cache, use_cache=True)
        self._cache = out.past_key_values
        return out.logits[0, -1]
