"""The model card of a written folder: what was done, in figures that were counted or given."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from halfbyte.errors import CheckpointError

from ...loaders.base import Checkpoint
from ...loaders.files.fields import Fields
from ...loaders.files.folder_files import ModelFolder
from ...loaders.gguf.parts import GGUFParts
from .folder_format import FolderModules, said

_FRONT = re.compile(r"---\r?\n(.*?)\r?\n---\r?\n", re.DOTALL)
_LICENCE = re.compile(
    r"^(license|license_name|license_link):[ \t]*([^\r\n]+?)[ \t]*$", re.MULTILINE
)
_PLAIN = re.compile(r"[\w.:/@+-]+( [\w.:/@+-]+)*")
_MAX_CARD_BYTES = 1 << 22


@dataclass(frozen=True, slots=True)
class CardFacts:
    """What the card says and the writer does not know.

    Attributes:
        base: name of the model that was quantized; "" = that of the source.
        method: such as ``GPTQ``.
        settings: of the method, by name.
        calibration: the text that the method saw.
        cost: what was measured, by name, such as ``KL`` -> ``0.137 nats a token``.
    """

    base: str = ""
    method: str = ""
    settings: Mapping[str, object] = field(default_factory=dict)
    calibration: str = ""
    cost: Mapping[str, object] = field(default_factory=dict)


def model_card(
    model: Checkpoint,
    method: str,
    facts: CardFacts,
    bits: float,
    total: int,
    modules: FolderModules,
    notes: Sequence[str],
) -> str:
    """README.md of a folder.

    Args:
        model: the source.
        method: ``quant_method`` of the folder.
        facts: what else is known.
        bits: of a quantized weight, scales and all.
        total: bytes of all tensors.
        modules: what is quantized, and how.
        notes: what a user should know.
    """
    base = facts.base or model.config.name or model.path.name
    front = {"library_name": "transformers", **licence_of(model), "tags": [method, "halfbyte"]}
    lines = ["---", *(_entry(key, value) for key, value in front.items()), "---", ""]
    lines += [f"# {base}, quantized", "", f"Made from `{base}` with halfbyte.", ""]
    rows: list[tuple[str, object]] = [("format", method)]
    if facts.method:
        rows.append(("method", facts.method))
    rows += list(facts.settings.items())
    if facts.calibration:
        rows.append(("calibration", facts.calibration))
    counted = Counter(said(form) for form in modules.quantized.values())
    rows += [("quantized", f"{count} matrices: {text}") for text, count in counted.most_common()]
    if modules.dense:
        rows.append(("dense", f"{len(modules.dense)} matrices, and embedding and norms"))
    rows.append(
        ("bits of a quantized weight", f"{bits:.3f}, with scales and all that goes with it")
    )
    rows.append(("size of all tensors", f"{total / 1e6:.1f} MB"))
    lines += _table(("", ""), rows)
    if facts.cost:
        lines += ["", "## Measured against the original", ""]
        lines += _table(("", ""), list(facts.cost.items()))
    lines += ["", "## Use", "", "```python", "from halfbyte import Engine", ""]
    lines += ['engine = Engine("PATH OF THIS FOLDER")', "```", ""]
    lines += ["```python", "from transformers import AutoModelForCausalLM, AutoTokenizer", ""]
    lines += [
        'tokenizer = AutoTokenizer.from_pretrained("PATH OF THIS FOLDER")',
        'model = AutoModelForCausalLM.from_pretrained("PATH OF THIS FOLDER")',
        "```",
        "",
        f"transformers wants {_NEEDS[method]} for that. With vLLM, where it has kernels for these "
        "codes: `vllm serve PATH`.",
    ]
    if notes:
        lines += ["", "## Notes", "", *(f"- {note}" for note in notes)]
    return "\n".join(lines) + "\n"


_NEEDS = {
    "gptq": "`gptqmodel` and `optimum`",
    "awq": "`gptqmodel`",
    "compressed-tensors": "`compressed-tensors`",
    "bitsandbytes": "`bitsandbytes`",
}


def licence_of(model: Checkpoint) -> dict[str, str]:
    """``license`` and what belongs to it, as the source's card or GGUF file has it; or nothing."""
    if model.kind == "gguf":
        return _licence_of_gguf(model)
    try:
        data = ModelFolder(model.path).read_bytes("README.md", _MAX_CARD_BYTES)
    except CheckpointError:  # a card that cannot be read is none
        return {}
    front = _FRONT.match((data or b"").decode("utf-8", "replace"))
    found = _LICENCE.findall(front[1]) if front else []
    values = {key: value.strip("\"'") for key, value in found}
    return {key: value for key, value in values.items() if _PLAIN.fullmatch(value)}


def _licence_of_gguf(model: Checkpoint) -> dict[str, str]:
    parts = GGUFParts(model.path)
    try:
        fields = Fields(str(model.path), parts.metadata)
        keys = ("license", "license.name", "license.link")
        values = {key.replace(".", "_"): fields.values.get(f"general.{key}", "") for key in keys}
    finally:
        parts.close()
    return {
        key: value
        for key, value in values.items()
        if isinstance(value, str) and _PLAIN.fullmatch(value)
    }


def _entry(key: str, value: str | Sequence[str]) -> str:
    if isinstance(value, str):
        return f"{key}: {value}"
    return "\n".join((f"{key}:", *(f"- {item}" for item in value)))


def _table(head: tuple[str, str], rows: Sequence[tuple[str, object]]) -> list[str]:
    cells = [(name, str(value).replace("|", "\\|").replace("\n", " ")) for name, value in rows]
    return [f"| {a} | {b} |" for a, b in (head, ("---", "---"), *cells)]
