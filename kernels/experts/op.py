"""Launching what surrounds the products of a mixture of experts.

Shape letters: T tokens, E experts, K experts of a token, P rows of sorted inputs, D width.
"""

# Launches: num_warps and num_stages are no parameters of the kernel that pyright sees.
# pyright: reportCallIssue=false

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..device.checks import check_tensor, require
from ..device.expert_tiles import ExpertLoad, ExpertTiles
from .config import MOST_EXPERTS, chunk_tokens, padded_experts, pair_block, row_block, tile_count
from .kernel import add_shares_kernel, gather_rows_kernel, place_kernel, route_kernel

_FLOATS = (torch.float16, torch.bfloat16, torch.float32)


@dataclass(frozen=True, slots=True)
class TokenRoutes:
    """Each token's experts.

    Attributes:
        shares: float32 [T, K].
        experts: int32 [T, K], best first.
        counts: int32 [chunks, E padded], pairs of each chunk of tokens by expert.
        of: E.
    """

    shares: Tensor
    experts: Tensor
    counts: Tensor
    of: int


@dataclass(frozen=True, slots=True)
class Assignment:
    """Where the pairs of token and expert are among the sorted rows.

    Attributes:
        places: int32 [T, K], row of each pair.
        pairs: int32 [P], pair of each row that has one.
        spans: int32 [2, E padded], first row and number of rows of each expert.
        tiles: the rows as products take them.
    """

    places: Tensor
    pairs: Tensor
    spans: Tensor
    tiles: ExpertTiles


def route(scores_TE: Tensor, per_token: int, normalize: bool) -> TokenRoutes:
    """The experts of each token by a softmax over scores [T, E].

    Args:
        scores_TE: float16, bfloat16 or float32.
        per_token: K.
        normalize: a token's shares are scaled to a sum of 1.

    Raises:
        KernelInputError: shapes or types do not fit.
    """
    check_tensor("scores", scores_TE, (None, None), _FLOATS)
    tokens, count = scores_TE.shape
    require(
        0 < per_token <= count <= MOST_EXPERTS,
        lambda: f"{per_token} of {count} experts; expected at least one, of at most {MOST_EXPERTS}",
    )
    width, chunk = padded_experts(count), chunk_tokens(count)
    device, size = scores_TE.device, (tokens, per_token)
    made = TokenRoutes(
        torch.empty(size, dtype=torch.float32, device=device),
        torch.empty(size, dtype=torch.int32, device=device),
        torch.empty(-(-tokens // chunk), width, dtype=torch.int32, device=device),
        count,
    )
    if tokens:
        route_kernel[(made.counts.shape[0],)](
            scores_TE,
            made.shares,
            made.experts,
            made.counts,
            tokens,
            E=count,
            E2=width,
            K=per_token,
            CHUNK=chunk,
            NORMALIZE=normalize,
            num_warps=4,
        )
    return made


def arrange(routes: TokenRoutes, rows: int) -> Assignment:
    """Rows of inputs for all pairs, in tiles of ``rows`` of one expert each.

    Raises:
        KernelInputError: ``rows`` is no power of two.
    """
    require(rows > 0 and rows & (rows - 1) == 0, lambda: f"tiles of {rows}; expected a power of 2")
    tokens, per_token = routes.experts.shape
    pairs, device = tokens * per_token, routes.experts.device
    chunks, width = routes.counts.shape
    tiles = tile_count(pairs, routes.of, rows)
    made = Assignment(
        torch.empty(tokens, per_token, dtype=torch.int32, device=device),
        torch.empty(tiles * rows, dtype=torch.int32, device=device),
        torch.empty(2, width, dtype=torch.int32, device=device),
        ExpertTiles(
            torch.empty(tiles, dtype=torch.int32, device=device),
            rows,
            ExpertLoad.of(tokens, per_token, routes.of),
        ),
    )
    if tokens:
        place_kernel[(chunks,)](
            routes.experts,
            routes.counts,
            made.places,
            made.pairs,
            made.tiles.experts,
            made.spans,
            pairs,
            chunks,
            tiles,
            E2=width,
            K=per_token,
            CHUNK=chunk_tokens(routes.of),
            ROWS=rows,
            BLOCK=pair_block(routes.of),
            num_warps=4,
        )
    return made


def gather_rows(x_TD: Tensor, where: Assignment) -> Tensor:
    """Tokens [T, D] in their experts' rows -> [P, D]; tiles that are nobody's are left unset.

    Raises:
        KernelInputError: shapes or types do not fit.
    """
    tokens, per_token = where.places.shape
    check_tensor("x", x_TD, (tokens, None), _FLOATS, where.places.device)
    width = x_TD.shape[1]
    out = torch.empty(where.tiles.padded, width, dtype=x_TD.dtype, device=x_TD.device)
    block = row_block(width)
    if out.numel():
        gather_rows_kernel[(out.shape[0], -(-width // block))](
            x_TD,
            where.pairs,
            where.tiles.experts,
            where.spans,
            out,
            D=width,
            BLOCK=block,
            E2=where.spans.shape[1],
            K=per_token,
            ROWS=where.tiles.rows,
            num_warps=4,
        )
    return out


def add_shares(y_PD: Tensor, where: Assignment, shares_TK: Tensor, residual_TD: Tensor) -> None:
    """``residual[t] += sum_k share[t, k] * y[place[t, k]]`` in place, for y [P, D].

    Raises:
        KernelInputError: shapes or types do not fit.
    """
    tokens, per_token = where.places.shape
    check_tensor("y", y_PD, (where.tiles.padded, None), _FLOATS, where.places.device)
    width = y_PD.shape[1]
    check_tensor("shares", shares_TK, (tokens, per_token), (torch.float32,), y_PD.device)
    check_tensor("residual", residual_TD, (tokens, width), _FLOATS, y_PD.device)
    block = row_block(width)
    if residual_TD.numel():
        add_shares_kernel[(tokens, -(-width // block))](
            y_PD,
            where.places,
            shares_TK,
            residual_TD,
            D=width,
            BLOCK=block,
            K=per_token,
            num_warps=4,
        )
