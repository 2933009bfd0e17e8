"""The OpenAI-compatible server: a service that knows no web framework, and a thin HTTP face."""
