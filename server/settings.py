"""What a server is started with, in groups; every value is checked when it is made."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from halfbyte.errors import ConfigError

from .admission import QueueLimits
from .listen import check_origins
from .log import LogFormat
from .quota import QuotaLimits
from .tls import TlsFiles

_PREFIX = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*")


@dataclass(frozen=True, slots=True)
class ListenSettings:
    """Where a server listens.

    Attributes:
        host: address or name.
        port: TCP port; 0 lets the system choose.
        max_connections: most open connections; None is as many as files allow, up to 1024.
        tls: certificate and key; None is plain HTTP.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    max_connections: int | None = None
    tls: TlsFiles | None = None


@dataclass(frozen=True, slots=True)
class AccessSettings:
    """Who is let in.

    Attributes:
        keys: any of these lets a request in; without any, everybody is let in.
        priority_keys: keys whose requests may also have a priority.
        admin_keys: keys whose requests may also load and unload models.
        quota: bounds of each of ``keys``.
        allowed_hosts: names that the Host header may have besides the server's own.
        cors_origins: web origins whose pages may read the answers.

    Raises:
        ConfigError: an origin that no browser sends, or bounds of keys and no key.
    """

    keys: Sequence[str] = ()
    priority_keys: Sequence[str] = ()
    admin_keys: Sequence[str] = ()
    quota: QuotaLimits = field(default_factory=QuotaLimits)
    allowed_hosts: Sequence[str] = ()
    cors_origins: Sequence[str] = ()

    def __post_init__(self) -> None:
        check_origins(self.cors_origins)
        for flag, bound in (
            ("--key-requests", self.quota.requests),
            ("--key-tokens", self.quota.tokens),
        ):
            if bound and not self.keys:
                raise ConfigError(
                    f"{flag} is {bound}, but there is no key that it could hold for",
                    hint="give keys with --api-key",
                )

    @property
    def keyed(self) -> bool:
        """Whether a request needs a key."""
        return bool(self.keys or self.priority_keys or self.admin_keys)


@dataclass(frozen=True, slots=True)
class WatchSettings:
    """How a server is watched.

    Attributes:
        log_format: of the lines on stderr.
        metrics_prefix: what the names of metrics begin with, before the colon.
        otlp_endpoint: URL that spans are sent to; None sends none.

    Raises:
        ConfigError: a prefix that no metric can have.
    """

    log_format: LogFormat = "text"
    metrics_prefix: str = "halfbyte"
    otlp_endpoint: str | None = None

    def __post_init__(self) -> None:
        if not _PREFIX.fullmatch(self.metrics_prefix):
            raise ConfigError(
                f"--metrics-prefix is {self.metrics_prefix!r:.60}; expected letters, digits and "
                "underscores, such as halfbyte or vllm"
            )


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """All of them.

    Attributes:
        listen: where.
        access: for whom.
        queue: bounds of what waits.
        watch: logs, metrics, spans.
        models_bytes: that the models of a server of several may take together; 0 is what is free
            at its start.
        drain_s: seconds that running requests have to end after the first signal.
        files: folder of files that clients send, and of batches over them; None refuses both.
        page: there is a chat page at ``/``.

    Raises:
        ConfigError: a time that is no number of seconds.
    """

    listen: ListenSettings = field(default_factory=ListenSettings)
    access: AccessSettings = field(default_factory=AccessSettings)
    queue: QueueLimits = field(default_factory=QueueLimits)
    watch: WatchSettings = field(default_factory=WatchSettings)
    models_bytes: int = 0
    drain_s: float = 30.0
    files: Path | None = None
    page: bool = True

    def __post_init__(self) -> None:
        for flag, seconds in (("--max-wait", self.queue.wait_s), ("--drain", self.drain_s)):
            if not (math.isfinite(seconds) and seconds >= 0):
                raise ConfigError(f"{flag} is {seconds}; expected a number of seconds, 0 or more")


def split_keys(text: str | None, flag: str) -> tuple[str, ...]:
    """The keys of an option, which commas separate; none where it was not given.

    Args:
        text: as given, or None.
        flag: name of the option, for the error.

    Raises:
        ConfigError: something was given, but no key is in it.
    """
    if text is None:
        return ()
    keys = tuple(key.strip() for key in text.split(",") if key.strip())
    if not keys:
        raise ConfigError(f"{flag} holds no key", hint="leave it out to serve without keys")
    return keys


def gibibytes(number: float, flag: str) -> int:
    """Bytes of a number of GiB.

    Args:
        number: as given.
        flag: name of the option, for the error.

    Raises:
        ConfigError: it is no such number.
    """
    if not (math.isfinite(number) and number >= 0):
        raise ConfigError(f"{flag} is {number}; expected a number of GiB, 0 or more")
    return int(number * (1 << 30))
