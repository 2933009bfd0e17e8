"""Makes ``docs/parameters.md`` from the table of sampling fields.

python -m halfbyte.engine.parameters_page > docs/parameters.md
"""

from __future__ import annotations

from .param_table import Param
from .params import defaults, table

_HEAD = """\
# Sampling parameters

What a request may ask of the draw of its tokens, in the library (`SamplingParams`, or keywords of
`generate` and its kin), on the command line, in a chat (`/set NAME VALUE`) and over HTTP. This page
is made from the table in `engine/params.py`.

The order in which they apply to the logits of a row:

1. what may not be drawn at all is masked: the model's suppressed tokens, `allowed_token_ids`,
   `bad_words`, `grammar`, and the ends of a text that `min_tokens` holds off;
2. processors: `logit_bias`, the repetition, presence and frequency penalties, DRY, and the
   library's own `processors`, none of which brings back what is masked;
3. `temperature`, moved by `dynatemp_range`;
4. filters, each on what the one before it left: `top_n_sigma`, `top_k`, `typical_p`, `top_p`,
   `min_p`, XTC; or `mirostat` in place of all of them. What ties with the last token that a filter
   keeps is kept with it;
5. the draw: Gumbel-max with noise from a counter keyed by seed, position and token, so that a text
   can be repeated in any batch.

Temperature, top-k, top-p, min-p and the three penalties are drawn by a kernel where the device
has one. A row that asks for anything else is drawn on the host, from the same logits, with the
same random numbers.

A field outside its range is refused with its name, the value and what was expected, and so are
fields that contradict each other. "CLI" is the option, and its default where that is not the
library's: the command line begins with what users of llama.cpp are used to.

| field | default | values | CLI | HTTP | meaning |
|---|---|---|---|---|---|
"""


def _row(name: str, param: Param) -> str:
    flag = f"`{param.flags[0]}`" if param.flags else ""
    if param.cli_default is not None:
        flag += f" {param.cli_default:g}"
    default = defaults()[name]
    shown = "" if default in ((), None) or default == {} else f"`{default!r}`"
    if isinstance(default, tuple) and default:
        shown = ", ".join(f"`{item!r}`" for item in default)
    meaning = param.meaning.replace("``", "`").replace("|", "\\|")
    http = "yes" if param.http else ""
    return f"| `{name}` | {shown or 'none'} | {param.range} | {flag} | {http} | {meaning} |"


def parameters_page() -> str:
    """The page's text."""
    return _HEAD + "\n".join(_row(name, param) for name, param in table().items()) + "\n"


if __name__ == "__main__":
    print(parameters_page(), end="")
