"""Requests from other threads and processes: the client, its streams, finished text."""
