"""What a quantized model lost: its next-token distributions beside those of its reference.

Both models go through the text layer by layer, so neither lies in memory as a whole.

Shape letters: L tokens of a window, V vocabulary, R rows of logits, T tokens of a batch, S some of
them, K inputs and N outputs of a matrix.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import torch
from torch import Tensor

from halfbyte.errors import ConfigError, QuantizeError

from ..engine.config import EngineConfig
from ..engine.text.tokenizer_thread import LayersDone
from ..loaders.base import Checkpoint
from .places import Places, compare_rows, losses
from .unfold import Folded, find_folded
from .walk import LOGIT_ROWS, StackedLinear, Walk
from .windows import Windows

# Rows of outputs that are compared at once, to stay in a cache.
_BLOCK = 256


@dataclass(frozen=True, slots=True)
class WindowScore:
    """One window.

    Attributes:
        kl: mean KL divergence of the quantized model's distributions from the reference's, nats.
        top1: share of places where both have the same first choice.
        nll: mean negative log-probability of the text under the quantized model, nats.
        nll_reference: the same under the reference.
    """

    kl: float
    top1: float
    nll: float
    nll_reference: float


@dataclass(frozen=True, slots=True)
class LinearScore:
    """One matrix, on the reference's own inputs.

    Attributes:
        module: full name.
        relative: norm of the difference of outputs over the norm of the reference's.
        cosine: of both outputs, over all tokens.
        undone: scales that a tool had folded into what makes the inputs were undone.
    """

    module: str
    relative: float
    cosine: float
    undone: bool = False


@dataclass(frozen=True, slots=True)
class LayerScore:
    """One layer.

    Attributes:
        layer: number from 0.
        residual: norm of the difference of residuals behind it over the norm of the reference's:
            what all layers up to here have done.
        linears: its matrices; empty unless asked for.
    """

    layer: int
    residual: float
    linears: tuple[LinearScore, ...]


@dataclass(frozen=True, slots=True)
class Flips:
    """Places at which the two models' first choices differ.

    Attributes:
        places: how many were compared.
        changed: at how many the choices differ.
        lost: share of places at which the reference's choice was the text's next token, and the
            quantized model's is not.
        gained: the other way round.
    """

    places: int
    changed: int
    lost: float
    gained: float


@dataclass(frozen=True, slots=True)
class Accuracy:
    """A quantized model against its reference.

    Attributes:
        kl_mean: mean KL(reference || quantized) of next-token distributions, nats a token.
        kl_p99: what 99 % of the places stay below.
        top1: share of places where both have the same first choice.
        ppl: perplexity of the quantized model.
        ppl_reference: of the reference.
        flips: where first choices differ.
        windows: each window.
        layers: each layer.
        digest: of the windows; equal for equal token ids, lengths and places that count.
        places: what both models say at each place.
    """

    kl_mean: float
    kl_p99: float
    top1: float
    ppl: float
    ppl_reference: float
    flips: Flips
    windows: tuple[WindowScore, ...]
    layers: tuple[LayerScore, ...]
    digest: str
    places: Places = field(repr=False)

    def to_dict(self) -> dict[str, Any]:
        """Everything but the places, as plain JSON types."""
        kept = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "places"}
        for name in ("flips", "windows", "layers"):
            value = kept[name]
            several = isinstance(value, tuple)
            kept[name] = [asdict(x) for x in value] if several else asdict(value)
        return kept


def perplexity(
    checkpoint: Checkpoint,
    windows: Windows,
    config: EngineConfig | None = None,
    progress: LayersDone | None = None,
) -> tuple[float, list[float]]:
    """exp of the mean negative log-probability, and that mean of each window in nats.

    Raises:
        ConfigError: the engine options contradict each other, or the machine.
        UnsupportedWeightError: the backend cannot run a weight.
    """
    walk = Walk(checkpoint, config or EngineConfig(), windows.ids)
    for _ in range(walk.layers):
        walk.load_layer()
        walk.run_layer()
        if progress is not None:
            progress(walk.layer, walk.layers)
    found: list[Tensor] = []
    for logits_RV, following in _rows(windows, walk):
        found.append(losses(logits_RV, following))
    means = torch.cat(found).view(len(windows.ids), -1).mean(1).tolist()
    _check_finite(checkpoint, means)
    return _exp_mean(means), means


def compare(
    quantized: Checkpoint,
    reference: Checkpoint,
    windows: Windows,
    config: EngineConfig | None = None,
    linears: bool = False,
    progress: LayersDone | None = None,
) -> Accuracy:
    """Judge a quantized model by its reference.

    Args:
        quantized: the model to judge.
        reference: what it was made from.
        windows: a text in the tokens of both.
        config: how both are computed; by default in floats, so that what the weights lost is seen
            apart from rounded activations. A format that rounds activations itself does so.
        linears: judge every matrix on the reference's inputs, too.
        progress: told after each layer.

    Raises:
        ConfigError: the two have different layers or vocabularies, or options contradict.
        UnsupportedWeightError: the backend cannot run a weight.
    """
    for name in ("num_layers", "hidden_size", "vocab_size"):
        ours, theirs = getattr(quantized.config, name), getattr(reference.config, name)
        if ours != theirs:
            raise ConfigError(
                f"{name} is {ours} in {quantized.path.name} and {theirs} in {reference.path.name}",
                hint="name the model that the quantized one was made from",
            )
    config = config or EngineConfig(activations="float")
    walks = [Walk(checkpoint, config, windows.ids) for checkpoint in (reference, quantized)]
    ours, theirs = walks[1], walks[0]
    layers: list[LayerScore] = []
    for layer in range(theirs.layers):
        for walk in walks:
            walk.load_layer()
        sums = None
        if linears:
            sums = _Sums(ours, find_folded(quantized, reference, layer, list(theirs.linears)))
        theirs.run_layer(sums and sums.add)
        ours.run_layer()
        residual = _relative(ours.residuals(), theirs.residuals())
        layers.append(LayerScore(layer, residual, sums.scores() if sums else ()))
        if progress is not None:
            progress(theirs.layer, theirs.layers)
    return _judged(windows, ours, theirs, layers)


class _Sums:
    """Sums over batches, for each matrix: of the reference's outputs a and their differences d.

    Args:
        ours: the quantized model's walk, with the same layer loaded as the reference's.
        folded: what its tool scaled, by module.
    """

    def __init__(self, ours: Walk, folded: dict[str, Folded]) -> None:
        self._ours, self._folded = ours, folded
        self._sums: dict[str, list[float]] = {}

    def add(self, linear: StackedLinear, x_TK: Tensor, y_TN: Tensor) -> None:
        """The reference's inputs and outputs of a matrix, or of several that are stacked."""
        products: dict[int, Tensor] = {}
        begin = 0
        for module in linear.modules:
            own, rows = self._ours.linears[module]
            factors = self._folded[module]
            if id(own) not in products:
                products[id(own)] = self._ours.product(own.packed, factors.seen(x_TK))
            b = products[id(own)][:, rows]
            a = y_TN[:, begin : begin + b.shape[1]]
            begin += b.shape[1]
            sums = self._sums.setdefault(module, [0.0] * 3)
            for a_SN, b_SN in zip(a.split(_BLOCK), b.split(_BLOCK), strict=True):
                a_SN = a_SN.float()
                d_SN = factors.undone(b_SN) - a_SN
                for i, (one, two) in enumerate(((a_SN, a_SN), (d_SN, d_SN), (a_SN, d_SN))):
                    sums[i] += float(torch.linalg.vecdot(one, two).sum(dtype=torch.float64))

    def scores(self) -> tuple[LinearScore, ...]:
        """Each module's, in the order in which they were computed."""
        found = []
        for name, (aa, dd, ad) in self._sums.items():
            # With b = a + d. Differences first: where they are small, bb - aa would be noise.
            ab, bb = aa + ad, aa + 2 * ad + dd
            cosine = ab / max((aa * max(bb, 0.0)) ** 0.5, 1e-30)
            relative = (dd / max(aa, 1e-30)) ** 0.5
            found.append(LinearScore(name, relative, cosine, self._folded[name].scaled))
        return tuple(found)


