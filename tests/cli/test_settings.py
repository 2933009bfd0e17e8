"""Settings of ``halfbyte serve`` from flags, environment and file: one definition of all three."""

from __future__ import annotations

import json
import os
import random
import re
import socket
import textwrap
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from cli_support import ROOT, TINY, halfbyte, run_here

from halfbyte.cli import serve as command
from halfbyte.cli.main import app
from halfbyte.cli.settings import OTHER_VARIABLES, SECRETS, given_settings

FLAGS = {
    "--host": ["0.0.0.0", "::1"],
    "--port": ["0", "9000", "65535"],
    "--max-connections": ["1", "77"],
    "--api-key": ["marker-key"],
    "--priority-key": ["marker-other-key"],
    "--admin-key": ["marker-third-key"],
    "--allowed-hosts": ["a.example", "b,c"],
    "--cors-origin": ["http://localhost:5173"],
    "--max-waiting": ["0", "9"],
    "--max-waiting-tokens": ["0", "4096"],
    "--max-wait": ["0.5", "60.0"],
    "--drain": ["0.0", "2.25"],
    "--no-page": ["true"],
    "--served-name": ["n", "42", "true"],
    "--models-memory": ["0.5", "16.0"],
    "--max-batch": ["1", "7"],
    "--max-batch-tokens": ["64", "2048"],
    "--max-step-ms": ["0", "250"],
    "--kv-tokens": ["4096"],
    "--max-context": ["128"],
    "--threads": ["1"],
    "--kv-dtype": ["int8", "float32"],
    "--quantize": ["w4a16"],
    "--log-format": ["text", "json"],
    "--metrics-prefix": ["vllm"],
    "--otlp-endpoint": ["http://localhost:4318"],
    "--exact": ["true"],
    "--packed-cache": ["true"],
}


@pytest.fixture
def asked(monkeypatch) -> list[dict[str, Any]]:
    """What the command is called with, in place of running it."""
    for name in [n for n in os.environ if n.startswith("HALFBYTE_")]:
        if name not in OTHER_VARIABLES:
            monkeypatch.delenv(name)
    calls: list[dict[str, Any]] = []
    monkeypatch.setattr(command, "_run", lambda model, options, settings, report, dry_run: None)

    class Recorder:
        def __init__(self, given: Any, out: Any) -> None:
            calls.append({"given": given})

        def __enter__(self) -> None: ...

        def __exit__(self, *exc_info: object) -> None: ...

    monkeypatch.setattr(command, "ShownStart", Recorder)
    monkeypatch.setattr(command, "_run_logged", lambda ctx, *rest: Recorder(_given(ctx), None))
    return calls


def _given(ctx: Any) -> Any:
    return given_settings(ctx)


def params() -> dict[str, Any]:
    """Option -> parameter of the command."""
    from typer.main import get_command

    serve: Any = get_command(app).commands["serve"]  # type: ignore[attr-defined]
    return {p.opts[0]: p for p in serve.get_params(SimpleNamespace(help_option_names=[]))}


def values(name: str, value: str) -> tuple[list[str], str, str]:
    """A setting as arguments, for the environment, and as a line of YAML."""
    key = name.removeprefix("--")
    quoted = value
    if name in ("--served-name", "--host", "--api-key", "--allowed-hosts"):
        quoted = f'"{value}"'
    arguments = [name] if value == "true" and name != "--served-name" else [name, value]
    return arguments, "HALFBYTE_" + key.replace("-", "_").upper(), f"{key}: {quoted}"


def test_every_option_is_drawn_below():
    left = {name for name in params() if name.startswith("--")} - FLAGS.keys()
    # Each of these needs a file or a key, or says nothing by itself.
    assert left == {
        *("--config", "--files", "--dry-run", "--device", "--dtype", "--backend"),
        *("--activations", "--ssl-certfile", "--ssl-keyfile", "--model"),
        *("--key-requests", "--key-tokens"),
    }


