"""Vocabularies and texts that the tokenizer tests share."""

from __future__ import annotations

import json
import random
from pathlib import Path

import tokenizers
from gguf import GGUFReader
from tokenizers import decoders, models, pre_tokenizers, trainers

from halfbyte.loaders.base import TokenizerSource

FIXTURES = Path(__file__).parents[2] / "fixtures"
SPM_FOLDER = FIXTURES / "fp16-llama-spm"
SPM_GGUF = FIXTURES / "gguf-q4_0-spm-llama"
SPM_IDS: dict = {"bos_id": 1, "eos_ids": (2,), "add_bos": True, "special_ids": frozenset({0, 1, 2})}

CHAT = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_TEXT = (
    "the The HELLO don't WE'LL it's naïve Größe 東京 日本語 한국어 Привет שלום नमस्ते 🚀 👨\u200d👩 "
    "e\u0301 ½ Ⅷ ١٢٣ 123 4567 3.14 foo_bar camelCase __init__ def {} () => != // # $ % ' \" \\ "
    "… “q” <html> </div> http://a.b/c?d=e \u200b \u00a0 \u3000 \x01 \x7f \ue000 \U0010fffd "
    "<s> </s> ß <0x41> ▁ ▁▁"
)
WORDS = _TEXT.split(" ")
SPACES = [" ", "  ", "   ", "\n", "\n\n", "\r\n", "\t", " \n", "\n ", "\u3000", "\u00a0 "]


def random_texts(count: int) -> list[str]:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")  # pytest shows it when a test fails
    draw = random.Random(seed)
    pool = [*WORDS, *SPACES, *SPACES, *SPECIALS, "<|im_", "end|>"]
    return ["".join(draw.choices(pool, k=draw.randrange(1, 25))) for _ in range(count)]


def train() -> tokenizers.Tokenizer:
    """A small byte-level BPE as its authors would ship it, with SmolLM2's splitting."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=list(SPECIALS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    corpus = [" ".join(WORDS), "im start end im_end the quick brown fox\n\n    return x"] * 20
    tokenizer.train_from_iterator(corpus, trainer)
    tokenizer.add_tokens([tokenizers.AddedToken("<think>", normalized=False)])
    return tokenizer


def as_gguf(trained: tokenizers.Tokenizer) -> TokenizerSource:
    """The same vocabulary as a GGUF file keeps it."""
    vocab = trained.get_vocab()
    tokens = tuple(sorted(vocab, key=lambda t: vocab[t]))
    merges = json.loads(trained.to_str())["model"]["merges"]
    types = tuple(3 if t in SPECIALS else 4 if t == "<think>" else 1 for t in tokens)
    return TokenizerSource(
        kind="gguf_bpe",
        tokens=tokens,
        token_types=types,
        merges=tuple(" ".join(m) for m in merges),
        pre="smollm",
        added_tokens={t: vocab[t] for t in (*SPECIALS, "<think>")},
        special_ids=frozenset(vocab[t] for t in SPECIALS),
        bos_id=vocab["<|im_start|>"],
        eos_ids=(vocab["<|im_end|>"],),
        chat_template=CHAT,
    )


def spm_as_gguf() -> TokenizerSource:
    """The sentencepiece fixture's fields, read by the reference GGUF package."""
    fields = GGUFReader(SPM_GGUF / "model.gguf").fields

    def read(name: str) -> tuple:
        return tuple(fields[f"tokenizer.ggml.{name}"].contents())

    return TokenizerSource(
        kind="gguf_spm",
        tokens=read("tokens"),
        scores=read("scores"),
        token_types=read("token_type"),
        **SPM_IDS,
    )


def folder_reference(scheme: str) -> tokenizers.Tokenizer:
    """What transformers makes of a folder with the model file: ``always`` is ``legacy``."""
    reference = tokenizers.Tokenizer.from_file(str(SPM_GGUF / "reference_tokenizer.json"))
    reference.normalizer = None
    reference.pre_tokenizer = pre_tokenizers.Metaspace("\u2581", scheme, split=False)
    return reference