def _relative(ours: Iterable[Tensor], theirs: Iterable[Tensor]) -> float:
    """Norm of the difference of residuals [T, D] over the norm of the second."""
    difference = total = 0.0
    for a, b in zip(ours, theirs, strict=True):
        difference += float((a.float() - b.float()).square().sum())
        total += float(b.float().square().sum())
    return (difference / total) ** 0.5


def _rows(windows: Windows, *walks: Walk) -> Iterator[tuple[Tensor, ...]]:
    """Blocks of logits [R, V] of each walk, and the tokens that follow, int64 [R].

    The last place of a window has a distribution, but no next token that it could be held to.
    """
    first, last = windows.first, windows.length - 1
    following = (
        part for ids in windows.ids for part in torch.tensor(ids[first + 1 :]).split(LOGIT_ROWS)
    )
    logits = (walk.logits(first, last) for walk in walks)
    return zip(*logits, following, strict=True)


def _judged(windows: Windows, ours: Walk, theirs: Walk, layers: Sequence[LayerScore]) -> Accuracy:
    """From the logits of both, after the last layer."""
    parts = [compare_rows(q_RV, p_RV, ids) for q_RV, p_RV, ids in _rows(windows, ours, theirs)]
    every = Places.join(parts, len(windows.ids))
    following = torch.tensor([ids[windows.first + 1 :] for ids in windows.ids])
    same = every.choice == every.choice_reference
    right, was_right = every.choice == following, every.choice_reference == following
    scores = tuple(
        WindowScore(*each)
        for each in zip(
            every.kl.mean(1).tolist(),
            same.double().mean(1).tolist(),
            every.nll.mean(1).tolist(),
            every.nll_reference.mean(1).tolist(),
            strict=True,
        )
    )
    _check_finite(theirs.checkpoint, [score.nll_reference for score in scores])
    _check_finite(ours.checkpoint, [score.nll + score.kl for score in scores])
    return Accuracy(
        kl_mean=float(every.kl.mean()),
        kl_p99=float(every.kl.flatten().quantile(0.99)),
        top1=float(same.double().mean()),
        ppl=_exp_mean([score.nll for score in scores]),
        ppl_reference=_exp_mean([score.nll_reference for score in scores]),
        flips=Flips(
            places=same.numel(),
            changed=int((~same).sum()),
            lost=float((was_right & ~right).double().mean()),
            gained=float((right & ~was_right).double().mean()),
        ),
        windows=scores,
        layers=tuple(layers),
        digest=windows.digest(),
        places=every,
    )


def _check_finite(checkpoint: Checkpoint, nats: Sequence[float]) -> None:
    for window, value in enumerate(nats):
        if not math.isfinite(value):
            raise QuantizeError(
                f"the logits of {checkpoint.path.name} in window {window} are not finite; expected "
                "finite numbers to judge",
                hint="the model overflows on this text: is the checkpoint damaged?",
            )


def _exp_mean(nats: Sequence[float]) -> float:
    """Perplexity of windows with equally many tokens that count, from their means."""
    return float(torch.tensor(nats, dtype=torch.float64).mean().exp())