def test_three_ways_give_the_same_setting(asked, monkeypatch, tmp_path):
    """Of some options, drawn each time: the flag, the variable and the key."""
    file = tmp_path / "serve.yaml"
    for name in random.sample(sorted(FLAGS), 7):
        value = random.choice(FLAGS[name])
        arguments, variable, line = values(name, value)
        default = str(params()[name].default)
        asked.clear()
        app(["serve", str(TINY), *arguments], standalone_mode=False)
        monkeypatch.setenv(variable, value)
        app(["serve", str(TINY)], standalone_mode=False)
        monkeypatch.delenv(variable)
        file.write_text(line)
        app(["serve", str(TINY), "--config", str(file)], standalone_mode=False)
        shown = "set" if name[2:].replace("-", "_") in SECRETS else value
        if value == "true" and name != "--served-name":
            shown = "True"
        told = [[(s.name, s.value, s.origin) for s in call["given"]] for call in asked]
        if shown == default:
            assert told == [[], [], []]
            continue
        assert told == [
            [(name, shown, "flag")],
            [(variable, shown, "environment")],
            [(name[2:], shown, "serve.yaml")],
        ]


def test_a_flag_goes_before_the_environment_and_that_before_the_file(asked, monkeypatch, tmp_path):
    file = tmp_path / "s.yaml"
    file.write_text("max-waiting: 1\nport: 1\nhost: h1\nmodel: m1\n")
    monkeypatch.setenv("HALFBYTE_PORT", "2")
    monkeypatch.setenv("HALFBYTE_MAX_WAITING", "2")
    monkeypatch.setenv("HALFBYTE_CONFIG", str(file))
    app(["serve", "--max-waiting", "3"], standalone_mode=False)
    told = {(s.name, s.value, s.origin) for s in asked[0]["given"]}
    assert told == {
        ("--max-waiting", "3", "flag"),
        ("HALFBYTE_PORT", "2", "environment"),
        ("host", "h1", "s.yaml"),
        ("model", "m1", "s.yaml"),
    }
    # A value that is the default does not differ from it, wherever it came from.
    monkeypatch.setenv("HALFBYTE_PORT", "8000")
    app(["serve", "--max-waiting", "256"], standalone_mode=False)
    assert {s.name for s in asked[1]["given"]} == {"host", "model"}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("max-waitng: 3", "no setting 'max-waitng' (s.yaml line 1); did you mean max-waiting?"),
        ("xyzzy: 3", "no setting 'xyzzy' (s.yaml line 1)$"),
        ("config: other.yaml", "no setting 'config' (s.yaml line 1)"),
        ("\nport: '80'", "port (s.yaml line 2) is '80'; expected a whole number"),
        ("port: 80.5", "port (s.yaml line 1) is 80.5; expected a whole number"),
        ("port: true", "port (s.yaml line 1) is True; expected a whole number"),
        ("port: 70000", "port (s.yaml line 1) is '70000': "),
        ("max_context: -1", "max_context (s.yaml line 1) is -1; expected a whole number from 0"),
        ("max-num-seqs: 5000", "max-num-seqs (s.yaml line 1) is 5000; expected a whole number"),
        ("drain: soon", "drain (s.yaml line 1) is 'soon'; expected a number"),
        ("drain: .nan", "drain (s.yaml line 1) is 'nan': input should be greater than"),
        ("max-wait: .inf", "max-wait (s.yaml line 1) is inf; expected a number of seconds"),
        ("exact: maybe", "exact (s.yaml line 1) is 'maybe'; expected true or false"),
        ("exact: 1", "exact (s.yaml line 1) is 1; expected true or false"),
        ("dtype: float64", "dtype (s.yaml line 1) is 'float64'; expected one of auto, float32"),
        ("host: 0.5", "host (s.yaml line 1) is 0.5; expected a text, in quotes"),
        ("host:", "host (s.yaml line 1) is empty; expected a text"),
        ("api-key: 123456789", "api-key (s.yaml line 1) is something else; expected a text"),
        ("api-key: ' , '", "api-key (s.yaml line 1) holds no key"),
        ("allowed-hosts: [1]", "allowed-hosts (s.yaml line 1) is [1]; expected a text or a list"),
        ("allowed-hosts: http://x", "allowed-hosts (s.yaml line 1) has 'http://x'; expected a"),
        ("cors-origin: x", "cors-origin (s.yaml line 1) has 'x'; expected scheme"),
        ("metrics-prefix: a:b", "metrics-prefix (s.yaml line 1) is 'a:b'; expected letters"),
        ("allowed-hosts: {a: b}", "allowed-hosts (s.yaml line 1) holds keys or lists"),
        ("a: &a [x]\nb: *a", "no setting 'a'"),
        ("port: 1\nmax-waiting: 2\nport: 3", "port (s.yaml line 3) is there already: port in line"),
        ("max_waiting: 1\nmax-waiting: 2", "is there already: max_waiting in line 1"),
        ("- port", "s.yaml has no keys; expected lines such as `port: 8000`"),
        ("port: [", "s.yaml line 1 is not YAML: "),
        ("port: " + "[" * 2000, "s.yaml is not YAML: RecursionError"),
        ("host: !!python/object/apply:os.getpid []", "not YAML: could not determine a constructor"),
        ("served-name: 2024-13-45", "s.yaml is not YAML"),
        ("#" * 70000, "it has more than 65536 bytes"),
        ("\x00", "s.yaml is not YAML"),
        ("max-batch: 64\nmax-batch-tokens: 32", "max-batch (s.yaml line 1) 64 is more than max-"),
        ("ssl-keyfile: k", "ssl-keyfile (s.yaml line 1) is given without --ssl-certfile"),
    ],
)
def test_what_is_wrong_in_a_file_is_named_as_it_is_written(text, says, tmp_path, capsys):
    file = tmp_path / "s.yaml"
    file.write_text(text)
    assert run_here("serve", str(TINY), "--dry-run", "--config", str(file)) in (1, 2)
    out, err = capsys.readouterr()
    error = err.splitlines()[0]
    assert out == "" and error.startswith("error: ") and "Traceback" not in err
    assert error.endswith(says[:-1]) if says.endswith("$") else says in error, error
    assert "123456789" not in err


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("PORT", "tcp://10.0.0.1:80", "HALFBYTE_PORT (environment) is 'tcp://10.0.0.1:80': "),
        ("PORT", "70000", "HALFBYTE_PORT (environment) is '70000': "),
        ("PORT", "", "HALFBYTE_PORT is empty; give it a value or unset it"),
        ("API_KEY", " ", "HALFBYTE_API_KEY is empty"),
        ("API_KEY", ",", "HALFBYTE_API_KEY (environment) holds no key"),
        ("MAX_BATCH", "5000", "HALFBYTE_MAX_BATCH (environment) is 5000; expected a whole number"),
        ("MAX_WAIT", "inf", "HALFBYTE_MAX_WAIT (environment) is inf; expected"),
        ("EXACT", "maybe", "HALFBYTE_EXACT (environment) is 'maybe': "),
        ("CORS_ORIGIN", "x", "HALFBYTE_CORS_ORIGIN (environment) has 'x'; expected"),
        ("CONFIG", "/nonexistent", "HALFBYTE_CONFIG (environment) is /nonexistent; it cannot be"),
        ("SSL_CERTFILE", "c", "HALFBYTE_SSL_CERTFILE (environment) is given without --ssl-keyfile"),
    ],
)
def test_what_is_wrong_in_the_environment_is_named(name, value, says, monkeypatch, capsys):
    monkeypatch.setenv(f"HALFBYTE_{name}", value)
    assert run_here("serve", str(TINY), "--dry-run") in (1, 2)
    assert capsys.readouterr().err.splitlines()[0].startswith(f"error: {says}")


