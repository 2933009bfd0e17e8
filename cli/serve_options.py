"""Options of ``halfbyte serve``: the definition of its flags, variables and keys of its file."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..server.log import LogFormat

if TYPE_CHECKING:
    from ..server.admission import QueueLimits
    from ..server.settings import AccessSettings, ListenSettings, WatchSettings

_network = functools.partial(typer.Option, rich_help_panel="Network")
_access = functools.partial(typer.Option, rich_help_panel="Access")
_queue = functools.partial(typer.Option, rich_help_panel="Queue")
_watch = functools.partial(typer.Option, rich_help_panel="Logs, metrics, traces")


@dataclass(frozen=True, slots=True)
class ListenFlags:
    """Where to listen; a parameter of this type stands for these options."""

    host: Annotated[
        str, _network("--host", metavar="ADDRESS", help="0.0.0.0 opens it to the network.")
    ] = "127.0.0.1"
    port: Annotated[
        int, _network("--port", metavar="PORT", min=0, max=65535, help="0 takes a free port.")
    ] = 8000
    max_connections: Annotated[
        int | None,
        _network(
            "--max-connections",
            metavar="N",
            min=1,
            help="Most open connections; beyond it, idle ones are closed. 1024 by default, or what "
            "the limit of open files allows.",
        ),
    ] = None
    ssl_certfile: Annotated[
        Path | None,
        _network(
            "--ssl-certfile",
            metavar="FILE",
            help="Certificate (PEM, with its chain): serve HTTPS. Needs --ssl-keyfile.",
        ),
    ] = None
    ssl_keyfile: Annotated[
        Path | None,
        _network("--ssl-keyfile", metavar="FILE", help="The certificate's key (PEM)."),
    ] = None

    def settings(self) -> ListenSettings:
        """The server's settings. Raises ConfigError."""
        from ..server.settings import ListenSettings
        from ..server.tls import tls_files

        tls = tls_files(self.ssl_certfile, self.ssl_keyfile)
        return ListenSettings(self.host, self.port, self.max_connections, tls)


@dataclass(frozen=True, slots=True)
class AccessFlags:
    """Who is let in; a parameter of this type stands for these options."""

    api_key: Annotated[
        str | None,
        _access(
            "--api-key",
            metavar="KEY",
            show_default=False,
            help="Refuse requests without this key (several: separate by commas). Better in the "
            "environment or a file: other users can read the command line.",
        ),
    ] = None
    priority_key: Annotated[
        str | None,
        _access(
            "--priority-key",
            metavar="KEY",
            show_default=False,
            help="Keys that may also set a request's priority, as with --api-key. Without any "
            "keys everybody may.",
        ),
    ] = None
    admin_key: Annotated[
        str | None,
        _access(
            "--admin-key",
            metavar="KEY",
            show_default=False,
            help="Keys that may do that and load and unload models (/models/load, /models/unload), "
            "as with --api-key. Without one nobody may.",
        ),
    ] = None
    key_requests: Annotated[
        int,
        _access(
            "--key-requests",
            metavar="N",
            min=0,
            help="Requests that each key of --api-key may send in a minute; beyond it, 429. "
            "0 = no bound.",
        ),
    ] = 0
    key_tokens: Annotated[
        int,
        _access(
            "--key-tokens",
            metavar="N",
            min=0,
            help="Tokens, of prompts and answers, that each key of --api-key may use in a minute. "
            "0 = no bound.",
        ),
    ] = 0
    allowed_hosts: Annotated[
        list[str] | None,
        _access(
            "--allowed-hosts",
            metavar="NAME",
            help="Name that the Host header may have besides the server's own; repeatable, "
            "'*' is any. Checked by default when only this machine can connect and no key is set.",
        ),
    ] = None
    cors_origin: Annotated[
        list[str] | None,
        _access(
            "--cors-origin",
            metavar="ORIGIN",
            help="Web origin whose pages may use the server, such as http://localhost:5173; "
            "repeatable, '*' is any. None by default.",
        ),
    ] = None

    def settings(self) -> AccessSettings:
        """The server's settings. Raises ConfigError."""
        from ..server.quota import QuotaLimits
        from ..server.settings import AccessSettings, split_keys

        return AccessSettings(
            split_keys(self.api_key, "--api-key"),
            split_keys(self.priority_key, "--priority-key"),
            split_keys(self.admin_key, "--admin-key"),
            QuotaLimits(self.key_requests, self.key_tokens),
            split_values(self.allowed_hosts),
            split_values(self.cors_origin),
        )


@dataclass(frozen=True, slots=True)
class QueueFlags:
    """What may wait; a parameter of this type stands for these options."""

    max_waiting: Annotated[
        int, _queue("--max-waiting", metavar="N", min=0, help="Longest queue; beyond it, 429.")
    ] = 256
    max_waiting_tokens: Annotated[
        int,
        _queue(
            "--max-waiting-tokens",
            metavar="N",
            min=0,
            help="Most prompt tokens that wait for an answer; beyond it, 429. 0 = no bound.",
        ),
    ] = 1 << 20
    max_wait: Annotated[
        float,
        _queue(
            "--max-wait",
            metavar="S",
            min=0,
            help="Seconds that a request may wait for a place in the batch; then 503. "
            "0 = no bound.",
        ),
    ] = 300.0

    def limits(self) -> QueueLimits:
        """The server's bounds."""
        from ..server.admission import QueueLimits

        return QueueLimits(self.max_waiting, self.max_waiting_tokens, self.max_wait)


@dataclass(frozen=True, slots=True)
class WatchFlags:
    """How the server is watched; a parameter of this type stands for these options."""

    log_format: Annotated[
        LogFormat,
        _watch("--log-format", help="Lines for people, or one JSON object a line, on stderr."),
    ] = "text"
    metrics_prefix: Annotated[
        str,
        _watch(
            "--metrics-prefix",
            metavar="NAME",
            help="What the names at /metrics begin with; vllm makes vLLM's dashboards work.",
        ),
    ] = "halfbyte"
    otlp_endpoint: Annotated[
        str | None,
        _watch(
            "--otlp-endpoint",
            metavar="URL",
            help="Send a span for each request there, by OTLP over HTTP, such as "
            "http://localhost:4318. Needs the extra 'otel'.",
        ),
    ] = None

    def settings(self) -> WatchSettings:
        """The server's settings. Raises ConfigError."""
        from ..server.settings import WatchSettings

        return WatchSettings(self.log_format, self.metrics_prefix, self.otlp_endpoint)


def split_values(values: list[str] | None) -> tuple[str, ...]:
    """The entries of a repeatable option that commas may separate as well."""
    return tuple(part for value in values or () for part in value.split(","))
