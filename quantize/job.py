"""A whole run of quantizing: from an open model to a checked output on disk."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from halfbyte.errors import ConfigError, UnsupportedModelError

from ..engine.config import EngineConfig
from ..loaders import open_checkpoint
from ..loaders.base import Checkpoint
from ..loaders.model.quantizing import is_decoder_linear
from .calibration import calibration_windows
from .host_memory import trim_heap
from .mixing import mix
from .pipeline import LayerReport, Overlay, quantize_model
from .recipe import QAT_STEPS, Order, Recipe, make_recipe
from .spill import Spill
from .staging import Staging
from .train.loop import Course
from .train.qat import QATSettings, train_quantized
from .windows import Windows
from .write.card import CardFacts
from .write.check import check_written

Told = Callable[[int, int, str], None]
"""Told how many of how many layers, or steps, are done, and the error or loss of the last."""


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
        budget: most bits of a weight; bits of each matrix are then chosen by what they save.
        max_kl: most predicted KL, in place of a budget.
        resume: go on with what an earlier run left.
        spill: keep activations that wait in a file beside the output.
    """

    model: Checkpoint
    out: Path
    request: Order
    calibration: Path | None = None
    samples: int = 32
    length: int = 512
    seed: int = 0
    budget: float | None = None
    max_kl: float | None = None
    resume: bool = False
    spill: bool = False


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
    progress: Told | None = None,
) -> Made:
    """Quantize, write, read back and compare; only then does the output appear.

    Args:
        job: what to do.
        config: how the text goes through the model.
        progress: told after each layer, or step of training.

    Raises:
        ConfigError: options contradict each other, or the model is quantized.
        UnsupportedModelError: the model has layers of a kind that no writer knows.
        QuantizeError: see :func:`.pipeline.quantize_model`, :class:`.staging.Staging` and the
            writers.
        RequestError: the calibration text does not do.
    """
    if job.model.config.delta is not None:
        raise UnsupportedModelError(
            f"{job.model.config.architecture} has layers of the gated delta rule, which cannot be "
            "written yet",
            hint="it can be rounded as it is loaded: see the engine option quantize",
        )
    recipe, windows = make_recipe(job.request, job.model), None
    mixed = job.budget is not None or job.max_kl is not None
    if job.calibration is not None and not _calibrated(recipe) and not mixed:
        what = "--imatrix" if job.request.imatrix is not None else f"--method {job.request.method}"
        raise ConfigError(f"--calibration is given, but {what} looks at no text")
    if job.spill and (mixed or recipe.trained is not None or not _calibrated(recipe)):
        raise ConfigError(
            f"--spill keeps the activations of methods that go through a text once, layer by "
            f"layer; --method {job.request.method}{' with chosen bits' if mixed else ''} does not",
            hint="leave it out",
        )
    if recipe.file != (job.out.suffix == ".gguf"):
        what = "a file, whose name ends in .gguf" if recipe.file else "a folder"
        raise ConfigError(f"OUT is {job.out}; --format {recipe.settings['format']} makes {what}")
    facts: dict[str, object] = {
        "model": str(job.model.path.resolve()),
        **recipe.settings,
        "calibration": None if job.calibration is None else str(job.calibration.resolve()),
        "samples": job.samples,
        "length": job.length,
        "seed": job.seed,
    }
    facts |= {"budget": job.budget, "max_kl": job.max_kl}
    with Staging(job.out, facts, job.resume) as staging:
        if _calibrated(recipe) or mixed:
            windows = _windows(job)
        if mixed:
            assert windows is not None
            recipe = _mixed(job, windows, config, progress)
        made = _made(job, recipe, windows, config, staging, progress)
        errors = staging.noted()
        trim_heap()  # writing and comparing need as much again
        staging.discard()
        staging.target.parent.mkdir()
        recipe.write(made, staging.target, _card(job, recipe))
        check_written(staging.target, made)
        staging.finish()
    return _measured(job.out, errors)


def _made(
    job: QuantizeJob,
    recipe: Recipe,
    windows: Windows | None,
    config: EngineConfig | None,
    staging: Staging,
    progress: Told | None,
) -> Overlay:
    """The model in memory; errors of its matrices' outputs are noted in the folder."""
    if recipe.trained is not None:
        assert windows is not None
        course = Course(job.request.steps or QAT_STEPS, seed=job.seed)
        settings = QATSettings(course)

        def stepped(step: int, steps: int, loss: float) -> None:
            if progress is not None:
                progress(step, steps, f"loss {loss:.4f}")

        return train_quantized(job.model, recipe.trained, windows, settings, progress=stepped)[0]

    def told(report: LayerReport) -> None:
        staging.note(report.layer, list(report.errors.values()))
        if progress is not None:
            own = list(report.errors.values())
            said = f"error {100 * sum(own) / len(own):.2f} %" if own else ""
            progress(report.layer + 1, report.layers, said)

    return quantize_model(
        job.model,
        recipe.quantizer,
        windows,
        smoother=recipe.smoother,
        config=config,
        done=told,
        matrices=recipe.matrices,
        others=recipe.others,
        keeper=staging,
        spill=Spill(staging.folder) if job.spill else None,
    )


def _mixed(
    job: QuantizeJob, windows: Windows, config: EngineConfig | None, progress: Told | None
) -> Recipe:
    def measured(done: int, of: int) -> None:
        if progress is not None:
            progress(done, of, "measuring")

    return mix(
        job.request,
        job.model,
        windows,
        budget=job.budget,
        max_kl=job.max_kl,
        config=config,
        progress=measured,
    )


def _windows(job: QuantizeJob) -> Windows:
    return calibration_windows(job.model, job.calibration, job.samples, job.length, job.seed)


def _card(job: QuantizeJob, recipe: Recipe) -> CardFacts:
    said = "the model's own samples" if job.calibration is None else job.calibration.name
    text = f"{job.samples} windows of {job.length} tokens of {said}, seed {job.seed}"
    return CardFacts(
        method=job.request.method,
        settings={k: v for k, v in recipe.settings.items() if k != "method"},
        calibration=text if _calibrated(recipe) else "",
    )


def _calibrated(recipe: Recipe) -> bool:
    wanted = recipe.quantizer.calibrated or recipe.trained is not None
    return wanted or recipe.smoother is not None


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
