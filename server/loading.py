"""What a server answers while its model is being loaded: 503 to everybody, at once.

The body is in the form of the API whose path is asked for; a browser that opens the page gets one
that asks again by itself.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from collections.abc import Iterator

from .error_forms import error_json
from .errors import ApiError

# Clients are answered in turn, and each costs at most twice this, seconds.
_PATIENCE_S = 0.5
_POLL_S = 0.1
_PAGE = b"""\
<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta http-equiv="refresh" content="2">
<meta name="viewport" content="width=device-width">
<meta name="color-scheme" content="light dark">
<link rel="icon" href="data:,">
<title>Halfbyte</title>
<p>The model is being loaded. The page opens by itself when it is there.
"""


@contextlib.contextmanager
def answering(
    listener: socket.socket, tls: ssl.SSLContext | None = None, *, page: bool = False
) -> Iterator[None]:
    """Answer whoever connects to a listening socket, in a thread, until the block is left.

    With ``tls``, connections are wrapped in it. With ``page``, there will be one at ``/``.

    The main thread is free to load, and to be interrupted by a signal.
    """
    stop = threading.Event()
    thread = threading.Thread(
        target=_answer, args=(listener, tls, page, stop), name="halfbyte-loading", daemon=True
    )
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _answer(
    listener: socket.socket, tls: ssl.SSLContext | None, page: bool, stop: threading.Event
) -> None:
    listener.settimeout(_POLL_S)
    while not stop.is_set():
        try:
            connection, _ = listener.accept()
        except TimeoutError:
            continue
        except OSError:  # no more files, or the client is gone already
            stop.wait(_POLL_S)
            continue
        with contextlib.ExitStack() as stack:
            stack.enter_context(contextlib.suppress(OSError))
            stack.enter_context(connection).settimeout(_PATIENCE_S)
            if tls is not None:
                connection = stack.enter_context(tls.wrap_socket(connection, server_side=True))
            connection.sendall(_refusal(connection.recv(1 << 16), page))
            # Closing with unread bytes would take the answer away from the client.
            connection.shutdown(socket.SHUT_WR)
            connection.recv(1 << 16)


def _refusal(head: bytes, page: bool) -> bytes:
    """The whole response to a request that begins so."""
    error = ApiError(503, "The model is being loaded.", code="model_loading", retry_after=1)
    words = head.partition(b"\r\n")[0].split(b" ")
    path = words[1].partition(b"?")[0].decode("latin-1") if len(words) == 3 else ""
    if page and path == "/":
        return error.response(_PAGE, "text/html; charset=utf-8")
    return error.response(error_json(error, path))
