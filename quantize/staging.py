"""A quantized model on its way to disk: what is done of it, beside the folder that it will be.

Everything lies in ``OUT.partial`` until the files are written and checked; then one rename makes
them appear. Layers are kept as canonical weights, whatever format they are to be written in, with
the residuals behind the last of them, so that a run goes on where another was cut off and gives the
same bytes.

Shape letters: T tokens, D hidden size.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from halfbyte.errors import QuantizeError

from ..kernels.formats.canonical import QuantizedLinear, Weight
from ..kernels.formats.stored import StoredLinear
from ..kernels.formats.weight_format import ActivationFormat, WeightFormat
from .methods.gguf import stored_blocks

# Seconds of work that a kill may cost: residuals are large, so not each layer's are kept.
_KEEP_EVERY_S = 20.0
_ERRORS = "errors.jsonl"
_DONE = "done.json"


class Staging:
    """The work folder of one output; a context, which keeps it locked.

    Args:
        out: the file or folder to be; must not exist.
        settings: what the run was asked for; the same for all runs that go on with each other.
        resume: go on with what an earlier run left.

    Raises:
        QuantizeError: something is there already, settings differ, or another process works on it.
    """

    def __init__(self, out: Path, settings: Mapping[str, Any], resume: bool) -> None:
        self.out, self.folder = out, out.with_name(out.name + ".partial")
        self._settings, self._resume = dict(settings), resume
        self._kept: dict[str, Weight] = {}
        self._since = time.monotonic()

    def __enter__(self) -> Staging:
        if self.out.exists():
            raise QuantizeError(
                f"{self.out} exists; a quantized model is never written over something",
                hint="name another place, or remove it",
            )
        file = self.folder / "settings.json"
        if self.folder.exists() and not self._resume:
            raise QuantizeError(
                f"{self.folder} has the beginning of an earlier run",
                hint="--resume goes on with it; or remove it",
            )
        with _told(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = (self.folder / "lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._lock.close()
            raise QuantizeError(f"another process is writing {self.folder}") from None
        if file.exists():
            self._compare(json.loads(file.read_text()))
        else:
            self._write(file, json.dumps(self._settings, indent=1).encode())
        return self

    def __exit__(self, *failure: object) -> None:
        if self.folder.exists() and not any(self.folder.glob("*.safetensors")):
            # Nothing that a further run could go on with.
            shutil.rmtree(self.folder, ignore_errors=True)
        self._lock.close()

    def _compare(self, before: dict[str, Any]) -> None:
        for key in sorted(before.keys() | self._settings.keys()):
            a, b = before.get(key), json.loads(json.dumps(self._settings.get(key)))
            if a != b:
                raise QuantizeError(
                    f"{self.folder} was begun with {key} {a!r:.60}, and now it is {b!r:.60}",
                    hint="give the same options, or remove the folder",
                )

    @property
    def target(self) -> Path:
        """Where writers put the output, under its own name; nothing is there at first."""
        return self.folder / "out" / self.out.name

    def done(self) -> tuple[int, dict[str, Weight], Iterator[Tensor]] | None:
        """What an earlier run finished: layers, their weights, residuals [T, D] of each batch.

        None where nothing is. Raises QuantizeError, in the iterator, too, for damaged files.
        """
        file = self.folder / _DONE
        if not file.exists():
            return None
        with self._readable():
            facts = json.loads(file.read_text())
            layers, batches = int(facts["layers"]), int(facts["batches"])
            weights: dict[str, Weight] = {}
            for path in sorted(self.folder.glob("weights-*.safetensors")):
                if int(path.stem.split("-")[1]) <= layers:
                    weights |= _read(path)
        return layers, weights, self._residuals(layers, batches)

    def _residuals(self, layers: int, batches: int) -> Iterator[Tensor]:
        for batch in range(batches):
            with self._readable(), safe_open(self._residual(layers, batch), "pt") as reader:
                x_TD = reader.get_tensor("residual")
            yield x_TD

    @contextlib.contextmanager
    def _readable(self) -> Iterator[None]:
        try:
            yield
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            raise QuantizeError(
                f"{self.folder} is damaged: {error}", hint="remove it and begin anew"
            ) from None

    def _residual(self, layers: int, batch: int) -> Path:
        return self.folder / f"residual-{layers:04d}-{batch:04d}.safetensors"

    def keep(self, layers: int, weights: Mapping[str, Weight], residuals: Iterator[Tensor]) -> None:
        """Note what a layer became; now and then everything so far is written.

        Args:
            layers: how many are done.
            weights: of the layer.
            residuals: behind it, [T, D] of each batch; one is in memory at a time.
        """
        self._kept |= weights
        if time.monotonic() - self._since < _KEEP_EVERY_S:
            return
        _save(self.folder / f"weights-{layers:04d}.safetensors", *_tensors(self._kept))
        batches = 0
        for x_TD in residuals:
            _save(self._residual(layers, batches), {"residual": x_TD.contiguous().cpu()}, {})
            batches += 1
        # Last, and by a rename: a folder that says so has all that belongs to these layers.
        half = self.folder / "done.half"
        self._write(half, json.dumps({"layers": layers, "batches": batches}).encode())
        os.replace(half, self.folder / _DONE)
        for path in self.folder.glob("residual-*.safetensors"):
            if int(path.stem.split("-")[1]) < layers:
                path.unlink()
        self._kept.clear()
        self._since = time.monotonic()

    def note(self, layer: int, errors: Sequence[float]) -> None:
        """Note relative errors of the outputs of a layer's matrices, for :meth:`noted`."""
        # A line that a kill cut off stays apart from this one.
        with _told(self.folder), (self.folder / _ERRORS).open("a") as file:
            file.write("\n" + json.dumps([layer, list(errors)]))

    def noted(self) -> list[float]:
        """The errors of all layers, those of earlier runs, too; the last of a layer counts."""
        found: dict[int, list[float]] = {}
        file = self.folder / _ERRORS
        for line in file.read_text().splitlines() if file.exists() else ():
            with contextlib.suppress(ValueError):
                layer, errors = json.loads(line)
                found[layer] = errors
        return [error for errors in found.values() for error in errors]

    def finish(self) -> None:
        """Make the target appear as the output, and remove everything else."""
        with _told(self.out):
            if self.out.exists():
                raise QuantizeError(f"{self.out} was made by somebody else meanwhile")
            self.target.rename(self.out)
            shutil.rmtree(self.folder)

    def discard(self) -> None:
        """Remove what a failed writer left of the target; the layers stay."""
        shutil.rmtree(self.folder / "out", ignore_errors=True)

    def _write(self, path: Path, data: bytes) -> None:
        with _told(path):
            path.write_bytes(data)


