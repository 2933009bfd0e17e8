"""What every maker shares: seeded base models, the tokenizer, and the expected answers."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

FIXTURES = Path(__file__).parents[1] / "fixtures"
VOCAB = 300  # rows of the embedding; the tokenizer has fewer tokens
STEPS = 16  # greedy tokens per prompt
PROMPTS = (
    "def f(a, b):\n    return 12 + b",
    "naïve 東 and then the fox returns again",
)
TEXT = (
    "The quick brown fox jumps over the lazy dog and then the story returns again and again.",
    "def add(a, b): return a + b  # the numbers 1 2 3 5 8 13",
)
TOLERANCES = {
    "W": "fp32 compute from the exact codes: max |logit diff| <= 2e-3; fp16/bf16 compute: "
    "mean |diff| <= 3% of logits_std, greedy equal while greedy_margin > 0.5",
    "A": "the reference's own rule in fp32: mean |logit diff| <= 2% of logits_std, greedy equal "
    "while greedy_margin > 0.25; fp16/bf16 activations or absmax/127 scales: mean <= 8%, greedy "
    "equal while greedy_margin > 1.0",
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
# family -> (config class, model class, what differs from BASE)
FAMILIES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", "LlamaForCausalLM", {"rope_parameters": LLAMA3}),
    "mistral": ("MistralConfig", "MistralForCausalLM", {"sliding_window": 16}),
    "qwen2": ("Qwen2Config", "Qwen2ForCausalLM", {}),
    "qwen3": ("Qwen3Config", "Qwen3ForCausalLM", {"head_dim": 32}),
    "phi3": ("Phi3Config", "Phi3ForCausalLM", {"sliding_window": None}),
    "gemma2": (
        "Gemma2Config",
        "Gemma2ForCausalLM",
        {"head_dim": 32, "sliding_window": 16, "query_pre_attn_scalar": 24},
    ),
    "gemma3": (
        "Gemma3TextConfig",
        "Gemma3ForCausalLM",
        {
            "head_dim": 32,
            "sliding_window": 16,
            "query_pre_attn_scalar": 24,
            "layer_types": ["sliding_attention", "full_attention"],
        },
    ),
}
BASE: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "tie_word_embeddings": True,
}
WIDE = {"hidden_size": 128, "intermediate_size": 192}  # where rows of 64 have too few groups
UNTIED = {"tie_word_embeddings": False}


def tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE with a few merges and three special tokens."""
    built = Tokenizer(models.BPE())
    built.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    built.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=290,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        special_tokens=["<|begin|>", "<|end|>", "<|pad|>"],
        show_progress=False,
    )
    built.train_from_iterator(TEXT, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=built,
        bos_token="<|begin|>",
        eos_token="<|end|>",
        pad_token="<|pad|>",
    )


def make_config(family: str, **changes: Any) -> Any:
    """The configuration of a small model of that family."""
    name, _, options = FAMILIES[family]
    ids = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
    return getattr(transformers, name)(**{**BASE, **ids, **options, **changes})


def build(config: Any) -> Any:
    """A float32 model with eager attention and weights not yet set."""
    config._attn_implementation = "eager"
    name = {FAMILIES[f][0]: FAMILIES[f][1] for f in FAMILIES}[type(config).__name__]
    config.architectures = [name]
    return getattr(transformers, name)(config).float().eval()


def base_model(family: str, seed: int, dtype: torch.dtype = torch.float16, **changes: Any) -> Any:
    """A seeded model whose activations and logits are of the order of 1, in ``dtype``."""
    config = make_config(family, **changes)
    config.dtype = dtype
    model = build(config)
    gemma = family.startswith("gemma")
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for key, value in model.named_parameters():
            noise = torch.randn(value.shape, generator=g)
            if "norm" in key and gemma:  # 1 is added to what is stored
                heads = "q_norm" in key or "k_norm" in key  # more makes attention chaotic
                value.copy_(0.2 * noise + (0 if heads else 2 if key == "model.norm.weight" else 1))
            elif "norm" in key:
                value.copy_(1 + 0.2 * noise)
            elif "embed" in key and gemma:  # little, or the last token only repeats itself
                value.copy_(noise * 0.06)
            elif value.dim() == 1:
                value.copy_(0.3 * noise)
            elif "embed" in key:
                value.copy_(noise * (0.25 if config.tie_word_embeddings else 1.0))
            else:
                value.copy_(noise * value.shape[1] ** -0.5 * (2.5 if "lm_head" in key else 1.2))
    return model.to(dtype)


