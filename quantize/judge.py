"""What a quantized model lost: its next-token distributions beside those of its reference.

Both models go through the text layer by layer, so neither lies in memory as a whole.

Shape letters: L tokens of a window, V vocabulary, T tokens of a batch, N outputs of a matrix.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from halfbyte.errors import ConfigError

from ..engine.config import EngineConfig
from ..engine.text.tokenizer_thread import LayersDone
from ..loaders.base import Checkpoint
from .walk import StackedLinear, Walk
from .windows import Windows

# Rows of logits in float64 at once.
_ROWS = 64


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
    """

    module: str
    relative: float
    cosine: float


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
class Accuracy:
    """A quantized model against its reference.

    Attributes:
        kl_mean: mean KL(reference || quantized) of next-token distributions, nats a token.
        kl_p99: what 99 % of the places stay below.
        top1: share of places where both have the same first choice.
        ppl: perplexity of the quantized model.
        ppl_reference: of the reference.
        windows: each window.
        layers: each layer.
    """

    kl_mean: float
    kl_p99: float
    top1: float
    ppl: float
    ppl_reference: float
    windows: tuple[WindowScore, ...]
    layers: tuple[LayerScore, ...]


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
    means = [
        float(_nll(logits.log_softmax(-1), ids, windows.first).mean())
        for ids, logits in zip(windows.ids, walk.logits(), strict=True)
    ]
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
        sums = _Sums()

        def watch(linear: StackedLinear, x: Tensor, y: Tensor, sums: _Sums = sums) -> None:
            sums.add(theirs, ours, linear, x, y)

        theirs.run_layer(watch if linears else None)
        ours.run_layer()
        residual = _relative(ours.residuals(), theirs.residuals())
        layers.append(LayerScore(layer, residual, sums.scores()))
        if progress is not None:
            progress(theirs.layer, theirs.layers)
    return _judged(windows, theirs.logits(), ours.logits(), layers)


@dataclass(slots=True)
class _Sums:
    """Sums over batches of outputs' products: of differences, of both models, across."""

    of: dict[str, list[float]] = field(default_factory=dict)

    def add(self, theirs: Walk, ours: Walk, linear: StackedLinear, x: Tensor, y: Tensor) -> None:
        """Outputs ``y`` [T, N] of the reference for ``x`` [T, K], against the other's."""
        known: dict[int, Tensor] = {}
        for module in linear.modules:
            own, rows = ours.linears[module]
            if id(own) not in known:
                known[id(own)] = ours.product(own.packed, x).float()
            a = y[:, theirs.linears[module][1]].float()
            b = known[id(own)][:, rows]
            sums = self.of.setdefault(module, [0.0] * 4)
            for i, value in enumerate(((a - b).square(), a.square(), b.square(), a * b)):
                sums[i] += float(value.sum())

    def scores(self) -> tuple[LinearScore, ...]:
        """Each module's, in the order in which they were computed."""
        return tuple(
            LinearScore(name, (d / max(a, 1e-30)) ** 0.5, ab / max((a * b) ** 0.5, 1e-30))
            for name, (d, a, b, ab) in self.of.items()
        )


def _relative(ours: Iterable[Tensor], theirs: Iterable[Tensor]) -> float:
    """Norm of the difference of residuals [T, D] over the norm of the second."""
    difference = total = 0.0
    for a, b in zip(ours, theirs, strict=True):
        difference += float((a.float() - b.float()).square().sum())
        total += float(b.float().square().sum())
    return (difference / total) ** 0.5


def _judged(
    windows: Windows,
    theirs: Iterable[Tensor],
    ours: Iterable[Tensor],
    layers: Sequence[LayerScore],
) -> Accuracy:
    """From logits [L, V] of the reference and of the quantized model, window after window."""
    scores, every, same = [], [], 0
    for ids, p_LV, q_LV in zip(windows.ids, theirs, ours, strict=True):
        p_LV, q_LV = p_LV.log_softmax(-1), q_LV.log_softmax(-1)
        # Of the places whose next token counts; the last of a window has none, but a distribution.
        places = slice(windows.first, len(ids) - 1)
        kl = torch.cat(
            [
                (p.exp() * (p - q)).sum(-1, dtype=torch.float64)
                for p, q in zip(p_LV[places].split(_ROWS), q_LV[places].split(_ROWS), strict=True)
            ]
        )
        agree = p_LV[places].argmax(-1) == q_LV[places].argmax(-1)
        nll = float(_nll(q_LV, ids, windows.first).mean())
        nll_reference = float(_nll(p_LV, ids, windows.first).mean())
        top1 = float(agree.float().mean())
        scores.append(WindowScore(float(kl.mean()), top1, nll, nll_reference))
        every.append(kl)
        same += int(agree.sum())
    kl = torch.cat(every)
    return Accuracy(
        kl_mean=float(kl.mean()),
        kl_p99=float(kl.quantile(0.99)),
        top1=same / kl.numel(),
        ppl=_exp_mean([score.nll for score in scores]),
        ppl_reference=_exp_mean([score.nll_reference for score in scores]),
        windows=tuple(scores),
        layers=tuple(layers),
    )


def _nll(logprobs_LV: Tensor, ids: Sequence[int], first: int) -> Tensor:
    """Negative log-probabilities of the tokens behind place ``first``, float64."""
    following = torch.tensor(ids[first + 1 :])
    found = logprobs_LV[first : len(ids) - 1].gather(1, following[:, None])
    return -found.squeeze(1).double()


def _exp_mean(nats: Sequence[float]) -> float:
    """Perplexity of windows with equally many tokens that count, from their means."""
    return float(torch.tensor(nats, dtype=torch.float64).mean().exp())
