"""Low-rank adapters trained over a model whose own weights stay as they are, codes or not.

Source: LoRA (Hu et al., 2021, arXiv 2106.09685) over 4-bit weights, QLoRA (Dettmers et al., 2023,
arXiv 2305.14314). A module computes ``x W^T + alpha / r (x A^T) B^T``; W is dequantized on every
use. A begins uniform within ``1 / sqrt(K)`` and B at 0, as in PEFT, so training begins at the model
as it is.

Shape letters: T tokens, N outputs, K inputs of a matrix, R rank.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from halfbyte.errors import ConfigError

from ...kernels.formats.canonical import Weight
from ...loaders.base import Checkpoint
from ...loaders.model.families import MODEL_FAMILIES
from ...loaders.model.fused import FUSED
from ..windows import Windows
from .loop import Course, NextToken, OnStep, mean_loss, train
from .network import TrainNetwork
from .products import FrozenProduct, ModuleProduct

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP = ("gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True, slots=True)
class AdapterSettings:
    """What adapters are, and how they are trained.

    Attributes:
        rank: columns of A and B.
        alpha: an adapter's product is scaled by ``alpha / rank``.
        dropout: share of an adapter's inputs that each step of training leaves out.
        targets: last names of the modules that get one.
        rate: Adam's rate.
        course: how long and how fast.

    Raises ConfigError for a number out of its range, and for targets that no model has.
    """

    rank: int = 16
    alpha: float = 32
    dropout: float = 0.0
    targets: tuple[str, ...] = ATTENTION + MLP
    rate: float = 2e-4
    course: Course = field(default_factory=Course)

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ConfigError(f"rank is {self.rank}; expected at least 1")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"dropout is {self.dropout}; expected 0 to less than 1")
        for name in ("alpha", "rate"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} is {getattr(self, name)}; expected more than 0")
        unknown = sorted(set(self.targets) - {*ATTENTION, *MLP})
        if unknown or not self.targets:
            raise ConfigError(
                f"targets has {unknown[0] if unknown else 'nothing'!r}; expected some of "
                + ", ".join(ATTENTION + MLP)
            )


@dataclass(slots=True)
class Adapter:
    """What is added to one matrix [N, K]: ``scale * B @ A``.

    Attributes:
        a_RK: float32 [R, K].
        b_NR: float32 [N, R].
        scale: ``alpha / rank``.
    """

    a_RK: Tensor
    b_NR: Tensor
    scale: float


class AdaptedProduct:
    """A frozen product and what its adapter adds.

    Args:
        base: the product [N, K].
        adapter: its adapter.
        dropout: share of the adapter's inputs that is left out where gradients are taken.
    """

    def __init__(self, base: FrozenProduct, adapter: Adapter, dropout: float) -> None:
        self._base, self._adapter, self._dropout = base, adapter, dropout
        self.shape = base.shape
        self.nbytes = base.nbytes + adapter.a_RK.nbytes + adapter.b_NR.nbytes

    def __call__(self, x_TK: Tensor) -> Tensor:
        """Float32 [T, K] -> float32 [T, N]."""
        y_TN = self._base(x_TK)
        if self._dropout and torch.is_grad_enabled():
            x_TK = F.dropout(x_TK, self._dropout)
        h_TR = x_TK @ self._adapter.a_RK.T
        return torch.addmm(y_TN, h_TR, self._adapter.b_NR.T, alpha=self._adapter.scale)


@dataclass(slots=True)
class Finetuned:
    """Adapters, and what training them did.

    Attributes:
        adapters: by the full names of their modules.
        curve: loss of each step, in nats a token.
        before: mean loss on the text that was held out, before; None when there is none.
        after: the same after.
    """

    adapters: dict[str, Adapter]
    curve: list[float]
    before: float | None = None
    after: float | None = None


def check_targets(checkpoint: Checkpoint, targets: tuple[str, ...]) -> None:
    """Raises ConfigError when transformers knows a target of this model under no name of its own,
    so that no adapter of it could be loaded there.
    """
    config = checkpoint.config
    family = next(f for f in MODEL_FAMILIES if f.name == config.architecture)
    for whole, parts in FUSED.items():
        names = [part.rpartition(".")[2] for part in parts]
        for target in targets:
            if whole in family.hf.stacked and target in names:
                raise ConfigError(
                    f"targets has {target!r}, which is a part of {whole} in {config.architecture}",
                    hint="use o_proj,down_proj",
                )
    wanted = [target for target in targets if target in MLP]
    if config.experts is not None and wanted:
        raise ConfigError(
            f"targets has {wanted[0]!r}, but {config.architecture} has experts, which take no "
            "adapters yet",
            hint=f"use {','.join(ATTENTION)}",
        )


def train_adapters(
    checkpoint: Checkpoint,
    windows: Windows,
    settings: AdapterSettings | None = None,
    held_out: Windows | None = None,
    progress: OnStep | None = None,
) -> Finetuned:
    """Train adapters to predict a text.

    Args:
        checkpoint: the model, quantized or not.
        windows: the text.
        settings: what and how.
        held_out: a text that is judged before and after.
        progress: told after each step.

    Raises:
        ConfigError: the model has no such targets.
        QuantizeError: the loss is no finite number.
    """
    settings = settings or AdapterSettings()
    course, rank = settings.course, settings.rank
    check_targets(checkpoint, settings.targets)
    generator = torch.Generator().manual_seed(course.seed)
    adapters: dict[str, Adapter] = {}

    def make(module: str, weight: Weight, bias: Tensor | None) -> ModuleProduct:
        base = FrozenProduct(weight, bias, course.dtype)
        if module.rpartition(".")[2] not in settings.targets:
            return base
        n, k = base.shape
        a_RK = torch.empty(rank, k).uniform_(-(k**-0.5), k**-0.5, generator=generator)
        adapter = Adapter(
            a_RK.requires_grad_(),
            torch.zeros(n, rank, requires_grad=True),
            settings.alpha / rank,
        )
        adapters[module] = adapter
        return AdaptedProduct(base, adapter, settings.dropout)

    network = TrainNetwork(checkpoint, make, course.dtype, course.recompute)
    objective = NextToken(windows)
    done = Finetuned(adapters, [])
    if held_out is not None:
        done.before = mean_loss(network, held_out, NextToken(held_out))
    weights = [x for adapter in adapters.values() for x in (adapter.a_RK, adapter.b_NR)]
    optimizer = torch.optim.Adam(weights, lr=settings.rate, fused=True)
    done.curve = train(network, optimizer, windows, course, objective, progress)
    if held_out is not None:
        done.after = mean_loss(network, held_out, NextToken(held_out))
    return done
