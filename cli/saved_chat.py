"""Conversations in files: JSON with a list of messages, as the chat endpoint takes it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from halfbyte.errors import RequestError

_LIMIT = 16 << 20
_ROLES = ("system", "user", "assistant")


def write_chat(name: str, model: str, messages: list[dict[str, str]]) -> Path:
    """Write a conversation; only its owner may read the file.

    A file that is there is replaced when it is a conversation too. Raises RequestError.
    """
    path = _path(name, "save")
    if path.exists():
        try:
            read_chat(name)
        except RequestError as error:
            raise RequestError(f"{path} is there and is no saved chat; left as it is") from error
    text = json.dumps({"model": model, "messages": messages}, indent=1, ensure_ascii=False) + "\n"
    new = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(text.encode("utf-8", "replace"))
        os.replace(new, path)
    except OSError as error:
        new.unlink(missing_ok=True)
        raise RequestError(f"cannot write {path}: {error.strerror or error}") from error
    return path


def read_chat(name: str) -> list[dict[str, str]]:
    """The messages of a saved conversation. Raises RequestError naming what is wrong."""
    path = _path(name, "load")
    try:
        with path.open("rb") as file:
            data = file.read(_LIMIT + 1)
    except OSError as error:
        raise RequestError(f"cannot read {path}: {error.strerror or error}") from error
    if len(data) > _LIMIT:
        raise RequestError(f"{path} has more than {_LIMIT >> 20} MiB")
    try:
        found: Any = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"{path} is not JSON: {error}") from error
    messages = found.get("messages") if isinstance(found, dict) else None
    if not isinstance(messages, list):
        raise RequestError(f"{path} holds no list of messages", hint="/save writes such a file")
    return [_message(message, f"{path}: messages[{i}]") for i, message in enumerate(messages)]


def _message(message: Any, where: str) -> dict[str, str]:
    role = message.get("role") if isinstance(message, dict) else None
    if role not in _ROLES:
        raise RequestError(f"{where}.role is {role!r:.60}; expected one of {', '.join(_ROLES)}")
    content = message.get("content")
    if not isinstance(content, str):
        raise RequestError(f"{where}.content is {content!r:.60}; expected a text")
    return {"role": role, "content": content}


def _path(name: str, command: str) -> Path:
    if not name:
        raise RequestError(f"/{command} needs a file", hint=f"/{command} chat.json")
    return Path(name).expanduser()
