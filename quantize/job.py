"""A whole run of quantizing: from an open model to a checked output on disk."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ..engine.config import EngineConfig
from ..loaders import open_checkpoint
from ..loaders.base import Checkpoint
from ..loaders.model.quantizing import is_decoder_linear
from .calibration import calibration_windows
from .pipeline import LayerReport, quantize_model
from .recipe import Recipe, Request, make_recipe
from .staging import Staging
from .windows import Windows
from .write.card import CardFacts
from .write.check import check_written


@dataclass(frozen=True, slots=True)
class QuantizeJob:
    """What is to be done.

    Attributes:
        model: a dense model.
        out: the folder or file to make.
        request: method, scheme and format.
        calibration: a file, or None = the model's own samples.
        samples: windows to calibrate on.
        length: tokens of each.
        seed: of everything that is drawn.
        resume: go on with what an earlier run left.
    """

    model: Checkpoint
    out: Path
    request: Request
    calibration: Path | None = None
    samples: int = 32
    length: int = 512
    seed: int = 0
    resume: bool = False


@dataclass(frozen=True, slots=True)
class Made:
    """What came out.

    Attributes:
        nbytes: of the output.
        bits: of a quantized weight, with its scales.
        error: mean over matrices of the error of outputs over their norm; 0 without text.
    """

    nbytes: int
    bits: float
    error: float


def run_job(
    job: QuantizeJob,
    config: EngineConfig | None = None,
    done: Callable[[LayerReport], None] | None = None,
) -> Made:
    """Quantize, write, read back and compare; only then does the output appear.

    Args:
        job: what to do.
        config: how the text goes through the model.
        done: told after each layer.

    Raises:
        ConfigError: options contradict each other, or the model is quantized.
        QuantizeError: see :func:`.pipeline.quantize_model`, :class:`.staging.Staging` and the
            writers.
        RequestError: the calibration text does not do.
    """
    recipe = make_recipe(job.request, job.model)
    facts: dict[str, object] = {
        "model": str(job.model.path.resolve()),
        **recipe.settings,
        "calibration": None if job.calibration is None else str(job.calibration.resolve()),
        "samples": job.samples,
        "length": job.length,
        "seed": job.seed,
    }
    errors: list[float] = []

    def told(report: LayerReport) -> None:
        errors.extend(report.errors.values())
        if done is not None:
            done(report)

    with Staging(job.out, facts, job.resume) as staging:
        made = quantize_model(
            job.model,
            recipe.quantizer,
            _windows(job, recipe),
            smoother=recipe.smoother,
            config=config,
            done=told,
            matrices=recipe.matrices,
            others=recipe.others,
            keeper=staging,
        )
        staging.discard()
        staging.target.parent.mkdir()
        recipe.write(made, staging.target, _card(job, recipe))
        check_written(staging.target, made)
        staging.finish()
    return _measured(job.out, errors)


def _windows(job: QuantizeJob, recipe: Recipe) -> Windows | None:
    if not recipe.quantizer.calibrated and recipe.smoother is None:
        return None
    return calibration_windows(job.model, job.calibration, job.samples, job.length, job.seed)


def _card(job: QuantizeJob, recipe: Recipe) -> CardFacts:
    said = "the model's own samples" if job.calibration is None else job.calibration.name
    text = f"{job.samples} windows of {job.length} tokens of {said}, seed {job.seed}"
    calibrated = recipe.quantizer.calibrated or recipe.smoother is not None
    return CardFacts(
        method=job.request.method,
        settings={k: v for k, v in recipe.settings.items() if k != "method"},
        calibration=text if calibrated else "",
    )


def _measured(out: Path, errors: list[float]) -> Made:
    files = [out] if out.is_file() else [path for path in out.rglob("*") if path.is_file()]
    checkpoint = open_checkpoint(out)
    try:
        infos = [i for i in checkpoint.tensors() if is_decoder_linear(i.name, i.shape)]
    finally:
        checkpoint.close()
    weights = sum(math.prod(info.shape) for info in infos)
    bits = 8 * sum(info.nbytes for info in infos) / max(1, weights)
    size = sum(path.stat().st_size for path in files)
    return Made(size, bits, sum(errors) / max(1, len(errors)))
