"""Chat templates in the manner of the model families, reduced to what is hard to render."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

from tokenizers import Tokenizer, models

NAMES = {"bos_token": "<s>", "eos_token": "</s>"}


@functools.cache
def _transformers() -> Any:
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))
    return PreTrainedTokenizerFast(tokenizer_object=words)


def reference(
    source: str,
    messages: Sequence[Mapping[str, Any]],
    opening: bool = True,
    **context: Any,
) -> str | None:
    """The prompt as transformers renders it, None when it fails there."""
    try:
        return _transformers().apply_chat_template(
            [dict(message) for message in messages],
            chat_template=source,
            tokenize=False,
            add_generation_prompt=opening,
            **NAMES,
            **context,
        )
    except Exception:  # templates fail in every way that Python knows
        return None


# Indented blocks, a namespace-free loop, the default system message.
SMOLLM2 = """\
{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}\
{{ '<|im_start|>system\\nYou are helpful<|im_end|>\\n' }}{% endif %}\
{{'<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n'}}\
{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""

# Reassigned variables, dates, tojson(indent), trim, raise_exception, "in" on a message.
LLAMA3 = """\
{{- bos_token }}
{%- if not date_string is defined %}
    {%- set date_string = "26 Jul 2024" %}
{%- endif %}
{%- if not tools is defined %}
    {%- set tools = none %}
{%- endif %}
{#- a comment that swallows space -#}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{{- "Today Date: " + date_string + "\\n\\n" }}
{%- if tools is not none %}
    {%- for t in tools %}
        {{- t | tojson(indent=4) }}
        {{- "\\n\\n" }}
    {%- endfor %}
{%- endif %}
{{- system_message }}
{{- "<|eot_id|>" }}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' \
+ message['content'] | trim + '<|eot_id|>' }}
    {%- elif 'tool_calls' in message %}
        {%- if not message.tool_calls|length == 1 %}
            {{- raise_exception("This model only supports single tool-calls at once!") }}
        {%- endif %}
        {%- set call = message.tool_calls[0].function %}
        {{- '{"name": "' + call.name + '", "parameters": ' + (call.arguments | tojson) + "}" }}
    {%- else %}
        {%- if message.content is mapping or message.content is iterable %}
            {{- message.content | tojson }}
        {%- else %}
            {{- message.content }}
        {%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""

# Reversed iteration, namespace, string methods, nested loops over tool calls, enable_thinking.
QWEN3 = """\
{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- for tool in tools %}
        {{- "\\n" }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- "<|im_end|>\\n" }}
{%- endif %}
{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step_tool and message.role == "user" and not(message.content.startswith('<r>') \
and message.content.endswith('</r>')) %}
        {%- set ns.multi_step_tool = false %}
        {%- set ns.last_query_index = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.content is string %}
        {%- set content = message.content %}
    {%- else %}
        {%- set content = '' %}
    {%- endif %}
    {%- set reasoning = '' %}
    {%- if message.role == "assistant" and '</think>' in content %}
        {%- set reasoning = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1] %}
        {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
    {%- endif %}
    {%- if loop.index0 > ns.last_query_index and reasoning %}
        {{- '<think>' + reasoning.strip('\\n') + '</think>' }}
    {%- endif %}
    {{- '<|im_start|>' ~ message.role ~ '\\n' ~ content }}
    {%- for tool_call in message.tool_calls or [] %}
        {%- if tool_call.function %}
            {%- set tool_call = tool_call.function %}
        {%- endif %}
        {{- '\\n{"name": "' + tool_call.name + '", "arguments": ' }}
        {%- if tool_call.arguments is string %}
            {{- tool_call.arguments }}
        {%- else %}
            {{- tool_call.arguments | tojson }}
        {%- endif %}
        {{- '}' }}
    {%- endfor %}
    {{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}
"""

# Strings continued over lines, filters with arguments, items() with a loop condition, slices,
# comparison of messages, .get, alternation check.
MISTRAL = """\
{%- set default = "You are a model.\\
It is " + (date_string or "today") + ".\\
" %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message, loop_messages = messages[0]['content'], messages[1:] %}
{%- else %}
    {%- set system_message, loop_messages = default, messages %}
{%- endif %}
{{- bos_token + '[SYSTEM_PROMPT]' + system_message + '[/SYSTEM_PROMPT]' }}
{%- set user_messages = loop_messages | selectattr("role", "equalto", "user") | list %}
{%- set turns = [] %}
{%- for message in loop_messages %}
    {%- if message["role"] not in ["tool", "tool_results"] and not message.get("tool_calls") %}
        {%- if (message["role"] == "user") != (loop.index0 % 2 == 0) and not tools %}
            {{- raise_exception("conversation roles must alternate user/assistant") }}
        {%- endif %}
    {%- endif %}
{%- endfor %}
{%- for message in loop_messages %}
    {%- if message["role"] == "user" %}
        {%- if tools is not none and (message == user_messages[-1]) %}
            {{- "[AVAILABLE_TOOLS] [" }}
            {%- for tool in tools %}
                {%- for key, val in tool.function.items() if key != "return" %}
                    {{- '"' + key + '": ' + (val if val is string else val|tojson) }}
                    {%- if not loop.last %}{{- ", " }}{%- endif %}
                {%- endfor %}
            {%- endfor %}
            {{- "][/AVAILABLE_TOOLS]" }}
        {%- endif %}
        {{- '[INST] ' + message['content'] + '[/INST]' }}
    {%- elif message.tool_calls is defined %}
        {%- for call in message.tool_calls %}
            {%- set out = call.function|tojson %}
            {{- out[:-1] + ', "id": "' + call.id[-9:] + '"}' }}
        {%- endfor %}
    {%- else %}
        {{- ' ' + message['content']|string + eos_token }}
    {%- endif %}
{%- endfor %}
"""

# Spelled tokens from roles, loop.last, whitespace control by lines.
PHI3 = """\
{% for message in messages %}
  {%- if message['role'] in ['system', 'user', 'assistant'] %}
{{'<|' + message['role'] + '|>' + '\\n' + message['content'] + '<|end|>' + '\\n'}}
  {%- endif %}
{% endfor %}
{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% else %}{{ eos_token }}{% endif %}
"""

# Roles renamed, refusal of a role, undefined variables, the training marker.
GEMMA = """\
{{ bos_token }}{% if messages[0]['role'] == 'system' %}\
{{ raise_exception('System role not supported') }}{% endif %}\
{% for message in messages %}{% if (message['role'] == 'assistant') %}{% set role = 'model' %}\
{% else %}{% set role = message['role'] %}{% endif %}\
{% generation %}{{ '<start_of_turn>' + role + '\\n' + message['content'] | trim + \
'<end_of_turn>\\n' }}{%- endgeneration -%}{% endfor %}
{% if add_generation_prompt %}{{'<start_of_turn>model\\n'}}{{ undefined_thing }}{% endif %}"""

# Macros that call themselves, dict literals, items, break and continue, printing of values.
ODDITIES = """\
{%- macro kind(spec) -%}
{%- set names = {"string": "str", "number": "float"} -%}
{%- if names[spec.type] is defined -%}{{ names[spec.type] }}
{%- elif spec.type == "array" -%}list[{{ kind(spec['items']) }}]
{%- else -%}{{ spec.get("type", "any") | upper }}{%- endif -%}
{%- endmacro -%}
{%- for tool in tools or [] -%}
{%- for name, spec in tool.function.parameters.properties|items -%}
{{ name ~ ": " ~ kind(spec) }}{{ ", " if not loop.last }}
{%- endfor -%}
{%- endfor -%}
{%- for message in messages -%}
{%- if message.role == "tool" %}{% continue %}{% endif -%}
{%- if loop.index > 4 %}{% break %}{% endif -%}
{{ [none, true, 1.5, 'x', {'k': [1]}] }}{{ message.content }}{{ message.missing }}|
{{ message.role.title() }} {{ loop.previtem is defined }} {{ '%s' | format(loop.revindex) }}
{% endfor -%}
{{ messages | map(attribute='role') | join(', ') }} {{ ' a b '.strip().replace('a', 'c') }}
{%- filter upper %} done {{ strftime_now('%Y') | length }}{% endfilter %}
"""

# Only the first part of the content is read, and a plain text has no parts.
GUARD = """\
{% for m in messages %}{% if m['role']=='user' %}{% set r='User' %}{% else %}{% set r='Agent' %}\
{% endif %}{{ r + ': ' + m['content'][0]['text'] | trim + '\\n\\n' }}{% endfor %}"""

PARTS = """\
{% for m in messages %}<|{{ m.role }}|>{% for p in m.content %}{% if p.type == 'text' %}\
{{ p.text }}{% endif %}{% endfor %}<|end|>{% endfor %}"""

# A macro for the content, which may be either; the system message must be a text.
EITHER = """\
{%- macro show(content) -%}
{%- if content is string -%}{{ content }}
{%- else -%}{%- for p in content if p.type == 'text' -%}{{ p['text'] }}{%- endfor -%}{%- endif -%}
{%- endmacro -%}
{%- for m in messages -%}
{%- if m.role == 'system' -%}{{ '[' + m.content + ']' }}
{%- else -%}{{ '<' + m.role + '>' + show(m.content) }}{%- endif -%}
{%- endfor -%}"""

# Python's methods and operators.
METHODS = r"""\
{{ messages[0].content.strip().upper() }}|{{ 'a-b-c'.rsplit('-', 1) }}|\
{{ 'a b'.split(' ', 1)[1] }}|\
{{ 'abc'.find('c') }}|{{ 'aXbX'.count('X') }}|{{ 'x'.join(['a','b']) }}|{{ 'abc'.isalpha() }}|\
{{ 'a\nb'.splitlines() }}|{{ 'abc'.removeprefix('a').removesuffix('c') }}|{{ 'x'.zfill(3) }}|\
{{ 'abc'.startswith(('a','z')) }}|{{ 'Abc'.swapcase() }}|{{ 'a=b'.partition('=') }}|\
{{ 'a=b=c'.rpartition('=') }}|{{ {'a':1,'b':2}.values()|list }}|{{ {'a':1}.get('z','d') }}|\
{{ [1,2,3].index(2) }}|{{ 'a'.center(5) }}|{{ 'a'.ljust(3) }}|{{ 'ẞ'.casefold() }}|\
{{ messages[-1]['content'][::-1] }}|{{ messages[::2]|length }}|{{ 'ab' * 3 }}|\
{{ 1 < messages|length <= 3 }}|{{ 'z' not in messages[0].content }}|{{ dict(a=1) }}|\
{{ '%s-%05.2f-%d' % ('a', 2.5, 7) }}|{{ '{:>6}'.format('x') }}|{{ (messages|length) // 2 }}|\
{{ 7 % 3 }}|{{ 2 ** 3 }}|{{ [1,2] + [3] }}|{{ range(3)|list }}|{{ 1_000 + 0x1f }}|{{ 1e3 }}"""

TO_JSON = """\
{{ messages[0]|tojson }}|{{ {'b':'é<>&\\'','a':[1,2.0,1e-7,true,none]}|tojson(indent=2) }}|\
{{ {'b':1,'a':2}|tojson(sort_keys=true) }}|{{ {'a':1}|tojson(separators=(',',':')) }}|\
{{ {'k':'日本'}|tojson(ensure_ascii=true) }}"""

TYPES = """\
{%- for v in [none, true, 0, 1.0, 'a', '', [], [1], {}, {'k': 1}] -%}
{{ v is iterable }} {{ v is sequence }} {{ v is mapping }} {{ v is number }} {{ v is string }} \
{{ v is integer }} {{ v is float }} {{ v is boolean }} {{ v is callable }} {{ v is none }}
{% endfor -%}
{% if tools is iterable and tools | length > 0 %}tools{% else %}no tools{% endif %} \
{{ missing is defined }} {{ missing | length }} {% for x in missing %}{{ x }}{% endfor %} \
{{ 3 is divisibleby(3) }} {{ 'ab' is lower }}"""

TEMPLATES = {
    "methods": METHODS,
    "tojson": TO_JSON,
    "types": TYPES,
    "smollm2": SMOLLM2,
    "llama3": LLAMA3,
    "qwen3": QWEN3,
    "mistral": MISTRAL,
    "phi3": PHI3,
    "gemma": GEMMA,
    "oddities": ODDITIES,
}

TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": 'The "weather" <now> & é',
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string"},
                "days": {"type": "array", "items": {"type": "number"}},
                "exact": {"type": "boolean", "default": True},
            },
        },
    },
}
CALL = {
    "id": "call12345",
    "type": "function",
    "function": {"name": "weather", "arguments": {"city": "Zürich <x>", "days": [1, 2.5]}},
}

CONVERSATIONS = [
    [{"role": "user", "content": "hi"}],
    [{"role": "system", "content": " sys \n"}, {"role": "user", "content": " <b>'\"&\n\n"}],
    [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "<think>\nwhy\n</think>\n\nbecause"},
        {"role": "user", "content": "<r>x</r>"},
        {"role": "assistant", "content": "<think>\nso\n</think>\n\nlast"},
    ],
    [
        {"role": "user", "content": "weather?"},
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
        {"role": "tool", "content": '{"t": 3}', "tool_call_id": "call12345"},
        {"role": "assistant", "content": "3 °C 🌦"},
        {"role": "user", "content": ""},
    ],
    [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}],
    [{"role": "assistant", "content": None, "tool_calls": [CALL, CALL]}],
]