def fresh(name: str) -> Path:
    """An empty folder for a fixture."""
    folder = FIXTURES / name
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.iterdir():
        old.unlink()
    return folder


def save_plain(model: Any, folder: Path) -> None:
    """The folder that a quantizer starts from."""
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)


def save_packed(
    folder: Path, config: Any, tensors: dict[str, Tensor], quantization: dict[str, Any] | None
) -> None:
    """A folder from tensors that a tool's own packing functions gave."""
    stored = config.to_dict()
    if quantization is not None:
        stored["quantization_config"] = quantization
    stored["architectures"] = config.architectures
    (folder / "config.json").write_text(json.dumps(stored, indent=1, sort_keys=True, default=str))
    if config.tie_word_embeddings:
        tensors = {name: t for name, t in tensors.items() if name != "lm_head.weight"}
    rows = {name: t.contiguous().clone() for name, t in tensors.items()}
    save_file(rows, folder / "model.safetensors", metadata={"format": "pt"})
    tokenizer().save_pretrained(folder)


def linears(model: nn.Module) -> dict[str, nn.Linear]:
    """Name -> module of everything that a weight-only tool quantizes by default."""
    named = {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear)}
    return {n: m for n, m in named.items() if n != "lm_head"}


def twin(config: Any, weights: dict[str, Tensor]) -> Any:
    """A dense float32 model of these weights.

    Args:
        config: as the checkpoint has it.
        weights: parameter name -> tensor of any float dtype, already dequantized.
    """
    model = build(config)
    missing, unexpected = model.load_state_dict(
        {k: v.detach().float() for k, v in weights.items()}, strict=False
    )
    tied = {"lm_head.weight"} if config.tie_word_embeddings else set()
    assert set(missing) <= tied and not unexpected, (missing, unexpected)
    model.tie_weights()
    return model


@torch.no_grad()
def write_expected(
    folder: Path,
    model: Any,
    *,
    how: str,
    tolerance: str,
    tools: list[str],
    encode: Callable[[str], list[int]] | None = None,
    **options: Any,
) -> None:
    """``expected.safetensors`` and ``expected.json`` from a float32 model.

    Greedy decoding recomputes the whole text at every step, without a cache, and does not stop
    at the end of text.
    """
    encode = encode or tokenizer().encode
    if (folder / "config.json").exists():  # tools save it again, some with other splits
        tokenizer().save_pretrained(folder)
    out: dict[str, Tensor] = {}
    margins: list[float] = []
    for i, prompt in enumerate(PROMPTS):
        ids = torch.tensor(encode(prompt))
        out[f"input_ids_{i}"] = ids
        out[f"logits_{i}"] = model(ids[None], use_cache=False).logits[0].float().contiguous()
        chosen, margin, text = [], [], ids.tolist()
        for _ in range(STEPS):
            best = model(torch.tensor([text]), use_cache=False).logits[0, -1].float().topk(2)
            chosen.append(int(best.indices[0]))
            margin.append(float(best.values[0] - best.values[1]))
            text.append(chosen[-1])
        out[f"greedy_{i}"] = torch.tensor(chosen)
        out[f"greedy_margin_{i}"] = torch.tensor(margin)
        margins += margin
    save_file(out, folder / "expected.safetensors")
    std = torch.cat([out[f"logits_{i}"] for i in range(len(PROMPTS))]).std()
    assert all(bool(t.isfinite().all()) for t in out.values()) and 1 < std < 10, std
    notes = {
        "prompts": PROMPTS,
        "n_greedy": STEPS,
        "how": how,
        "tolerance_class": tolerance,
        "tolerance": TOLERANCES[tolerance],
        "logits_std": round(float(std), 4),
        "smallest_greedy_margin": round(min(margins), 5),
        "tool": {t: version(t) for t in [*tools, "torch", "transformers"]},
        "options": options,
    }
    text = json.dumps(notes, indent=1, ensure_ascii=False, default=str)
    (folder / "expected.json").write_text(text + "\n")
    size = sum(f.stat().st_size for f in folder.iterdir()) // 1024
    print(f"{folder.name}: std {std:.2f}, least margin {min(margins):.4f}, {size} KiB")


def distance(folder: Path, model: Any, base: Any) -> float:
    """How far quantization moved the logits, as a share of their deviation (rms)."""
    ids = torch.tensor(tokenizer().encode(PROMPTS[-1]))[None]
    with torch.no_grad():
        a, b = model(ids).logits, base.float()(ids).logits
    return float((a - b).pow(2).mean().sqrt() / b.std())
