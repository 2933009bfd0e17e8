"""Granite's factors on embeddings, residual, scores and logits, as what every model has.

A block adds ``m * f(norm(x))`` to the residual x. With ``x' = x / m`` it adds ``f(norm(x))`` to x',
and the norm of x is that of x' with ``eps / m ** 2``: nothing that is quantized takes the factor,
and no op is added. Embeddings are divided by m instead.
"""

from __future__ import annotations

from dataclasses import replace

from .config import ModelConfig
from .report import LoadReport

LEAST, MOST = 1e-4, 1e4
"""Bounds of such a factor."""


def with_multipliers(
    config: ModelConfig,
    report: LoadReport,
    *,
    embedding: float,
    residual: float,
    attention: float,
    logits: float,
) -> ModelConfig:
    """A config whose factors are put away.

    Args:
        config: without factors.
        report: gets what became of that on the residual.
        embedding: on embeddings.
        residual: on what a block adds to the residual.
        attention: on the scores; 0 means ``head_dim ** -0.5``.
        logits: what the final logits are divided by.
    """
    scale, eps = embedding / residual, config.rms_norm_eps / residual**2
    if residual != 1.0:
        report.decide(
            f"residual times {residual:g}: embeddings times {scale:g} and an epsilon of {eps:g} "
            "mean the same"
        )
    return replace(
        config,
        embedding_scale=scale,
        rms_norm_eps=eps,
        attention_scale=attention,
        logit_scale=1.0 / logits,
    )
