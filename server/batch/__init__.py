"""Offline batches: OpenAI's batch lines, answered by the server's own service without a server."""
