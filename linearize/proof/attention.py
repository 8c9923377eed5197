"""Softmax attention written out, from an adapter's AttentionWeights alone: what a site's own output is compared with.

Letters: B batch, T tokens, Q those whose output is wanted, D model width, N query heads, M key-value heads, K and V
width of a key and a value head, R width of the part of a head that the rotary embedding turns, X = N*V.
"""

from __future__ import annotations

import torch
from torch import Tensor

from linearize.protocols import AttentionSite, AttentionWeights


def attend(
    weights: AttentionWeights,
    site: AttentionSite,
    x_BTD: Tensor,
    position: tuple[Tensor, Tensor] | None,
    *,
    sees_BQT: Tensor | None = None,
    queries_Q: Tensor | None = None,
    dtype: torch.dtype = torch.float64,
) -> Tensor:
    """The site's output before the output projection, [B, Q, N*V], computed in ``dtype``; every token is real.

    Args:
        position: cos and sin [B, T, R] as the decoder passes them.
        sees_BQT: bool, which of the wanted tokens (rows) sees which token (columns); B may be 1. None: each sees those
            before it and itself, inside the window.
        queries_Q: the tokens whose output is wanted, so that long texts need little memory; None: all, Q = T.
    """
    x_BTD = x_BTD.to(dtype)
    if queries_Q is None:
        queries_Q = torch.arange(x_BTD.shape[1], device=x_BTD.device)
    x_BQD = x_BTD[:, queries_Q]
    groups = site.num_key_value_heads
    q_BNQK = _heads(x_BQD, weights.q, weights.q_bias, site.num_heads, weights, weights.q_norm, weights.q_norm_bias)
    k_BMTK = _heads(x_BTD, weights.k, weights.k_bias, groups, weights, weights.k_norm, weights.k_norm_bias)
    v_BMTV = _heads(x_BTD, weights.v, weights.v_bias, groups, weights, None, None)
    if weights.v_norm_eps is not None:
        v_BMTV = v_BMTV * (v_BMTV.square().mean(-1, keepdim=True) + weights.v_norm_eps).rsqrt()
    if site.qkv_clip is not None:
        q_BNQK, k_BMTK, v_BMTV = (part.clamp(-site.qkv_clip, site.qkv_clip) for part in (q_BNQK, k_BMTK, v_BMTV))
    if weights.rope_theta is not None and position is not None:
        cos_BTR, sin_BTR = position
        q_BNQK = _turn(q_BNQK, cos_BTR[:, queries_Q], sin_BTR[:, queries_Q], weights.rope_style)
        k_BMTK = _turn(k_BMTK, cos_BTR, sin_BTR, weights.rope_style)
    shared = site.num_heads // groups
    k_BNTK, v_BNTV = (x.repeat_interleave(shared, dim=1) for x in (k_BMTK, v_BMTV))
    scores_BNQT = q_BNQK @ k_BNTK.transpose(-1, -2) * weights.scale
    if weights.softcap is not None:
        scores_BNQT = weights.softcap * torch.tanh(scores_BNQT / weights.softcap)
    if sees_BQT is None:
        sees_BQT = _causal(queries_Q, x_BTD.shape[1], weights.window)
    shares_BNQT = scores_BNQT.masked_fill(~sees_BQT[:, None], -torch.inf).softmax(-1)
    output_BQX = (shares_BNQT @ v_BNTV).transpose(1, 2).flatten(2)
    if weights.gate is not None:
        bias = 0.0 if weights.gate_bias is None else weights.gate_bias.to(dtype)
        output_BQX = output_BQX * torch.sigmoid(x_BQD @ weights.gate.to(dtype).T + bias)
    return output_BQX


def _causal(queries_Q: Tensor, num_tokens: int, window: int | None) -> Tensor:
    """[1, Q, T] bool: each sees itself and those before it, inside the window."""
    behind_QT = queries_Q[:, None] - torch.arange(num_tokens, device=queries_Q.device)
    sees_QT = behind_QT >= 0
    if window is not None:
        sees_QT &= behind_QT < window
    return sees_QT[None]


def first_angles(position: tuple[Tensor, Tensor], style: str) -> Tensor:
    """By how much the second pair of a head turns from one token to the next, in radians: theta ** (-2 / R)."""
    cos_BTR, sin_BTR = (_one_each(part, style) for part in position)
    angle_BT = torch.atan2(sin_BTR[..., 1], cos_BTR[..., 1]).double()
    return (angle_BT[:, 1:] - angle_BT[:, :-1]).remainder(2 * torch.pi)


def _heads(
    x_BTD: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    num_heads: int,
    weights: AttentionWeights,
    norm: Tensor | None,
    norm_bias: Tensor | None,
) -> Tensor:
    y_BTX = x_BTD @ weight.to(x_BTD.dtype).T
    if bias is not None:
        y_BTX = y_BTX + bias.to(x_BTD.dtype)
    spans_all_heads = norm is not None and norm.dim() == 1 and num_heads > 1 and norm.numel() == y_BTX.shape[-1]
    if spans_all_heads:
        y_BTX = _norm(y_BTX, weights, norm, norm_bias)
    y_BTNX = y_BTX.unflatten(-1, (num_heads, -1))
    if norm is not None and not spans_all_heads:
        y_BTNX = _norm(y_BTNX, weights, norm, norm_bias)
    return y_BTNX.transpose(1, 2)


def _norm(y: Tensor, weights: AttentionWeights, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    if weights.norm == "layer":
        y = y - y.mean(-1, keepdim=True)
    y = y * (y.square().mean(-1, keepdim=True) + weights.norm_eps).rsqrt()
    y = y if weight is None else y * weight.to(y.dtype)
    return y if bias is None else y + bias.to(y.dtype)


def _turn(x_BNTK: Tensor, cos_BTR: Tensor, sin_BTR: Tensor, style: str) -> Tensor:
    """The first R numbers of each head turned pair by pair, the others as they are."""
    width = cos_BTR.shape[-1]
    cos_B1TX, sin_B1TX = (_one_each(part, style).to(x_BNTK.dtype).unsqueeze(1) for part in (cos_BTR, sin_BTR))
    turned, rest = x_BNTK[..., :width], x_BNTK[..., width:]
    if style == "interleaved":
        first, second = turned[..., 0::2], turned[..., 1::2]
    else:
        first, second = turned.chunk(2, dim=-1)
    pairs = first * cos_B1TX - second * sin_B1TX, second * cos_B1TX + first * sin_B1TX
    turned = torch.stack(pairs, -1).flatten(-2) if style == "interleaved" else torch.cat(pairs, -1)
    return torch.cat([turned, rest], -1)


def _one_each(part_BTR: Tensor, style: str) -> Tensor:
    """One number for each pair: transformers passes each twice, side by side or half a width apart."""
    side_by_side = style == "interleaved" and bool((part_BTR[..., 0::2] == part_BTR[..., 1::2]).all())
    return part_BTR[..., 0::2] if side_by_side else part_BTR.chunk(2, dim=-1)[0]
