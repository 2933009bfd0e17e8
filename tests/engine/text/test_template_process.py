"""Chat templates are programs by strangers: whatever they hold, they end soon and alone."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from template_cases import TOOL

from halfbyte.engine.text.chat_template import MAX_TEMPLATE_CHARS, ChatTemplate
from halfbyte.engine.text.template_process import MAX_OUTPUT_CHARS, TemplateProcess, compile_seconds
from halfbyte.errors import TemplateError, TemplateProcessError

HI = [{"role": "user", "content": "hi"}]


# Chains that the parser, the compiler or Python itself follows into the depth.
DEEP = {
    "minus": "{{ " + "-" * 30_000 + "1 }}",
    "not": "{{ " + "not " * 30_000 + "1 }}",
    "plus": "{{ 1" + "+1" * 20_000 + " }}",
    "filter": "{{ x" + "|upper" * 20_000 + " }}",
    "attribute": "{{ messages" + ".b" * 20_000 + " }}",
    "paren": "{{ " + "(" * 30_000 + "1" + ")" * 30_000 + " }}",
    "list": "{{ " + "[" * 150 + "]" * 150 + " }}",
    "if": "{% if 1 %}" * 10_000 + "{% endif %}" * 10_000,
    "for": "{% for a in b %}" * 60 + "{% endfor %}" * 60,
    "fold": "{{ 10 ** (10 ** 9) }}",  # constants are worked out while it is compiled
    "repeat": "{{ 'a' * 9999999999 }}",
}
# Ways out of the sandbox; each fails before it costs anything.
WALKS = {
    "dunder": "{{ messages.__class__.__mro__ }}",
    "dunder-filter": "{{ (messages | attr('__class__')).__mro__ }}",
    "dunder-format": "{{ '{0.__class__.__mro__}'.format(messages) }}",
    "function-globals": "{{ raise_exception.__globals__.os }}",
    "cycler-globals": "{{ cycler.__init__.__globals__.os }}",
    "include": "{% include '/etc/passwd' %}",
    "import": "{% import 'os' as os %}{{ os.environ }}",
    "mro": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "getitem": "{{ ''['__class__']['__base__'] }}{{ x.y }}",
    "attr-chain": "{{ (''|attr('__class__')|attr('__mro__')|first).x.y }}",
    "map-attribute": "{{ ['']|map(attribute='__class__')|map(attribute='x')|list }}",
    "map-attr": "{{ ['']|map('attr', '__class__')|map('upper')|first|attr('x')|attr('y') }}",
    "sum-attribute": "{{ ['']|sum('__class__.__mro__') }}",
    "groupby": "{{ ['']|groupby('__class__.__mro__') }}",
    "joiner": "{{ joiner.__init__.__globals__ }}",
    "namespace-class": "{{ namespace.__init__.__globals__ }}",
    "namespace-set": "{% set n = namespace() %}{% set n.__class__ = 1 %}",
    "namespace-dunder": "{{ namespace(__html__=1) }}",
    "set-class": "{% set cycler.x = 1 %}",
    "lipsum-globals": "{{ lipsum.__globals__['os'].popen('id') }}",
    "range-self": "{{ range.__self__.x }}",
    "dict-class": "{{ dict.__class__.__mro__ }}",
    "self-context": "{{ self._TemplateReference__context.eval_ctx }}",
    "loop-frame": "{% for a in [1] %}{{ loop.__init__.__globals__ }}{% endfor %}",
    "caller": "{% macro m() %}{{ caller.__init__.__globals__ }}{% endmacro %}"
    "{% call m() %}{% endcall %}",
    "macro-func": "{% macro m() %}{% endmacro %}{{ m._func.__globals__ }}",
    "generator-frame": "{{ ([1]|map('string')).gi_frame.f_globals }}",
    "generator-code": "{{ ([1]|map('string')).gi_code.co_code }}",
    "format-map": "{{ '{x.__class__.__mro__}'.format_map({'x': 1}) }}",
    "format-item": "{{ '{0[__class__].x}'.format(1) }}",
    "format-attr": "{{ (''|attr('format'))('{0.__class__.x}') }}{{ x.y }}",
    "format-spec": "{{ '{0:{1.__class__.__mro__}}'.format(1, 2) }}",
    "format-markup": "{{ ('{0.__class__.__mro__}'|safe).format(1) }}",
    "format-alias": "{% set f = '{0.__class__.__mro__}'.format %}{{ f(1) }}",
    "format-map-filter": "{{ ['{0.__class__.x}'.format]|map('string')|first|attr('y')|attr('z') }}",
    "extends": "{% extends '/etc/passwd' %}",
    "from-import": "{% from 'os' import environ %}{{ environ }}",
    "include-names": "{% include ['/etc/passwd', '/etc/hostname'] %}",
    "exec-codec": "{{ 'aGk='.encode().decode('base64') }}",
    "lazy-codec": "{{ 'a'.encode('cp1250') }}",
    "environment": "{{ environment.loader.x }}",
    "context": "{{ context.environment }}",
    "debug": "{{ debug() }}",
    "json-cycle": "{% set _ = messages.append(messages) %}{{ messages | tojson }}",
    "surrogate": "{{ '\\ud800' }}",
}
# Ways to take time and memory, and templates that are none.
ATTACKS = {
    "lipsum": "{{ lipsum(n=100000000) }}",
    "range": "{% for i in range(1000000000) %}x{% endfor %}",
    "loops": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "macro": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "macro-tree": "{% macro f(n) %}{% if n %}{{ f(n-1) }}{{ f(n-1) }}{% endif %}{% endmacro %}"
    "{{ f(60) }}",
    "recursive-loop": "{% for i in [1] recursive %}{{ loop([1]) }}{% endfor %}",
    "multiply": "{{ 'a' * 1000000000 }}",
    "double": "{% set n = namespace(x='ab') %}{% for i in range(60) %}"
    "{% set n.x = n.x ~ n.x %}{% endfor %}",
    "double-list": "{% set n = namespace(x=[1]) %}{% for i in range(60) %}"
    "{% set n.x = n.x + n.x %}{% endfor %}",
    "output": "{% for i in range(99999) %}" + "y" * 1000 + "{% endfor %}",
    "replace": "{{ ('a' * 100000).replace('a', 'b' * 100000) }}",
    "join": "{{ (('b' * 100000) | list) | join('a' * 1000000) }}",
    "indent": "{{ 'a\\nb' | indent(1000000000) }}",
    "format-width": "{{ '%1000000000d' | format(1) }}",
    "json-indent": "{{ messages | tojson(indent=1000000000) }}",
    "slice": "{{ [1] | slice(1000000000) | list | length }}",
    "batch": "{{ [1] | batch(1000000000, 0) | list | length }}",
    "power": "{{ 10 ** (10 ** 10) }}",
    "sort": "{{ (range(99999) | list * 100) | sort | length }}",
    "recursive-format": "{{ '{:{}}'.format('a', 9999999999) }}",
    "center": "{{ 'a' | center(9999999999) }}",
    "expandtabs": "{{ '\\t'.expandtabs(2000000000) }}",
    "urlize": "{{ ('http://' ~ 'a.' * 99999) | urlize | wordwrap(1) | urlize * 99 }}{{ x.y }}",
    "digits": "{{ (10 ** 5000) | string }}",
    "syntax": "{% if %}",
    "open-string": "{{ '\\\n",
    "too-long": "x" * (MAX_TEMPLATE_CHARS + 1),
}


WHY = {
    "mro": "line 1: access to attribute '__class__' of 'str' object is unsafe",
    "include": "line 1: TypeError: no loader",
    "generator-frame": r"it tried what no chat template may do \(object.__getattr__\)",
    "lazy-codec": r"it tried what no chat template may do \(import\)",
    "loops": r"it needs more than 0\.4 s of computing time",
    "power": r"it needs more than 0\.4 s of computing time",
    "multiply": "it needs too much memory",
    "output": f"its output is longer than {MAX_OUTPUT_CHARS} characters",
    "surrogate": "its output is not valid Unicode",
    "syntax": "line 1: Expected an expression",
}


@pytest.fixture(scope="module")
def walks() -> ChatTemplate:
    """All walks in one template; a variable chooses."""
    cases = (
        "{% if thinking_budget == " + str(index) + " %}" + walk + "{% endif %}"
        for index, walk in enumerate(WALKS.values())
    )
    template = ChatTemplate("".join(cases), {}, {})
    assert template.render(HI, {}) == ""  # it compiles, and nothing is chosen
    return template


@pytest.mark.parametrize("name", WALKS)
def test_ways_out_of_the_sandbox_end_in_an_error(walks: ChatTemplate, name: str) -> None:
    with pytest.raises(TemplateError, match="failed: " + WHY.get(name, r".*\w")):
        walks.render(HI, {"thinking_budget": list(WALKS).index(name)})


@pytest.mark.parametrize("name", ATTACKS)
def test_hostile_templates_fail_soon_and_alone(name: str) -> None:
    before = sum(os.times()[:4])  # computing time of this process and of its ended children
    template = ChatTemplate(ATTACKS[name], {}, {})
    why = "has" if name == "too-long" else "failed: " + WHY.get(name, r".*\w")
    with pytest.raises(TemplateError, match="the model's chat template " + why):
        template.render(HI, {})
    del template
    # Waiting time would depend on what else the machine does.
    assert sum(os.times()[:4]) - before < 1.0


def test_a_template_that_was_killed_is_tried_again() -> None:
    source = "{% if tools %}" + ATTACKS["loops"] + "{% endif %}fine"
    template = ChatTemplate(source, {}, {})
    for _ in range(2):
        assert template.render(HI, {}) == "fine"
        with pytest.raises(TemplateError, match=r"needs more than|too much memory"):
            template.render(HI, {"tools": [TOOL]})
    assert template.render(HI, {}) == "fine"


def test_an_error_names_its_line() -> None:
    runtime = "a\n\n{{ 'a' + messages }}\nb"
    syntax = "a\n{% for x in %}\n{% endfor %}"
    for source, line in [
        (runtime, "line 3: TypeError: can only"),
        (syntax, "line 2: Expected"),
        (DEEP["for"], "SyntaxError: too many statically nested blocks"),
    ]:
        with pytest.raises(TemplateError, match=line):
            ChatTemplate(source, {}, {}).render(HI, {})


@pytest.mark.parametrize("name", DEEP)
def test_deep_templates_cannot_take_the_engine_down(name: str) -> None:
    # Whether one crashes depends on the machine's stack; this process must live either way.
    template = ChatTemplate("fine", {"tool_use": DEEP[name]}, {})
    before = sum(os.times()[:4])
    for _ in range(2):
        try:
            assert len(template.render(HI, {"tools": [TOOL]})) < 1000
        except TemplateError as error:
            assert "failed" in str(error)
        assert template.render(HI, {}) == "fine"
    assert sum(os.times()[:4]) - before < compile_seconds(len(DEEP[name])) + 1.0


def test_a_template_that_does_not_compile_is_not_tried_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    process = TemplateProcess("{% if %}")
    first = process.render({})
    monkeypatch.setattr("subprocess.Popen", None)
    assert process.render({}) == first and first.keys() == {"failed"}


def test_output_limit_is_exact() -> None:
    template = ChatTemplate("{{ messages[0].content }}", {}, {})
    fits = [{"role": "user", "content": "e" * MAX_OUTPUT_CHARS}]
    assert len(template.render(fits, {})) == MAX_OUTPUT_CHARS
    fits[0]["content"] += "e"
    with pytest.raises(TemplateError, match=f"longer than {MAX_OUTPUT_CHARS}"):
        template.render(fits, {})


def pid_of(template: ChatTemplate) -> int:
    running = template._processes["default"]._running
    assert running is not None
    return running._process.pid


def test_a_process_killed_between_requests_is_started_again() -> None:
    template = ChatTemplate("{{ messages[0].content }}", {}, {})
    assert template.render(HI, {}) == "hi"
    pid = pid_of(template)
    os.kill(pid, signal.SIGKILL)
    while template._processes["default"]._running.usable():  # pyright: ignore[reportOptionalMemberAccess]
        time.sleep(0.001)
    assert template.render(HI, {}) == "hi" and pid_of(template) != pid


def test_a_process_killed_in_a_request_fails_that_request_alone() -> None:
    slow = "{% for i in range(30000) %}{% if loop.last %}x{% endif %}{% endfor %}"
    template = ChatTemplate(
        "{{ messages[0].content }}{% if tools %}" + slow + "{% endif %}", {}, {}
    )
    assert template.render(HI, {}) == "hi"
    wrong: list[object] = []
    lost: list[int] = []
    over = threading.Event()

    def work(number: int) -> None:
        while not over.is_set():
            text = f"{number}"
            messages = [{"role": "user", "content": text}]
            try:
                if template.render(messages, {"tools": [TOOL]}) != text + "x":
                    wrong.append(text)
            except TemplateProcessError as error:
                lost.append(number)
                if "the next request starts it anew" not in str(error):
                    wrong.append(error)
            except Exception as error:
                wrong.append(error)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    kills = 0
    while kills < 3:
        pid = pid_of(template)
        time.sleep(0.02)  # long enough for a request to be at work
        if pid == pid_of(template):
            os.kill(pid, signal.SIGKILL)
            kills += 1
        while pid == pid_of(template) and template._processes["default"]._running:
            time.sleep(0.001)
    over.set()
    for thread in threads:
        thread.join()
    # Each kill costs at most the one request that was at work; the others wait their turn.
    assert not wrong and len(lost) <= kills
    assert template.render(HI, {}) == "hi"


def test_a_process_that_cannot_start_is_no_fault_of_the_template(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    template = ChatTemplate("fine", {}, {})
    monkeypatch.setattr("sys.executable", "/nonexistent/python")
    with pytest.raises(TemplateProcessError, match="cannot start: No such file"):
        template.render(HI, {})
    monkeypatch.undo()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(TemplateProcessError, match=r"package markupsafe is missing.*pip install"):
        template.render(HI, {})
    monkeypatch.undo()
    assert template.render(HI, {}) == "fine"


def test_the_local_time_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "XYZ-7:30")
    monkeypatch.setenv("HALFBYTE_SECRET", "secret")
    template = ChatTemplate("{{ strftime_now('%s') }} {{ strftime_now('%H:%M') }}", {}, {})
    seconds, clock = template.render(HI, {}).split()
    shifted = time.gmtime(int(seconds) + 27000)
    assert clock == time.strftime("%H:%M", shifted)


@pytest.fixture
def trap(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A working folder full of modules that would run if anything imported them."""
    for module in (
        "json",
        "re",
        "jinja2",
        "markupsafe",
        "datetime",
        "sitecustomize",
        "usercustomize",
    ):
        (tmp_path / f"{module}.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("PYTHONSTARTUP", str(tmp_path / "json.py"))
    yield tmp_path


def test_the_working_folder_is_not_imported_from(trap: Any) -> None:
    assert ChatTemplate("{{ messages | length }}", {}, {}).render(HI, {}) == "1"
    assert not (trap / "ran").exists()


def test_the_process_goes_away_with_its_template() -> None:
    template = ChatTemplate("x", {}, {})
    template.render(HI, {})
    pid = pid_of(template)
    os.kill(pid, 0)
    del template
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
