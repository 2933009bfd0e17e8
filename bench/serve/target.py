"""Where requests of a benchmark go, and how their bodies are written for it."""

from __future__ import annotations

import ipaddress
import json
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from halfbyte.errors import ConfigError

from .names import ServeBackend

COMPLETION_PATHS: dict[ServeBackend, str] = {
    "openai": "/v1/completions",
    "openai-chat": "/v1/chat/completions",
    "vllm": "/v1/completions",
}
"""Paths that requests go to."""


@dataclass(frozen=True, slots=True)
class ServeTarget:
    """A server of OpenAI's API.

    Attributes:
        host: name or address.
        port: where it listens.
        tls: whether it speaks HTTPS.
        prefix: of every path, such as ``/llm``; mostly empty.
        headers: sent with each request, a key among them.
    """

    host: str
    port: int
    tls: bool = False
    prefix: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, url: str, headers: Mapping[str, str] | None = None) -> ServeTarget:
        """The target of a URL, with or without OpenAI's ``/v1`` at its end.

        Raises:
            ConfigError: the URL is none of a server, or a header has a line end.
        """
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError:
            parts, port = urlsplit(""), None
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query:
            raise ConfigError(f"--url is {url!r:.200}; expected one such as http://127.0.0.1:8000")
        for name, value in (headers or {}).items():
            if not f"{name}{value}".isprintable():
                raise ConfigError(f"the header {name!r:.60} has characters that no header may have")
        tls = parts.scheme == "https"
        prefix = parts.path.rstrip("/").removesuffix("/v1")
        return cls(parts.hostname, port or (443 if tls else 80), tls, prefix, headers or {})

    @property
    def local(self) -> bool:
        """Whether the server runs on this machine, as far as its name tells."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    @property
    def authority(self) -> str:
        """Host and port as a URL has them."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def url(self) -> str:
        """The URL, without ``/v1``."""
        return f"{'https' if self.tls else 'http'}://{self.authority}{self.prefix}"

    def context(self) -> ssl.SSLContext | None:
        """What checks the server's certificate, None for plain HTTP."""
        return ssl.create_default_context() if self.tls else None

    def head(self, method: str, path: str, length: int) -> bytes:
        """The first lines of a request with a JSON body of ``length`` bytes."""
        own = {
            "Host": self.authority,
            "Connection": "close",
            "Content-Type": "application/json",
            "Content-Length": str(length),
            **self.headers,
        }
        lines = [f"{method} {self.prefix}{path} HTTP/1.1", *(f"{k}: {v}" for k, v in own.items())]
        return "\r\n".join([*lines, "", ""]).encode()


@dataclass(frozen=True, slots=True)
class BodyForm:
    """What every request of a run says.

    Attributes:
        backend: how it is written.
        endpoint: the path that it is sent to.
        model: the name that the server knows the model by, None to leave it out.
        ignore_eos: go on after an end of text; the field is left out when it is False.
        extra: more fields, which win.
    """

    backend: ServeBackend = "openai"
    endpoint: str = "/v1/completions"
    model: str | None = None
    ignore_eos: bool = False
    extra: Mapping[str, Any] = field(default_factory=dict)

    def body(self, prompt: str, tokens: int) -> bytes:
        """The body that asks for an answer of at most ``tokens`` tokens as a stream."""
        fields: dict[str, Any] = {} if self.model is None else {"model": self.model}
        if self.backend == "openai-chat":
            fields["messages"] = [{"role": "user", "content": prompt}]
        else:
            fields["prompt"] = prompt
        fields |= {"max_tokens": tokens, "stream": True, "stream_options": {"include_usage": True}}
        if self.ignore_eos:
            fields["ignore_eos"] = True
        return json.dumps({**fields, **self.extra}).encode()
