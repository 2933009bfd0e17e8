"""The ``halfbyte`` command, also as ``python -m halfbyte``: ctrl-C is quiet from here on.

Importing the commands takes a tenth of a second, in which an interrupt would print a traceback.
"""

from __future__ import annotations

import os
import signal


def main() -> None:
    """Run the command line; the entry point of the installed program."""
    # A program in the background may have been told to ignore ctrl-C.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _leave)
    from halfbyte.cli.main import main as run

    run()


def _leave(signum: int, frame: object) -> None:
    """End at once: nothing was begun that would have to be put in order."""
    os.write(2, b"\ninterrupted\n" if os.isatty(2) else b"interrupted\n")
    os._exit(130)


if __name__ == "__main__":
    main()
