"""The chat page at ``/``: its files, and what the server does for it alone."""
