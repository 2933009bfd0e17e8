"""Certificate and key of an HTTPS server."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path

from halfbyte.errors import ConfigError

_PAIR = "give --ssl-certfile and --ssl-keyfile together"


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """Files in PEM form.

    Attributes:
        certfile: the certificate, followed by those that lead to a root.
        keyfile: its private key, not encrypted.
    """

    certfile: Path
    keyfile: Path

    def context(self) -> ssl.SSLContext:
        """What wraps a server's sockets.

        Raises:
            ConfigError: a file cannot be read, is not what it should be, or they do not match.
        """
        certificate = _read(self.certfile, "--ssl-certfile")
        key = _read(self.keyfile, "--ssl-keyfile")
        if b"-----BEGIN CERTIFICATE-----" not in certificate:
            raise ConfigError(f"--ssl-certfile is {self.certfile}; it holds no PEM certificate")
        if b"PRIVATE KEY-----" not in key:
            raise ConfigError(f"--ssl-keyfile is {self.keyfile}; it holds no PEM private key")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        try:
            # Without a password, an encrypted key would ask for one on the terminal.
            context.load_cert_chain(self.certfile, self.keyfile, password=lambda: b"")
        except ssl.SSLError as error:
            raise self._unusable(key, error) from None
        return context

    def _unusable(self, key: bytes, error: ssl.SSLError) -> ConfigError:
        if error.reason == "KEY_VALUES_MISMATCH":
            return ConfigError(
                f"--ssl-keyfile is {self.keyfile}; it is not the key of the certificate in "
                f"{self.certfile} (--ssl-certfile)"
            )
        if b"ENCRYPTED" in key:
            return ConfigError(
                f"--ssl-keyfile is {self.keyfile}; the key is encrypted, expected a plain one",
                hint="openssl pkey -in KEY -out PLAIN",
            )
        return ConfigError(
            f"--ssl-certfile is {self.certfile} and --ssl-keyfile is {self.keyfile}; "
            f"they cannot be used: {error.reason or error}"
        )


def tls_files(certfile: Path | None, keyfile: Path | None) -> TlsFiles | None:
    """The files of two options; None without them. Raises ConfigError for one without the other."""
    if certfile is None and keyfile is None:
        return None
    if certfile is None:
        raise ConfigError("--ssl-keyfile is given without --ssl-certfile", hint=_PAIR)
    if keyfile is None:
        raise ConfigError("--ssl-certfile is given without --ssl-keyfile", hint=_PAIR)
    return TlsFiles(certfile, keyfile)


def _read(file: Path, flag: str) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        reason = error.strerror or str(error)
        raise ConfigError(f"{flag} is {file}; it cannot be read: {reason}") from None
