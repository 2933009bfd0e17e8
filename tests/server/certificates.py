"""Certificates made for a test with the ``openssl`` program, and who trusts them."""

from __future__ import annotations

import ssl
import subprocess
from pathlib import Path

from halfbyte.server.tls import TlsFiles


def openssl(*arguments: str | Path) -> None:
    subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True, timeout=60)


def make_certificate(folder: Path, name: str) -> TlsFiles:
    """A self-signed certificate for this machine, and its key."""
    files = TlsFiles(folder / f"{name}.crt", folder / f"{name}.key")
    openssl(
        *("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"),
        *("-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"),
        *("-days", "2", "-keyout", files.keyfile, "-out", files.certfile),
    )
    return files


def trusting(tls: TlsFiles) -> ssl.SSLContext:
    """What a client needs to believe it."""
    return ssl.create_default_context(cafile=str(tls.certfile))
