"""The whole model in float64, from a checkpoint in memory.

No cache and no batch: one sequence from position 0, every layer over the whole text. Expert choices
can be forced, so that an implementation whose rounding flips a near-tied expert is compared with
the same experts.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from . import ops
from .checkpoints import Checkpoint
from .ops import F64, I64


@dataclass(frozen=True)
class Trace:
    """What one forward pass computed, each token a row."""

    logits: F64  # [tokens][vocab]
    router_logits: F64  # [layers][tokens][experts]
    experts: I64  # [layers][tokens][top_k], as used; the largest logit first unless forced
    hidden: F64  # [layers + 1][tokens][hidden]: the residual stream before each layer and after all

    @property
    def router_margins(self) -> F64:
        """[layers][tokens]: by how much the last chosen expert's logit beats the next one's.

        Infinite where every expert is chosen. Rounding below half a margin cannot change a choice.
        """
        ordered = -np.sort(-self.router_logits, axis=-1)
        top_k = self.experts.shape[-1]
        if top_k == ordered.shape[-1]:
            return np.full(ordered.shape[:-1], np.inf)
        margins: F64 = ordered[..., top_k - 1] - ordered[..., top_k]
        return margins


class ReferenceModel:
    """A checkpoint whose tensors are widened when they are used, so that a mapped one of full size
    fits in memory (a 20b layer takes a few hundred megabytes at a time)."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.shape = checkpoint.shape
        self._checkpoint = checkpoint
        shape = checkpoint.shape
        self.inv_freq, self.concentration = ops.yarn_inv_freq(
            head_size=shape.head_dim,
            theta=shape.rope_theta,
            factor=shape.rope_factor,
            original_context=shape.initial_context_length,
            beta_fast=shape.rope_beta_fast,
            beta_slow=shape.rope_beta_slow,
        )

    def forward(
        self, tokens: npt.ArrayLike, *, forced_experts: npt.ArrayLike | None = None
    ) -> Trace:
        """Return the trace of tokens at positions 0, 1, 2, ...

        ``forced_experts`` [layers][tokens][top_k] replaces the routers' choices; the weights are
        then the softmax over those experts' logits.
        """
        shape = self.shape
        positions = np.arange(len(np.asarray(tokens)))
        cos, sin = ops.yarn_table(positions, self.inv_freq, self.concentration)
        embedding = self._checkpoint.tensors["model.embed_tokens.weight"]
        x = ops.bf16_values(embedding[np.asarray(tokens)].astype(np.uint16))
        hidden, router_logits, experts = [x], [], []
        for layer in range(shape.num_hidden_layers):
            x = x + self._attention(layer, x, positions, cos, sin)
            forced = None if forced_experts is None else np.asarray(forced_experts)[layer]
            y, logits, chosen = self._mlp(layer, x, forced)
            x = x + y
            hidden.append(x)
            router_logits.append(logits)
            experts.append(chosen)
        return Trace(
            logits=self._unembed(self._norm("model.norm.weight", x)),
            router_logits=np.stack(router_logits),
            experts=np.stack(experts),
            hidden=np.stack(hidden),
        )

    def _values(self, name: str) -> F64:
        return self._checkpoint.values(name)

    def _unembed(self, normed: F64, *, rows: int = 1 << 14) -> F64:
        """Logits, some rows of the vocabulary at a time."""
        weight = self._checkpoint.tensors["lm_head.weight"].astype(np.uint16, copy=False)
        parts = [weight[start : start + rows] for start in range(0, len(weight), rows)]
        return np.concatenate([ops.linear(normed, ops.bf16_values(p)) for p in parts], axis=-1)

    def _norm(self, name: str, x: F64) -> F64:
        return ops.rms_norm(x, self._values(name), eps=self.shape.rms_norm_eps)

    def _linear(self, name: str, x: F64) -> F64:
        return ops.linear(x, self._values(name + ".weight"), self._values(name + ".bias"))

    def _attention(self, layer: int, x: F64, positions: I64, cos: F64, sin: F64) -> F64:
        prefix = f"model.layers.{layer}."
        normed = self._norm(prefix + "input_layernorm.weight", x)
        q, k, v = (
            self._linear(f"{prefix}self_attn.{part}_proj", normed).reshape(
                len(x), -1, self.shape.head_dim
            )
            for part in "qkv"
        )
        mixed = ops.attention(
            ops.rope(q, cos, sin),
            ops.rope(k, cos, sin),
            v,
            self._values(prefix + "self_attn.sinks"),
            positions=positions,
            window=self.shape.sliding_window if layer % 2 == 0 else None,
        )
        return self._linear(prefix + "self_attn.o_proj", mixed.reshape(len(x), -1))

    def _mlp(self, layer: int, x: F64, forced: I64 | None) -> tuple[F64, F64, I64]:
        prefix = f"model.layers.{layer}."
        normed = self._norm(prefix + "post_attention_layernorm.weight", x)
        logits = self._linear(prefix + "mlp.router", normed)
        if forced is None:
            experts, weights = ops.router_topk(logits, self.shape.num_experts_per_tok)
        else:
            experts, weights = forced, ops.router_weights(logits, forced)
        y = ops.moe(
            normed,
            experts,
            weights,
            self._checkpoint.experts(prefix + "mlp.experts.gate_up_proj"),
            self._values(prefix + "mlp.experts.gate_up_proj_bias"),
            self._checkpoint.experts(prefix + "mlp.experts.down_proj"),
            self._values(prefix + "mlp.experts.down_proj_bias"),
            limit=self.shape.swiglu_limit,
        )
        return y, logits, experts
