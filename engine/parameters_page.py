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


_TAIL = """
## Draws against exact probabilities

`pytest -m slow -s tests/engine/test_sampling_frequencies.py` draws some 4000 tokens for each field
and for combinations of them, from random logits, and compares how often each token came with an
independent float64 implementation of the same rules (Pearson's chi-square; p below 1e-6 fails). One
run:

| fields | draws | chi-square | degrees of freedom | p |
|---|--:|--:|--:|--:|
| temperature | 4031 | 47.3 | 59 | 0.863 |
| dynamic temperature | 4045 | 26.2 | 20 | 0.159 |
| top_k | 4200 | 4.9 | 2 | 0.085 |
| top_n_sigma | 3989 | 6.2 | 8 | 0.626 |
| typical_p | 3775 | 11.2 | 5 | 0.047 |
| top_p | 4200 | 8.8 | 5 | 0.119 |
| min_p | 4200 | 1.4 | 3 | 0.697 |
| XTC | 3919 | 44.7 | 33 | 0.084 |
| mirostat | 4200 | 1.1 | 2 | 0.582 |
| repetition_penalty | 3983 | 40.0 | 29 | 0.084 |
| presence_penalty | 4032 | 11.0 | 25 | 0.993 |
| frequency_penalty | 4035 | 16.8 | 26 | 0.914 |
| DRY | 4004 | 25.0 | 25 | 0.461 |
| logit_bias | 4179 | 9.1 | 12 | 0.691 |
| allowed_token_ids | 4200 | 8.4 | 7 | 0.299 |
| bad_words | 3973 | 53.3 | 27 | 0.002 |
| min_tokens | 4200 | 35.3 | 25 | 0.083 |
| ignore_eos | 4200 | 24.9 | 26 | 0.526 |
| processors | 4158 | 39.4 | 44 | 0.670 |
| 18 combinations | 4000 each | | | 0.010 to 0.983 |

Among 37 chances one below 0.01 is no surprise; three more runs of `bad_words` gave 0.63, 0.43 and
0.33.
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
    return _HEAD + "\n".join(_row(name, param) for name, param in table().items()) + "\n" + _TAIL


if __name__ == "__main__":
    print(parameters_page(), end="")
