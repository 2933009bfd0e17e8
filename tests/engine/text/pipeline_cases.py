"""Pipelines of the tokenizers library, chat templates and messages, drawn at random.

A pipeline is drawn over kinds of model, normalizer and pre-tokenizer, and every combination of
flags of added tokens, whether real files have it or not.
"""

from __future__ import annotations

import json
import random
from pathlib import Path

import transformers
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)

SPACE = "\u2581"
SPECIALS = ("<s>", "</s>", "<|user|>", "[INST]", "[/INST]", "<sep>")
OTHER = "<other>"  # a special token that no template writes
WORDS = [
    "hello",
    "Hello",
    "world",
    "a",
    "b",
    "s",
    "st",
    "user",
    "INST",
    "Ab",
    "é",
    "ﬁ",
    "東京",
    "½",
]
SIGNS = [
    "<",
    ">",
    "</",
    "<|",
    "|>",
    "[",
    "]",
    "/",
    "[/",
    "s>",
    "/s>",
    "<s",
    "</s",
    "|user",
    "INST]",
]
GAPS = ["", " ", "  ", "\n", "\t", " \n"]

# Templates as real ones are written: joined directly, spaced, trimmed, changed, cut, asked.
TEMPLATES = (
    "{% for m in messages %}<s>[INST] {{ m.content }} [/INST]{% endfor %}",
    "{% for m in messages %}<s>{{ m.content }}</s>{% endfor %}",
    "{% for m in messages %}<|user|>\n{{ m.content | trim }}</s>\n{% endfor %}",
    "{% for m in messages %}{{ m.content }}{{ '\n#' }}{% endfor %}<sep>",
    "{{ '<s>' }}{% for m in messages %}{{ '[INST]' + m.content + '[/INST] ' }}{% endfor %}",
    "{% for m in messages %}<s> {{ m.content | lower }} </s>{% endfor %}",
    "{% for m in messages %}a<sep>{{ m.content.split('</t>')[-1] }}b<s>{% endfor %}",
    "{% for m in messages %}{% if m.content.startswith('<') %}x{% endif %}<|user|>"
    "{{ m.content.strip() }} <sep>{% endfor %}",
)


def draw_pipeline(draw: random.Random, with_other: bool = False) -> Tokenizer:
    """A tokenizer of one of the kinds that the library has, perhaps with ``OTHER``."""
    kind = draw.choice(("byte-level", "metaspace", "llama2", "unigram", "wordpiece"))
    letters = sorted(
        {c for part in (*WORDS, *SIGNS, *SPECIALS, *GAPS) for c in part} | {SPACE, "x"}
    )
    if kind == "byte-level":
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        merges = [
            ("h", "e"),
            ("l", "l"),
            ("he", "ll"),
            ("<", "s"),
            ("<s", ">"),
            ("Ġ", "a"),
            ("<", "|"),
        ]
        vocab = _bpe_vocab(alphabet, merges)
        tokenizer = Tokenizer(models.BPE(vocab, merges, ignore_merges=draw.random() < 0.5))
        steps: list[pre_tokenizers.PreTokenizer] = [
            pre_tokenizers.ByteLevel(add_prefix_space=draw.random() < 0.5)
        ]
        if draw.random() < 0.3:
            steps.insert(0, pre_tokenizers.Digits(individual_digits=True))
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
        tokenizer.decoder = decoders.ByteLevel()
    elif kind in ("metaspace", "llama2"):
        merges = [
            ("h", "e"),
            ("l", "l"),
            ("he", "ll"),
            (SPACE, "a"),
            ("<", "s"),
            (SPACE, SPACE),
            ("<s", ">"),
        ]
        vocab = _bpe_vocab(["<unk>", *_bytes(), *letters], merges)
        tokenizer = Tokenizer(
            models.BPE(vocab, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
        )
        if kind == "metaspace":
            _metaspace(tokenizer, draw)
        else:
            tokenizer.normalizer = normalizers.Sequence(
                [normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)]
            )
            tokenizer.decoder = _spm_decoder()
    elif kind == "unigram":
        pieces = ["<unk>", *_bytes(), *letters, "he", "ll", "hell", f"{SPACE}a", "</s>", "user"]
        scored = [(p, -float(i % 7)) for i, p in enumerate(dict.fromkeys(pieces))]
        tokenizer = Tokenizer(models.Unigram(scored, unk_id=0, byte_fallback=True))
        _metaspace(tokenizer, draw)
    else:
        pieces = [
            "[UNK]",
            *letters,
            *[f"##{c}" for c in letters],
            "hello",
            "<s>",
            "[INST]",
            "##llo",
        ]
        vocab = {p: i for i, p in enumerate(dict.fromkeys(pieces))}
        tokenizer = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
        tokenizer.pre_tokenizer = draw.choice(
            (pre_tokenizers.BertPreTokenizer(), pre_tokenizers.WhitespaceSplit())
        )
        tokenizer.decoder = decoders.Metaspace()
    extra = _normalizer(draw)
    if extra is not None:
        own = [tokenizer.normalizer] if tokenizer.normalizer else []
        tokenizer.normalizer = normalizers.Sequence([extra, *own])
    added = [_added(draw, text, True) for text in SPECIALS]
    added += [_added(draw, text, False) for text in ("</t>", "ab")]
    # The last one, so that a pipeline without it has the same ids.
    added += [_added(draw, OTHER, True)] if with_other else []
    tokenizer.add_tokens(added)
    tokenizer.post_processor = processors.TemplateProcessing(single="$A", pair="$A $B")
    return tokenizer


