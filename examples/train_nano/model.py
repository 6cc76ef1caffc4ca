"""gpt-oss, small, in PyTorch, for training: all experts are computed at once and weighted.

Follows arXiv 2508.10925 and transformers' `models/gpt_oss` for what is computed. Differences are
of method only: every expert runs on every token and the router's zeros drop out the unchosen,
which is faster than gathering at this size; expert weights pass through MXFP4 and back, so that
the network learns with the values that are exported (gradients go straight through).
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

MX_BLOCK = 32
SWIGLU_ALPHA, SWIGLU_LIMIT = 1.702, 7.0
E2M1_VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


@dataclass(frozen=True)
class NanoConfig:
    """Sizes of the network, in the words of a Hugging Face gpt_oss config."""

    vocab_size: int
    hidden_size: int = 128
    num_hidden_layers: int = 4
    num_attention_heads: int = 4
    num_key_value_heads: int = 2
    head_dim: int = 64
    num_local_experts: int = 8
    num_experts_per_tok: int = 4
    intermediate_size: int = 64
    sliding_window: int = 32
    rms_norm_eps: float = 1e-5
    rope_theta: float = 150000.0
    rope_factor: float = 32.0
    original_context: int = 4096
    beta_fast: float = 32.0
    beta_slow: float = 1.0

    def as_dict(self) -> dict[str, Any]:
        """Return the sizes as a plain dictionary, for a saved state."""
        return asdict(self)


def mx_scale_exponent(blocks: Tensor) -> Tensor:
    """Return the power of two of each block [..., 32] -> [..., 1]: the largest value is at most 7.

    Values up to 7 times the scale round to 6 with an error of 1, which is no worse than the
    rounding between 4 and 6.
    """
    largest = blocks.abs().amax(-1, keepdim=True).clamp_min(2.0**-60)
    return torch.ceil(torch.log2(largest / 7.0)).clamp(-60, 60)


def mx_round(scaled: Tensor) -> Tensor:
    """Round values already divided by their scale to the nearest e2m1 value, as floats."""
    size = scaled.abs().clamp_max(6.0)
    step = torch.where(size < 2, 0.5, torch.where(size < 4, 1.0, 2.0))
    return torch.copysign(torch.round(size / step) * step, scaled)


def mx_fake_quantise(weight: Tensor) -> Tensor:
    """Return the weight as MXFP4 keeps it, blocks of 32 along the last axis; identity gradient."""
    with torch.no_grad():
        blocks = weight.unflatten(-1, (-1, MX_BLOCK))
        scale = torch.exp2(mx_scale_exponent(blocks))
        rounded = (mx_round(blocks / scale) * scale).flatten(-2)
    return weight + (rounded - weight).detach()


def bf16_fake_round(weight: Tensor) -> Tensor:
    """Return the weight rounded to bf16, as float32; identity gradient."""
    return weight + (weight.detach().to(torch.bfloat16).float() - weight.detach())


def yarn_inverse_frequencies(config: NanoConfig) -> tuple[Tensor, float]:
    """Return the rotation per position [head_dim / 2] and the factor of cos and sin (YaRN)."""
    dim, base = config.head_dim, config.rope_theta
    frequency = base ** (torch.arange(0, dim, 2, dtype=torch.float64) / dim)

    def turns(rotations: float) -> float:
        ratio = config.original_context / (rotations * 2 * math.pi)
        return dim * math.log(ratio) / (2 * math.log(base))

    low, high = turns(config.beta_fast), turns(config.beta_slow)
    ramp = ((torch.arange(dim // 2, dtype=torch.float64) - low) / (high - low)).clamp(0, 1)
    inverse = ramp / (config.rope_factor * frequency) + (1 - ramp) / frequency
    return inverse.float(), 0.1 * math.log(config.rope_factor) + 1.0


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the two halves of each head. x: [batch][heads][time][64]; cos, sin: [time][32]."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


class Attention(nn.Module):
    """Grouped-query attention with a learned sink in every head's softmax."""

    def __init__(self, config: NanoConfig) -> None:
        super().__init__()
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        width = config.head_dim
        self.q_proj = nn.Linear(config.hidden_size, self.heads * width)
        self.k_proj = nn.Linear(config.hidden_size, self.kv_heads * width)
        self.v_proj = nn.Linear(config.hidden_size, self.kv_heads * width)
        self.o_proj = nn.Linear(self.heads * width, config.hidden_size)
        self.sinks = nn.Parameter(torch.zeros(self.heads))
        self.scale = width**-0.5

    def forward(self, x: Tensor, mask: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        batch, time, _ = x.shape
        split = (batch, time, -1, 64)
        q = rotate(self.q_proj(x).view(split).transpose(1, 2), cos, sin)
        k = rotate(self.k_proj(x).view(split).transpose(1, 2), cos, sin)
        v = self.v_proj(x).view(split).transpose(1, 2)
        # [batch][kv head][queries of the group, time][64]: one product serves a whole group
        group = self.heads // self.kv_heads
        q = q.reshape(batch, self.kv_heads, group * time, 64)
        scores = (q @ k.transpose(-1, -2)).view(batch, self.heads, time, time) * self.scale
        scores = scores.float() + mask
        sinks = self.sinks.view(1, -1, 1, 1)
        largest = torch.maximum(scores.amax(-1, keepdim=True), sinks).detach()
        weights = torch.exp(scores - largest)
        weights = weights / (weights.sum(-1, keepdim=True) + torch.exp(sinks - largest))
        weights = weights.to(v.dtype).view(batch, self.kv_heads, group * time, time)
        out = (weights @ v).view(batch, self.heads, time, 64)
        return self.o_proj(out.transpose(1, 2).reshape(batch, time, -1))


class Experts(nn.Module):
    """The router and its experts; gate and up rows interleaved, as in the checkpoint."""

    def __init__(self, config: NanoConfig) -> None:
        super().__init__()
        experts, hidden, width = (
            config.num_local_experts, config.hidden_size, config.intermediate_size,
        )  # fmt: skip
        self.chosen = config.num_experts_per_tok
        self.router = nn.Linear(hidden, experts)
        self.gate_up_proj = nn.Parameter(torch.empty(experts, 2 * width, hidden))
        self.gate_up_proj_bias = nn.Parameter(torch.zeros(experts, 2 * width))
        self.down_proj = nn.Parameter(torch.empty(experts, hidden, width))
        self.down_proj_bias = nn.Parameter(torch.zeros(experts, hidden))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the weighted sum over the chosen experts, and the load-balance term."""
        experts, hidden = self.gate_up_proj.shape[0], x.shape[-1]
        logits = F.linear(x.float(), self.router.weight, self.router.bias)
        top, index = logits.topk(self.chosen, dim=-1)
        chosen = top.softmax(-1).to(logits.dtype)
        weights = torch.zeros_like(logits).scatter(-1, index, chosen)
        with torch.no_grad():
            load = (weights > 0).float().mean(0) * (experts / self.chosen)
        balance = (load * logits.softmax(-1).mean(0)).sum()

        gate_up = mx_fake_quantise(self.gate_up_proj)
        down = mx_fake_quantise(self.down_proj)
        bias = self.gate_up_proj_bias
        gate = F.linear(x, gate_up[:, 0::2].flatten(0, 1), bias[:, 0::2].flatten())
        up = F.linear(x, gate_up[:, 1::2].flatten(0, 1), bias[:, 1::2].flatten())
        gate = gate.clamp(max=SWIGLU_LIMIT)
        up = up.clamp(-SWIGLU_LIMIT, SWIGLU_LIMIT)
        act = gate * torch.sigmoid(SWIGLU_ALPHA * gate) * (up + 1)
        act = act.view(-1, experts, act.shape[-1] // experts) * weights.unsqueeze(-1).to(act.dtype)
        joined = down.permute(1, 0, 2).reshape(hidden, -1)  # [hidden][expert, width]
        out = F.linear(act.flatten(1), joined) + weights.to(act.dtype) @ self.down_proj_bias
        return out, balance


class Layer(nn.Module):
    """Attention and experts, each behind an RMSNorm and added to the stream."""

    def __init__(self, config: NanoConfig) -> None:
        super().__init__()
        self.input_layernorm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.mlp = Experts(config)

    def forward(self, x: Tensor, mask: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        x = x + self.self_attn(self.input_layernorm(x), mask, cos, sin)
        out, balance = self.mlp(self.post_attention_layernorm(x).flatten(0, 1))
        return x + out.view_as(x), balance


class Nano(nn.Module):
    """The network. forward: tokens [batch][time] -> final hidden states and load-balance term."""

    def __init__(self, config: NanoConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))
        self.norm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        inverse, self.rope_scale = yarn_inverse_frequencies(config)
        self.register_buffer("inverse_frequencies", inverse, persistent=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw fresh weights; what is added to the stream starts smaller in a deeper network."""
        residual = (2 * self.config.num_hidden_layers) ** -0.5
        for name, parameter in self.named_parameters():
            if "norm" in name:
                nn.init.ones_(parameter)
            elif name.endswith(("bias", "sinks")):
                nn.init.zeros_(parameter)
            elif "embed_tokens" in name:
                nn.init.normal_(parameter, std=0.5)
            else:
                std = parameter.shape[-1] ** -0.5
                smaller = "o_proj" in name or "down_proj" in name
                nn.init.normal_(parameter, std=std * residual if smaller else std)

    def masks(self, time: int) -> tuple[Tensor, Tensor]:
        """Return what is added to scores [time][time]: for sliding layers and for full layers."""
        place = torch.arange(time, device=self.lm_head.weight.device)
        distance = place[:, None] - place[None, :]
        full = torch.where(distance >= 0, 0.0, -1e9)
        sliding = torch.where(distance < self.config.sliding_window, full, -1e9)
        return sliding, full

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Padding stands at the end, where causality hides it from everything before."""
        time = tokens.shape[1]
        place = torch.arange(time, dtype=torch.float32, device=tokens.device)
        angle = place[:, None] * self.inverse_frequencies
        cos, sin = angle.cos() * self.rope_scale, angle.sin() * self.rope_scale
        masks = self.masks(time)
        x = self.embed_tokens(tokens)
        if torch.is_autocast_enabled(tokens.device.type):
            x, cos, sin = x.bfloat16(), cos.bfloat16(), sin.bfloat16()
        balance = torch.zeros((), device=tokens.device)
        for number, layer in enumerate(self.layers):
            x, term = layer(x, masks[number % 2], cos, sin)
            balance = balance + term
        return self.norm(x), balance
