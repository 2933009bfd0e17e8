"""The meaning of every op in plain torch, in float32 or float64: slow, and the truth.

Shape letters: T tokens of a step, D hidden size, H query heads, J key/value heads, E head
dimension, B blocks, S tokens in a block, R rows (requests), V vocabulary, I MLP width.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .formats.activations import (
    piece_columns,
    quantize_activations,
    quantize_tokens,
    rounded_to_blocks,
)
from .formats.canonical import QuantizedLinear
from .formats.weight_format import ActivationFormat
from .formats.whole import whole_numbers

# Of the activation clipped_swiglu.
SWIGLU_ALPHA, SWIGLU_LIMIT = 1.702, 7.0


def rms_norm(x_TD: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    """``x / sqrt(mean(x**2) + eps) * weight`` over the last dimension -> [..., D].

    The mean square is taken in at least float32; the result has the input's dtype. Source:
    Zhang and Sennrich, 2019.
    """
    x = x_TD if x_TD.dtype == torch.float64 else x_TD.float()
    y = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)
    return (y.to(x_TD.dtype) * weight_D.to(x_TD.dtype)).to(x_TD.dtype)


def linear(x_TK: Tensor, weight_NK: Tensor, bias_N: Tensor | None = None) -> Tensor:
    """``x @ weight.T + bias`` -> [T, N] in the dtype of ``x``."""
    y = x_TK @ weight_NK.to(x_TK.dtype).T
    return y if bias_N is None else y + bias_N.to(y.dtype)


def quantized_linear(
    x_TK: Tensor, weight_NK: Tensor, bias_N: Tensor | None, rule: ActivationFormat
) -> Tensor:
    """``quantized(x) @ weight.T + bias`` -> [T, N] in the dtype of ``x``.

    Products are taken in at least float32. The sums over K come before the row's scale, so that
    they are exact where codes and weights are whole numbers and the sums fit the type.
    """
    q_TK, scale_T1 = quantize_activations(x_TK, rule)
    compute = torch.promote_types(x_TK.dtype, torch.float32)
    y = (q_TK.to(compute) @ weight_NK.to(compute).T) * scale_T1.to(compute)
    if bias_N is not None:
        y = y + bias_N.to(compute)
    return y.to(x_TK.dtype)


def block_linear(
    x_TK: Tensor, weight_NK: Tensor, bias_N: Tensor | None, perm_K: Tensor | None = None
) -> Tensor:
    """``rounded(x) @ weight.T + bias`` under ``int8-block32`` -> [T, N] in the dtype of ``x``.

    Blocks are cut from the columns as the weight's codes have them: those of ``x[:, perm]`` where
    columns were reordered (act-order). Products are taken in at least float32.
    """
    compute = torch.promote_types(x_TK.dtype, torch.float32)
    if perm_K is None:
        rounded_TK = rounded_to_blocks(x_TK)
    else:
        order_K = perm_K.long()
        rounded_TK = torch.empty(x_TK.shape, dtype=torch.float32)
        rounded_TK[:, order_K] = rounded_to_blocks(x_TK[:, order_K])
    y = rounded_TK.to(compute) @ weight_NK.to(compute).T
    if bias_N is not None:
        y = y + bias_N.to(compute)
    return y.to(x_TK.dtype)


def token_linear(x_TK: Tensor, weight: QuantizedLinear, bias_N: Tensor | None = None) -> Tensor:
    """``rounded(x) @ weight.T + bias`` under ``int8-token`` -> float32 [T, N], bit for bit.

    x stands for ``d * q`` with a scale d for each token, columns in the order of the weight's
    codes: ``y = d * token_sums(q, weight)``, rounded, ``+ bias``, rounded. A row's bits depend on
    nothing but the row. A kernel that splits K has a chain of sums for each split, of whole slices
    of 128, takes each times d, and adds them in order: S splits round S - 1 times more, each time
    by half a unit in the last place of the largest sum on the way at most.
    """
    if weight.perm is not None:
        x_TK = x_TK[:, weight.perm.long()]
    q_TK, d_T1 = quantize_tokens(x_TK)
    y_TN = token_sums(q_TK, weight) * d_T1
    return y_TN if bias_N is None else y_TN + bias_N.float()


def token_sums(
    q_TK: Tensor, weight: QuantizedLinear, start: int = 0, stop: int | None = None
) -> Tensor:
    """``q @ weight.T`` over columns from ``start`` to before ``stop`` -> float32 [T, N].

    The weight stands for ``scale * whole + offset`` (:func:`~.formats.whole.whole_numbers`).
    Columns are cut into pieces (:func:`~.formats.activations.piece_columns`). For each piece p of a
    group g, in order, in float32 with one rounding each:

        y = fma(sum over p of whole * q, scale_g, y), and where the format has offsets
        y = fma(offset_g, sum over p of q, y)

    The sums of a piece are exact in any order. ``q`` are whole numbers, float32 [T, K].
    """
    whole_NK, scales_NG, offsets_NG = whole_numbers(weight)
    k, group = weight.in_features, weight.format.group_size
    stop, size = k if stop is None else stop, piece_columns(group, k)
    y_TN = q_TK.new_zeros(q_TK.shape[0], whole_NK.shape[0])
    for begin in range(start, stop, size):
        part = slice(begin, min(begin + size, stop))
        g = 0 if group == -1 else begin // group
        sums_TN = q_TK[:, part].double() @ whole_NK[:, part].double().T
        y_TN = fused_multiply_add(sums_TN.float(), scales_NG[:, g], y_TN)
        if offsets_NG is not None:
            totals_T1 = q_TK[:, part].sum(-1, keepdim=True)
            y_TN = fused_multiply_add(offsets_NG[:, g], totals_T1, y_TN)
    return y_TN


def fused_multiply_add(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """``a * b + c`` of float32 tensors [...], which broadcast, rounded once, as processors do.

    The product is exact in float64. The sum is rounded there to odd: where it is no float64, to the
    neighbour whose last bit is set, so that rounding it once more, to float32, cannot go wrong.
    Source: Boldo and Melquiond, 2008.
    """
    product, c = a.double() * b.double(), c.double()
    total = product + c
    back = total - product
    left = (product - (total - back)) + (c - back)  # Knuth's two-sum: what rounding left over
    bits = total.contiguous().view(torch.int64)
    even = left.isfinite() & (left != 0) & (bits & 1 == 0)
    step = torch.where((left > 0) == (total > 0), 1, -1)
    return torch.where(even, bits + step, bits).view(torch.float64).float()


def gated_mul(gate_up_TI2: Tensor, activation: str = "silu") -> Tensor:
    """``act(gate) * up`` for [T, 2 I] whose first half is gate -> [T, I].

    ``activation`` is ``silu``, or ``gelu_tanh``: ``0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715
    x**3)))`` (Hendrycks and Gimpel, 2016). ``clipped_swiglu`` is ``g sigmoid(1.702 g) (u + 1)``
    with g the gate up to 7 and u up within -7 to 7 (OpenAI's gpt-oss, 2025).
    """
    gate, up = gate_up_TI2.chunk(2, dim=-1)
    if activation == "clipped_swiglu":
        gate = gate.clamp(max=SWIGLU_LIMIT)
        return (
            gate * torch.sigmoid(SWIGLU_ALPHA * gate) * (up.clamp(-SWIGLU_LIMIT, SWIGLU_LIMIT) + 1)
        )
    if activation == "gelu_tanh":
        inner = math.sqrt(2 / math.pi) * (gate + 0.044715 * gate**3)
        return 0.5 * gate * (1 + torch.tanh(inner)) * up
    return gate * torch.sigmoid(gate) * up


def conv_tail(x_TC: Tensor, weight_KC: Tensor, tail_LC: Tensor) -> tuple[Tensor, Tensor]:
    """A causal convolution of each channel and SiLU -> [T, C], and the tail for what comes next.

    Token t sees itself and the K - 1 = L inputs before it, the first ones those of ``tail``.
    Sums are taken oldest first, in the dtype of ``tail``; both results have that dtype.
    """
    window_WC = torch.cat([tail_LC, x_TC.to(tail_LC.dtype)])
    tokens, weight_KC = x_TC.shape[0], weight_KC.to(tail_LC.dtype)
    y_TC = window_WC[:tokens] * weight_KC[0]
    for place in range(1, weight_KC.shape[0]):
        y_TC = y_TC + window_WC[place : place + tokens] * weight_KC[place]
    return y_TC * torch.sigmoid(y_TC), window_WC[tokens:]


def gated_delta(
    q_TJK: Tensor,
    k_TJK: Tensor,
    v_THV: Tensor,
    decay_TH: Tensor,
    beta_TH: Tensor,
    state_HKV: Tensor,
    tiled: bool = False,
) -> Tensor:
    """The gated delta rule, token by token -> [T, H, V]; the state is replaced in place.

    For each token, with q and k of length 1, q over ``sqrt(K)``, and the state S of a head:

        S = decay * S;  S = S + k (beta * (v - k S));  out = q S

    Value head h goes with query and key head ``h // (H / J)``, or ``h % J`` when ``tiled``. Sums
    over K are taken in the order of its elements, in the dtype of the state, so that results depend
    on nothing but the tokens before. Source: Yang, Kautz and Hatamizadeh, 2024.
    """
    tokens, heads, _ = v_THV.shape
    kind, group = state_HKV.dtype, heads // q_TJK.shape[1]
    q, k = (unit_length(x.to(kind)) for x in (q_TJK, k_TJK))
    q, k = (x.repeat(1, group, 1) if tiled else x.repeat_interleave(group, 1) for x in (q, k))
    q = q * q.shape[-1] ** -0.5
    out_THV = torch.empty(v_THV.shape, dtype=kind)
    for t in range(tokens):
        state_HKV *= decay_TH[t, :, None, None].to(kind)
        change_HV = v_THV[t].to(kind) - (state_HKV * k[t, :, :, None]).sum(1)
        state_HKV += k[t, :, :, None] * (change_HV * beta_TH[t, :, None].to(kind))[:, None]
        out_THV[t] = (state_HKV * q[t, :, :, None]).sum(1)
    return out_THV


def unit_length(x: Tensor) -> Tensor:
    """``x / sqrt(sum(x**2) + 1e-6)`` over the last dimension -> [..., K]."""
    return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + 1e-6)


def delta_gates(ba_TG: Tensor, rate_H: Tensor, bias_H: Tensor) -> tuple[Tensor, Tensor]:
    """Decay and beta [T, H] of the gated delta rule from [T, 2 H], beta's half first.

    ``decay = exp(rate * softplus(a + bias))`` with ``rate = -exp(A_log)``, ``beta = sigmoid(b)``.
    """
    b_TH, a_TH = ba_TG.to(rate_H.dtype).chunk(2, dim=-1)
    shifted = a_TH + bias_H
    softplus = torch.log1p(torch.exp(-shifted.abs())) + shifted.clamp(min=0)
    return torch.exp(rate_H * softplus), torch.sigmoid(b_TH)


def apply_rope(x_THE: Tensor, cos_TF: Tensor, sin_TF: Tensor, interleaved: bool = False) -> Tensor:
    """Rotate the first 2 F of E dimensions -> [T, H, E].

    Dimension i pairs with i + F (GPT-NeoX), or 2 i with 2 i + 1 where they are ``interleaved``.
    Source: Su et al., 2021.
    """
    if interleaved:
        turned = x_THE[..., : 2 * cos_TF.shape[-1]].unflatten(-1, (-1, 2)).mT.flatten(-2)
        pairs = apply_rope(turned, cos_TF, sin_TF).unflatten(-1, (2, -1)).mT.flatten(-2)
        return torch.cat((pairs, x_THE[..., pairs.shape[-1] :]), dim=-1)
    half = cos_TF.shape[-1]
    cos, sin = cos_TF.unsqueeze(1).to(x_THE.dtype), sin_TF.unsqueeze(1).to(x_THE.dtype)
    a, b, rest = x_THE[..., :half], x_THE[..., half : 2 * half], x_THE[..., 2 * half :]
    return torch.cat((a * cos - b * sin, b * cos + a * sin, rest), dim=-1)


def write_kv(
    k_TJE: Tensor, v_TJE: Tensor, k_cache_BJSE: Tensor, v_cache_BJSE: Tensor, slots_T: Tensor
) -> None:
    """Store keys and values [T, J, E] at ``slot = block * S + offset`` of [B, J, S, E] in place."""
    block_size = k_cache_BJSE.shape[2]
    block, offset = slots_T // block_size, slots_T % block_size
    k_cache_BJSE[block, :, offset] = k_TJE.to(k_cache_BJSE.dtype)
    v_cache_BJSE[block, :, offset] = v_TJE.to(v_cache_BJSE.dtype)


def write_scales(
    k_scale_TJ: Tensor, v_scale_TJ: Tensor, k_cache_BJS: Tensor, v_cache_BJS: Tensor, slots: Tensor
) -> None:
    """Store the scales [T, J] of int8 keys and values as :func:`write_kv` does the codes."""
    block, offset = slots // k_cache_BJS.shape[2], slots % k_cache_BJS.shape[2]
    k_cache_BJS[block, :, offset] = k_scale_TJ
    v_cache_BJS[block, :, offset] = v_scale_TJ


def gather_kv(cache_BJSE: Tensor, blocks: Tensor, length: int) -> Tensor:
    """The first ``length`` tokens of one row's cache, contiguous: [J, length, E]."""
    _, j, s, e = cache_BJSE.shape
    picked = cache_BJSE[blocks[: (length + s - 1) // s].long()]
    return picked.transpose(0, 1).reshape(j, -1, e)[:, :length]


def attend_row(
    q_THE: Tensor,
    k_JLE: Tensor,
    v_JLE: Tensor,
    positions_T: Tensor,
    scale: float,
    window: int = 0,
    softcap: float = 0.0,
    sinks_H: Tensor | None = None,
) -> Tensor:
    """Causal attention of one row's T queries over its L cached keys -> [T, H, E].

    With a ``softcap`` C, scores become ``C * tanh(score / C)`` before the mask. ``sinks`` are one
    more score for each query head, whose share of the softmax has no value (Xiao et al., 2023, in
    gpt-oss's form, where it is learned).

    A key at position p is visible to a query at position q iff p <= q and, with a window W,
    q - p < W. Query head h reads key/value head ``h // (H / J)``. Softmax in at least float32.
    """
    t, h, e = q_THE.shape
    j, length, _ = k_JLE.shape
    compute = q_THE.dtype if q_THE.dtype == torch.float64 else torch.float32
    q = q_THE.to(compute).view(t, j, h // j, e)
    scores = torch.einsum("tjge,jle->tjgl", q, k_JLE.to(compute)) * scale
    if softcap:
        scores = softcap * torch.tanh(scores / softcap)
    keys = torch.arange(length, device=q.device)
    distance = positions_T.to(keys.device).unsqueeze(1) - keys
    hidden = distance < 0
    if window:
        hidden |= distance >= window
    scores.masked_fill_(hidden[:, None, None, :], float("-inf"))
    if sinks_H is not None:
        sinks = sinks_H.to(scores).view(j, h // j, 1).expand(t, -1, -1, 1)
        scores = torch.cat((scores, sinks), dim=-1)
    shares = scores.softmax(-1)[..., :length]
    out = torch.einsum("tjgl,jle->tjge", shares, v_JLE.to(compute))
    return out.reshape(t, h, e).to(q_THE.dtype)


def mix64(x: Tensor) -> Tensor:
    """The splitmix64 finalizer on int64 [...] (Steele, Lea and Flood, 2014); wraps mod 2**64."""
    x = (x ^ _logical_shift(x, 30)) * -0x40A7B892E31B1A47
    x = (x ^ _logical_shift(x, 27)) * -0x6B2FB644ECCEEE15
    return x ^ _logical_shift(x, 31)


def counter_uniform(seed: Tensor, position: Tensor, token: Tensor) -> Tensor:
    """Uniform floats in (0, 1) from a counter: a pure function of (seed, position, token).

    Nothing depends on the batch row or on earlier draws, so a sampled text can be repeated in
    any batch. Arguments broadcast: int64 [...] in, float32 [...] out, with 23 random bits (so
    that 1 is never hit).
    """
    golden = -0x61C8864680B583EB
    key = mix64(seed + golden)
    key = mix64(key + (position + 1) * golden)
    bits = _logical_shift(mix64(key + (token + 1) * golden), 41)
    return (bits.to(torch.float32) + 0.5) * (1.0 / (1 << 23))


def gumbel(seed: Tensor, position: Tensor, token: Tensor) -> Tensor:
    """Standard Gumbel noise ``-log(-log(u))`` for the Gumbel-max draw: float32 [...]."""
    return -torch.log(-torch.log(counter_uniform(seed, position, token)))


def penalize(
    logits_V: Tensor,
    seen_V: Tensor,
    counts_V: Tensor,
    repetition: float,
    presence: float,
    frequency: float,
) -> Tensor:
    """Logits [V] after penalties, in their dtype; ``seen`` is bool [V], ``counts`` numbers [V].

    ``repetition`` divides positive and multiplies negative logits where ``seen`` (prompt or
    output); ``presence`` and ``frequency * count`` are subtracted where the output ``counts``.
    """
    scaled = torch.where(logits_V > 0, logits_V / repetition, logits_V * repetition)
    out = torch.where(seen_V, scaled, logits_V)
    counts = counts_V.to(logits_V.dtype)
    return out - presence * (counts > 0).to(logits_V.dtype) - frequency * counts


def keep_mask(logits_V: Tensor, top_k: int, top_p: float, min_p: float) -> Tensor:
    """Tokens that may be drawn, from logits already divided by the temperature: bool [V].

    The filters apply in the order top-k, top-p, min-p, each to what the one before left, and
    each is one logit threshold, so tokens tied with the last one kept are kept too.
    """
    keep = torch.ones_like(logits_V, dtype=torch.bool)
    if 0 < top_k < logits_V.numel():
        keep &= logits_V >= logits_V.topk(top_k).values[-1]
    if top_p < 1.0:
        left = logits_V.masked_fill(~keep, float("-inf"))
        total = left.logsumexp(-1)
        # Tokens 30 nats below the best cannot move the sum in float32: they need no sorting.
        ranked = left[left >= left.max() - 30.0].sort(descending=True).values
        mass = (ranked - total).exp().cumsum(-1)
        # The first token that brings the mass to top_p is still kept.
        last = int((mass < top_p).sum().clamp(max=ranked.numel() - 1))
        keep &= logits_V >= ranked[last]
    if min_p > 0.0:
        best = logits_V.max()
        keep &= logits_V >= best + torch.log(torch.tensor(min_p, dtype=logits_V.dtype))
    return keep


def sample(
    logits_V: Tensor,
    temperature: float,
    top_k: int,
    top_p: float,
    min_p: float,
    seed: int,
    position: int,
) -> int:
    """One token by logits [V]: argmax at temperature 0, else Gumbel-max over the kept tokens.

    -1 when there is nothing to choose by: a logit is NaN, or the largest is infinite.
    Source of the draw: Gumbel-max trick (Gumbel, 1954; Maddison et al., 2014).
    """
    best = logits_V.max()  # NaN when any is
    if not math.isfinite(best):
        return -1
    if temperature == 0.0:
        return int(logits_V.argmax())
    # Counted from the best one, no score overflows, however small the temperature is.
    scaled = (logits_V - best) / max(temperature, 1e-30)
    keep = keep_mask(scaled, top_k, top_p, min_p)
    # The noise lies between -2.9 and 16.7, so a token 20 below the best can never win.
    keep &= scaled >= scaled.max() - 20.0
    ids = keep.nonzero().squeeze(-1)
    noise = gumbel(
        torch.tensor(seed, device=ids.device), torch.tensor(position, device=ids.device), ids
    )
    return int(ids[(scaled[ids] + noise).argmax()])


def _logical_shift(x: Tensor, bits: int) -> Tensor:
    """Unsigned right shift of int64 lanes."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)