def save_folder(tokenizer: Tokenizer, template: str, folder: Path) -> Path:
    """The files of a model folder that a tokenizer is read from."""
    folder.mkdir(exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": template}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def draw_text(draw: random.Random, whole: tuple[str, ...] = ()) -> str:
    """A message; with no special token in it but those of ``whole``, in any spelling."""
    spelled = [change(text) for text in whole for change in (str, str, str.upper, _wide)]
    pool = [*WORDS, *SIGNS, *SIGNS, *GAPS, "</t>", *spelled, *spelled]
    while True:
        text = "".join(draw.choices(pool, k=draw.randrange(1, 12)))
        if set(SPECIALS) & set(whole) or not any(
            s in _folded(text) for s in map(str.lower, SPECIALS)
        ):
            return text


def reference(folder: Path) -> transformers.PreTrainedTokenizerBase:
    """The same folder read by transformers."""
    return transformers.AutoTokenizer.from_pretrained(folder)


def _wide(text: str) -> str:
    """Full-width characters, which NFKC makes ordinary."""
    return "".join(chr(ord(c) + 0xFEE0) if "!" <= c <= "~" else c for c in text)


def _folded(text: str) -> str:
    """What any of the normalizers could make of a text."""
    return text.lower().replace("x", "").strip()


def _bpe_vocab(alphabet: list[str], merges: list[tuple[str, str]]) -> dict[str, int]:
    return {t: i for i, t in enumerate(dict.fromkeys([*alphabet, *map("".join, merges)]))}


def _bytes() -> list[str]:
    return [f"<0x{b:02X}>" for b in range(256)]


def _spm_decoder() -> decoders.Decoder:
    steps = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    return decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)])


def _metaspace(tokenizer: Tokenizer, draw: random.Random) -> None:
    scheme = draw.choice(("always", "first", "never"))
    split = draw.random() < 0.5
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(SPACE, scheme, split)
    tokenizer.decoder = decoders.Metaspace(SPACE, scheme, split)


def _normalizer(draw: random.Random) -> normalizers.Normalizer | None:
    return draw.choice(
        (
            None,
            None,
            normalizers.NFC(),
            normalizers.NFKC(),
            normalizers.Lowercase(),
            normalizers.Strip(draw.random() < 0.5, draw.random() < 0.5),
            normalizers.Replace(Regex(" +"), " "),
            normalizers.Replace("x", ""),
            normalizers.BertNormalizer(lowercase=draw.random() < 0.5),
        )
    )


def _added(draw: random.Random, text: str, special: bool) -> AddedToken:
    flags = {
        name: draw.random() < chance
        for name, chance in (
            ("single_word", 0.3),
            ("lstrip", 0.3),
            ("rstrip", 0.3),
            ("normalized", 0.5),
        )
    }
    return AddedToken(text, special=special, **flags)
