"""Why there is no reranking here."""

from __future__ import annotations

from collections.abc import Mapping

_REASON = (
    "This model cannot rerank: that takes a cross-encoder, which was trained to say how relevant "
    "a text is. A causal model has log-probabilities, which /score gives."
)
REFUSED_RERANK: Mapping[str, str] = dict.fromkeys(("/rerank", "/v1/rerank", "/v2/rerank"), _REASON)
"""Path -> why it is not there."""
