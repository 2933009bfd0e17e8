"""Endpoints of other programs' APIs, as functions over what `OpenAIService` offers."""
