"""Steps of training: which windows, what is minimized, how fast.

Shape letters: B windows of a batch, L tokens of a window, T = B L tokens, D hidden size, S rows of
logits, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from halfbyte.errors import ConfigError, QuantizeError

from ...engine.config import EngineConfig
from ...loaders.base import Checkpoint
from ..walk import Walk
from ..windows import Windows
from .network import TrainNetwork

# Logits in float32 at once: 64 MB, and a few temporaries of that size.
_LOGITS = 1 << 24

OnStep = Callable[[int, int, float], None]
"""Told steps done, steps in all and the loss of the last one, in nats a token."""


@dataclass(frozen=True, slots=True)
class Course:
    """How long and how fast is trained.

    Attributes:
        steps: updates of the weights.
        batch: windows that an update sees.
        warmup: share of the steps in which rates rise to their full size; from there they fall as
            half a wave of a cosine, to 0 behind the last step.
        clip: largest norm of the gradient of all weights together; a larger one is scaled down.
        seed: of the order of windows, and of what else is drawn.
        compute: type of the products; None is bfloat16 where the processor multiplies that faster,
            else float32.
        recompute: save memory at the cost of a third more time; see :class:`.network.TrainNetwork`.

    Raises ConfigError for a number out of its range.
    """

    steps: int = 200
    batch: int = 4
    warmup: float = 0.05
    clip: float = 1.0
    seed: int = 0
    compute: torch.dtype | None = None
    recompute: bool = True

    def __post_init__(self) -> None:
        for name, least in (("steps", 1), ("batch", 1), ("warmup", 0), ("clip", 0)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name} is {getattr(self, name)}; expected at least {least}")

    @property
    def dtype(self) -> torch.dtype:
        """Type of the products."""
        if self.compute is not None:
            return self.compute
        fast = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
        return torch.bfloat16 if fast else torch.float32

    def rate(self, step: int) -> float:
        """Share of the full rates of a step, counted from 0."""
        rise = math.ceil(self.warmup * self.steps)
        if step < rise:
            return (step + 1) / rise
        return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, self.steps - rise)))

    def batches(self, count: int) -> list[list[int]]:
        """Numbers of the windows of each step; all ``count`` are seen before one is again."""
        generator = torch.Generator().manual_seed(self.seed)
        order: list[int] = []
        while len(order) < self.steps * self.batch:
            order += torch.randperm(count, generator=generator).tolist()
        return [order[i * self.batch : (i + 1) * self.batch] for i in range(self.steps)]


class Objective(Protocol):
    """What is minimized."""

    def loss(
        self, windows: Sequence[int], places_S: Tensor, logits_SV: Tensor, network: TrainNetwork
    ) -> Tensor:
        """Sum over some rows of a batch's logits [S, V].

        Args:
            windows: numbers of the batch's windows.
            places_S: places of the rows in the batch, int64; place b L + l is token l of window b.
            logits_SV: float32.
            network: the model that they are of.
        """
        ...


class NextToken:
    """The negative log-probability of the text.

    Args:
        windows: the text.
    """

    def __init__(self, windows: Windows) -> None:
        self._ids_WL = torch.tensor(windows.ids)

    def loss(
        self, windows: Sequence[int], places_S: Tensor, logits_SV: Tensor, network: TrainNetwork
    ) -> Tensor:
        """Sum of nats over rows [S]; see :class:`Objective`."""
        ids_T = self._ids_WL[list(windows)].flatten()
        return F.cross_entropy(logits_SV, ids_T[places_S + 1], reduction="sum")


class Teacher:
    """KL divergence from a model's own next-token distributions (Hinton et al., 2015).

    The model goes through the text once, layer by layer; of each token its residual behind the
    last layer is kept. Norm and head are those of the network in training, which are not trained.

    Args:
        checkpoint: the model.
        windows: the text.
        used: numbers of the windows that will be asked for.
        config: how the text goes through the model.
    """

    def __init__(
        self, checkpoint: Checkpoint, windows: Windows, used: Sequence[int], config: EngineConfig
    ) -> None:
        walk = Walk(checkpoint, config, [windows.ids[i] for i in used])
        for _ in range(walk.layers):
            walk.load_layer()
            walk.run_layer()
        rows_TD = torch.cat([x_TD.to("cpu", torch.float32) for x_TD in walk.residuals()])
        residuals = rows_TD.view(len(used), windows.length, -1)
        self._of: Mapping[int, Tensor] = dict(zip(used, residuals, strict=True))

    def loss(
        self, windows: Sequence[int], places_S: Tensor, logits_SV: Tensor, network: TrainNetwork
    ) -> Tensor:
        """Sum of nats over rows [S]; see :class:`Objective`."""
        x_TD = torch.cat([self._of[i] for i in windows])
        with torch.no_grad():
            wanted_SV = network.logits(x_TD[places_S]).log_softmax(-1)
        return F.kl_div(logits_SV.log_softmax(-1), wanted_SV, reduction="sum", log_target=True)


def train(
    network: TrainNetwork,
    optimizer: torch.optim.Optimizer,
    windows: Windows,
    course: Course,
    objective: Objective,
    progress: OnStep | None = None,
) -> list[float]:
    """Minimize an objective; the loss of each step before its update, in nats a token.

    Args:
        network: the model; what the optimizer holds of it is trained.
        optimizer: its rates are the full ones.
        windows: the text.
        course: how long and how fast.
        objective: what is minimized.
        progress: told after each step.

    Raises:
        QuantizeError: the loss is no finite number.
    """
    weights = [p for group in optimizer.param_groups for p in group["params"]]
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, course.rate)
    curve: list[float] = []
    # Dropout draws from torch's own generator, which is given back as it was.
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(course.seed)
        for step, batch in enumerate(course.batches(len(windows.ids))):
            optimizer.zero_grad()
            curve.append(backward(network, windows, batch, objective))
            if not math.isfinite(curve[-1]):
                raise QuantizeError(
                    f"the loss of step {step + 1} is {curve[-1]}; expected a finite number",
                    hint="train at a lower rate",
                )
            torch.nn.utils.clip_grad_norm_(weights, course.clip)
            optimizer.step()
            schedule.step()
            if progress is not None:
                progress(step + 1, course.steps, curve[-1])
    return curve


@torch.no_grad()
def mean_loss(network: TrainNetwork, windows: Windows, objective: Objective) -> float:
    """The loss of a text in nats a token, window by window."""
    total, count = 0.0, windows.length - 1 - windows.first
    for number, ids in enumerate(windows.ids):
        x_TD = network.residual([ids])
        for places_S in _counted(windows, 1, network.config.vocab_size):
            logits_SV = network.logits(x_TD[places_S])
            total += float(objective.loss([number], places_S, logits_SV, network))
    return total / (count * len(windows.ids))


def backward(
    network: TrainNetwork, windows: Windows, batch: Sequence[int], objective: Objective
) -> float:
    """Add the gradient of the mean loss of a batch to the weights; that mean, in nats a token.

    Logits are computed a few rows at a time, and the gradient of each few at once: those of a large
    vocabulary would need more memory than the rest.
    """
    x_TD = network.residual([windows.ids[i] for i in batch])
    top_TD = x_TD.detach().requires_grad_()
    total, count = 0.0, len(batch) * (windows.length - 1 - windows.first)
    for places_S in _counted(windows, len(batch), network.config.vocab_size):
        logits_SV = network.logits(top_TD[places_S])
        loss = objective.loss(batch, places_S, logits_SV, network) / count
        loss.backward()
        total += float(loss.detach())
    x_TD.backward(top_TD.grad)
    return total


def _counted(windows: Windows, many: int, vocabulary: int) -> Iterator[Tensor]:
    """Places of a batch whose next tokens count, some at a time."""
    length = windows.length
    inside = torch.arange(windows.first, length - 1)
    places = (torch.arange(many)[:, None] * length + inside).flatten()
    return iter(places.split(max(1, _LOGITS // vocabulary)))