def test_a_flag_over_a_wrong_variable_is_all_that_counts(asked, monkeypatch):
    monkeypatch.setenv("HALFBYTE_PORT", "x")
    app(["serve", str(TINY), "--port", "1"], standalone_mode=False)
    assert [s.value for s in asked[0]["given"]] == ["1"]


def test_a_misspelt_variable_is_told(asked, monkeypatch, capsys):
    monkeypatch.setenv("HALFBYTE_MAX_WAITNG", "3")
    # What Kubernetes sets for a service of the name halfbyte is no misspelling.
    monkeypatch.setenv("HALFBYTE_PORT_8000_TCP_PORT", "8000")
    monkeypatch.setenv("HALFBYTE_SERVICE_HOST", "10.0.0.1")
    monkeypatch.setenv("HALFBYTE_HOME", os.environ.get("HALFBYTE_HOME", "x"))
    app(["serve", str(TINY)], standalone_mode=False)
    (line,) = capsys.readouterr().err.splitlines()
    assert "HALFBYTE_MAX_WAITNG" in line and "did you mean HALFBYTE_MAX_WAITING?" in line


def test_variables_of_options_mean_nothing_else():
    sources = [p for p in ROOT.rglob("*.py") if p.relative_to(ROOT).parts[0] in _FOLDERS]
    read = {n for p in sources for n in re.findall(r'"(HALFBYTE_[A-Z_]+)"', p.read_text("utf-8"))}
    options = {"HALFBYTE_" + name[2:].replace("-", "_").upper() for name in params()}
    # The key of the server that `bench serve` starts, which reads the same variable.
    assert read == {*OTHER_VARIABLES, "HALFBYTE_MODEL", "HALFBYTE_API_KEY"}
    assert not options & OTHER_VARIABLES


