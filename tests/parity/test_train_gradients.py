"""Gradients of the network that is trained against transformers', for every family."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from tiny_models import CASES, make_model, save_model
from torch import Tensor

from halfbyte.errors import UnsupportedModelError
from halfbyte.kernels.formats.canonical import QuantizedLinear, Weight
from halfbyte.loaders import open_checkpoint
from halfbyte.loaders.model.fused import FUSED
from halfbyte.quantize.train.loop import NextToken, backward
from halfbyte.quantize.train.network import TrainNetwork
from halfbyte.quantize.windows import Windows


class _Leaf:
    """A product whose weight gets a gradient."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self.weight = weight.clone().requires_grad_()
        self.bias, self.nbytes = bias, weight.nbytes
        self.shape = int(weight.shape[0]), int(weight.shape[1])

    def __call__(self, x_TK: Tensor) -> Tensor:
        return torch.nn.functional.linear(x_TK, self.weight, self.bias)


TRAINED = [name for name in CASES if CASES[name][0] not in ("qwen3_next", "qwen3_5")]


@pytest.mark.parametrize("name", TRAINED)
def test_gradients_of_the_text(name: str, tmp_path: Path) -> None:
    """Of all matrices that both have under a name, stacked ones among them, over two texts longer
    than the windows. Float32 sums in another order; a missing path shows as 1e-1.
    """
    seed = 7 if "mixtral" in name or "moe" in name else random.randrange(1 << 40)
    model = make_model(name, seed)
    checkpoint = open_checkpoint(save_model(model, tmp_path / name))
    leaves: dict[str, _Leaf] = {}

    def make(module: str, weight: Weight, bias: Tensor | None) -> _Leaf:
        assert not isinstance(weight, QuantizedLinear)
        leaves[module] = _Leaf(weight, bias)
        return leaves[module]

    rng = random.Random(seed)
    ids = [[rng.randrange(256) for _ in range(40)] for _ in range(2)]
    windows = Windows(tuple(map(tuple, ids)))
    network = TrainNetwork(checkpoint, make, recompute=random.random() < 0.5)
    loss = backward(network, windows, [0, 1], NextToken(windows))
    checkpoint.close()
    batch = torch.tensor(ids)
    logits = model(batch, use_cache=False).logits[:, :-1]
    want = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
    want.backward()
    assert loss == pytest.approx(float(want.detach()), rel=1e-5)
    compared = 0
    for module, linear in model.named_modules():
        layer, _, rest = module.rpartition(".")
        block = layer.rpartition(".")[2]
        parts, above = (f"{block}.{rest}",), layer.rpartition(".")[0]
        if module not in leaves:  # one tensor of several
            parts = FUSED.get(parts[0], parts)
        found = [leaves.get(f"{above}.{part}") for part in parts]
        if all(found) and isinstance(linear, torch.nn.Linear):
            grads = [leaf.weight.grad for leaf in found if leaf is not None]
            mine = torch.cat([grad for grad in grads if grad is not None])
            theirs = linear.weight.grad
            assert theirs is not None
            assert (mine - theirs).norm() <= 1e-4 * theirs.norm(), module
            compared += len(parts)
    experts = [module for module in leaves if ".experts." in module or module.endswith("mlp.gate")]
    # Attention's four at least, whatever takes the place of an MLP.
    assert compared + len(experts) == len(leaves)
    assert compared >= 4 * model.config.num_hidden_layers


@pytest.mark.parametrize("name", ["qwen3_next", "qwen3_5"])
def test_models_with_states_are_not_trained(name: str, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(save_model(make_model(name, 1), tmp_path / name))
    with pytest.raises(UnsupportedModelError, match="delta rule, which cannot be trained"):
        TrainNetwork(checkpoint)
    checkpoint.close()