@contextlib.contextmanager
def _told(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise QuantizeError(
            f"{path} cannot be written: {error.strerror}",
            hint="make room or choose another place; --resume goes on with the layers done",
        ) from None


def _save(path: Path, tensors: dict[str, Tensor], facts: dict[str, str]) -> None:
    """A safetensors file that is whole or not there."""
    half = path.with_suffix(".half")
    try:
        save_file(tensors, half, facts)
        os.replace(half, path)
    except (OSError, SafetensorError) as error:
        half.unlink(missing_ok=True)
        raise QuantizeError(
            f"{path} cannot be written: {error}",
            hint="make room or choose another place; --resume goes on with the layers done",
        ) from None


def _tensors(weights: Mapping[str, Weight]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Weights as tensors and facts of a safetensors file."""
    tensors: dict[str, Tensor] = {}
    facts: dict[str, str] = {}
    for name, weight in weights.items():
        if isinstance(weight, Tensor):
            tensors[name] = weight.contiguous()
            continue
        fact: dict[str, Any] = {"format": asdict(weight.format), "in": weight.in_features}
        if isinstance(weight, StoredLinear):
            fact["encoding"] = weight.encoding
            tensors[f"{name}:blocks"] = torch.cat(weight.parts)
        else:
            for part in ("codes", "scales", "zeros", "perm"):
                tensor = getattr(weight, part)
                if tensor is not None:
                    tensors[f"{name}:{part}"] = tensor.contiguous()
        facts[name] = json.dumps(fact)
    return tensors, facts


def _read(path: Path) -> dict[str, Weight]:
    """The same back."""
    weights: dict[str, Weight] = {}
    with safe_open(path, "pt") as reader:
        facts, keys = reader.metadata() or {}, set(reader.keys())
        for name, text in facts.items():
            fact = json.loads(text)
            if "encoding" in fact:
                blocks = reader.get_tensor(f"{name}:blocks")
                weights[name] = stored_blocks(
                    name, fact["encoding"], (len(blocks), fact["in"]), blocks
                )
                continue
            known = fact["format"]
            act = ActivationFormat(**known.pop("act")) if known["act"] else None
            known["table"] = tuple(known["table"])
            parts = {
                part: reader.get_tensor(f"{name}:{part}") if f"{name}:{part}" in keys else None
                for part in ("codes", "scales", "zeros", "perm")
            }
            codes, scales = parts["codes"], parts["scales"]
            assert codes is not None
            assert scales is not None
            known.pop("act", None)
            form = WeightFormat(**known, act=act)
            weights[name] = QuantizedLinear(
                name, form, codes, scales, parts["zeros"], fact["in"], parts["perm"]
            )
        weights |= {name: reader.get_tensor(name) for name in keys if ":" not in name}
    return weights
