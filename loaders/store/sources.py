"""Names of models that can be pulled, and what they stand for.

A name is checked here by a pattern before any part of it touches a path. Three kinds exist:
registered names (``smollm2``, in any case), Hugging Face repositories (``owner/name``,
``owner/name:Q4_K_M``, ``owner/name/file.gguf``, also behind ``hf.co/`` or as the address of a
page or file of the hub) and http(s) addresses of a ``.gguf`` file.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

from halfbyte.errors import DownloadError

from .wheel_models import REGISTERED as _REGISTERED
from .wheel_models import WheelSource

DEFAULT_MODEL = "smollm2"

_WORD = r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}"
_HUB = re.compile(
    rf"(?P<repo>{_WORD}/{_WORD})"
    rf"(?::(?P<pick>[A-Za-z0-9][A-Za-z0-9._-]{{0,63}})|/(?P<file>(?:{_WORD}/){{0,4}}{_WORD}\.gguf))?"
)
_SCHEME = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]{0,20})://")
_FILE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,195}\.gguf")
# Addresses of the hub, with or without a scheme.
_HUB_ADDRESS = re.compile(
    r"(?:https?://)?(?:www\.)?(?:hf\.co|huggingface\.co)/(?P<path>[^?#]*)(?:[?#].*)?",
    re.IGNORECASE,
)
# A page or file of a repository; the rest of its path is the file.
_HUB_PAGE = re.compile(
    r"(?P<repo>[^/:]+/[^/:]+)/(?:tree|blob|resolve)/(?P<revision>[^/:]+)(?P<file>/[^:]*)?"
)
_SHA256 = re.compile(r"[0-9a-f]{64}")
_MODEL_SUFFIXES = (".gguf", ".safetensors", ".json", ".bin", ".pt", ".pth")


@dataclass(frozen=True, slots=True)
class HubSource:
    """A Hugging Face repository, or one GGUF file of it.

    Attributes:
        name: the whole name, without the hub's own address.
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

    @property
    def origin(self) -> str:
        """Where the model is from, in words."""
        return f"hub repository {self.repo}"


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

    @property
    def origin(self) -> str:
        """Where the model is from, in words."""
        return self.name


Source = WheelSource | HubSource | UrlSource


def registered_names() -> tuple[str, ...]:
    """Names that ``pull`` knows without an address."""
    return tuple(source.name for source in _REGISTERED)


def parse_source(name: str) -> Source | None:
    """What a name stands for, or None when it can only be a local path.

    Raises:
        DownloadError: the name is an address that is not allowed.
    """
    for source in _REGISTERED:
        if name.lower() == source.name:
            return source
    name = _without_hub_address(name)
    if found := _SCHEME.match(name):
        return _parse_url(name, found["scheme"].lower())
    found = _HUB.fullmatch(name)
    if found is None or ".." in name:
        return None
    if not found["pick"] and not found["file"] and name.endswith(_MODEL_SUFFIXES):
        return None
    return HubSource(name, found["repo"], found["pick"] or "", found["file"] or "")


def _without_hub_address(name: str) -> str:
    """``owner/name...`` of an address of the hub; other names as they are."""
    address = _HUB_ADDRESS.fullmatch(name)
    if address is None:
        return name
    path = address["path"].strip("/")
    page = _HUB_PAGE.fullmatch(path)
    if page is not None and page["revision"] != "main":
        return name  # an address like those of other sites, of a file or of nothing
    if page is not None:
        path = page["repo"] + unquote(page["file"] or "")
    return path if _HUB.fullmatch(path) else name


def selects(tag: str, path: str) -> bool:
    """Whether a quantization tag such as ``Q4_K_M`` stands in a file's path, as a word."""
    word = rf"(?<![A-Za-z0-9]){re.escape(tag)}(?![A-Za-z0-9_])"
    return re.search(word, path, re.IGNORECASE) is not None


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