_FOLDERS = ("halfbyte", "engine", "kernels", "loaders", "server", "bench", "quantize", "cli")


def test_help_shows_variables_and_no_secret(tmp_path, monkeypatch, capsys):
    file = tmp_path / "s.yaml"
    file.write_text("api-key: marker-secret\nmax-waiting: 8123\nport: 0\n")
    monkeypatch.setenv("HALFBYTE_PRIORITY_KEY", "marker-other-secret")
    assert run_here("serve", "--config", str(file), "--help") == 0
    assert run_here("serve", str(TINY), "--config", str(file), "--dry-run") == 0
    text = "".join(capsys.readouterr())
    assert "HALFBYTE_MAX_WAITING" in text and "8123" in text and "marker" not in text


@pytest.mark.parametrize("width", [40, 60, 80, 120, 200])
def test_the_table_fits(width, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", str(width))
    given = ("--max-batch", "3", "--kv-tokens", "2048", "--host", "0.0.0.0", "--port", "0")
    assert run_here("serve", str(TINY), "--dry-run", *given, "--api-key", "marker") == 0
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert err == "" and [line for line in lines if len(line) > width] == []
    flat = " ".join(out.split())
    for text in (
        "Q4_0",
        "KV cache",
        "workspace",
        "3 requests",
        "512 tokens",
        "API key",
        "required",
    ):
        assert text in flat
    assert "--kv-tokens 2048 (flag)" in flat and "--api-key set (flag)" in flat
    assert "marker" not in out and "http://127.0.0.1:" in out


def test_a_dry_run_fails_where_the_start_would(tmp_path, monkeypatch, capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert run_here("serve", str(TINY), "--dry-run", "--port", port) == 1
    assert "cannot listen" in capsys.readouterr().err
    assert run_here("serve", str(tmp_path / "none.gguf"), "--dry-run", "--port", "0") == 1
    assert (
        run_here("serve", str(TINY), "--dry-run", "--port", "0", "--kv-tokens", str(1 << 39)) == 1
    )
    monkeypatch.setattr("halfbyte.engine.advise.start_plan.free_memory", lambda device: 5 << 20)
    capsys.readouterr()
    tight = ("--kv-tokens", "64", "--max-context", "64", "--port", "0")
    assert run_here("serve", str(TINY), "--dry-run", *tight) == 1
    out, err = capsys.readouterr()
    assert "weights and workspace need" in err and "5 MiB are free" in err and "WARNING" in out


def test_the_error_that_ends_a_logged_start_is_json(tmp_path):
    missing = str(tmp_path / "none.gguf")
    variables = {"HALFBYTE_LOG_FORMAT": "json", "HALFBYTE_MODEL": missing}
    variables["HALFBYTE_MAX_WAITNG"] = "3"
    done = halfbyte("serve", "--dry-run", "--port", "0", env=variables)
    warning, error = map(json.loads, done.stderr.splitlines())
    assert warning["level"] == "WARNING" and "mean HALFBYTE_MAX_WAITING?" in warning["message"]
    assert done.returncode == 1 and error["level"] == "ERROR" and "none.gguf" in error["message"]


def test_the_file_in_the_documentation_is_taken(asked, tmp_path):
    page = (ROOT / "docs" / "serving.md").read_text("utf-8")
    block = re.search(r"\n((?:    .*\n)+)", page)
    assert block is not None and "serve.yaml" in block[1]
    file = tmp_path / "serve.yaml"
    file.write_text(textwrap.dedent(block[1]))
    app(["serve", "--config", str(file), "--log-format", "text"], standalone_mode=False)
    keys = re.findall(r"^    ([a-z-]+):", block[1], re.MULTILINE)
    told = [s.name for s in asked[0]["given"]]
    # The last one gives way to the flag.
    assert sorted(told) == sorted(set(keys) - {"log-format"}) and len(told) == 5


def test_settings_of_other_commands_stay_flags(monkeypatch, capsys):
    monkeypatch.setenv("HALFBYTE_MAX_TOKENS", "x")
    assert run_here("generate", "--help") == 0
    assert "HALFBYTE_MAX_TOKENS" not in capsys.readouterr().out
    assert Path(TINY).exists()
