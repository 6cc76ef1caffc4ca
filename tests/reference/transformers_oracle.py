"""The same checkpoint in transformers' GptOssForCausalLM on the CPU: an outside opinion.

Weights are dequantised here and put into the module directly (exact in bfloat16 as well: an e2m1
value times a power of two fits), attention and experts run their eager code.
"""

from __future__ import annotations

from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from gpt_oss_native.synthesize import Shape, hugging_face_config
from transformers import GptOssConfig, GptOssForCausalLM
from transformers.utils import logging as transformers_logging

from .checkpoints import Checkpoint
from .model import Trace


def transformers_config(shape: Shape) -> GptOssConfig:
    """Return the configuration that transformers makes of the published config.json."""
    published = hugging_face_config(shape)
    del published["quantization_config"]  # the weights are dequantised already
    config = GptOssConfig(**published)
    config._attn_implementation = "eager"
    config._experts_implementation = "eager"
    return config


class TransformersOracle:
    """GptOssForCausalLM over a checkpoint, in "float32", "bfloat16" (as published models
    run), or "float64" (norms and cosines are still made in float32)."""

    def __init__(self, checkpoint: Checkpoint, *, dtype: str = "float32") -> None:
        transformers_logging.set_verbosity_error()
        self.shape = checkpoint.shape
        with torch.device("meta"):
            model = GptOssForCausalLM(transformers_config(checkpoint.shape))
        model.load_state_dict(_state(checkpoint, getattr(torch, dtype)), strict=True, assign=True)
        # Buffers that are not part of a checkpoint were made on the meta device.
        model.model.rotary_emb = type(model.model.rotary_emb)(config=model.config)
        self.model = model.eval()

    @torch.inference_mode()
    def forward(
        self, tokens: npt.ArrayLike, *, forced_experts: npt.ArrayLike | None = None
    ) -> Trace:
        """Return the trace of tokens at positions 0, 1, 2, ..., as ``ReferenceModel.forward``.

        ``hidden`` is the stream before each layer and after all, in the model's own type.
        """
        recorder = _Recorder(self.model, forced_experts)
        with recorder:
            ids = torch.as_tensor(np.asarray(tokens), dtype=torch.long)[None]
            logits = self.model(input_ids=ids, use_cache=False).logits[0]
        return Trace(
            logits=_numpy(logits),
            router_logits=np.stack(recorder.router_logits),
            experts=np.stack(recorder.experts),
            hidden=np.stack(recorder.hidden),
        )


class _Recorder:
    """Hooks for the length of one forward pass: record, and replace the routers' choices."""

    def __init__(self, model: Any, forced_experts: npt.ArrayLike | None) -> None:
        self._layers = model.model.layers
        self._forced = None if forced_experts is None else torch.as_tensor(forced_experts)
        self._handles: list[Any] = []
        self.router_logits: list[npt.NDArray[np.float64]] = []
        self.experts: list[npt.NDArray[np.int64]] = []
        self.hidden: list[npt.NDArray[np.float64]] = []

    def __enter__(self) -> None:
        for layer in self._layers:
            self._handles.append(layer.register_forward_pre_hook(self._before_layer))
            self._handles.append(layer.mlp.router.register_forward_hook(self._after_router))
        self._handles.append(self._layers[-1].register_forward_hook(self._after_layers))

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for handle in self._handles:
            handle.remove()

    def _before_layer(self, layer: Any, args: tuple[torch.Tensor, ...]) -> None:
        self.hidden.append(_numpy(args[0][0]))

    def _after_layers(self, layer: Any, args: Any, output: torch.Tensor) -> None:
        self.hidden.append(_numpy(output[0]))

    def _after_router(
        self, router: Any, args: Any, output: tuple[torch.Tensor, torch.Tensor, torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        logits, weights, experts = output
        if self._forced is not None:
            experts = self._forced[len(self.experts)]
            weights = torch.softmax(torch.gather(logits, 1, experts), dim=1, dtype=logits.dtype)
        self.router_logits.append(_numpy(logits))
        self.experts.append(experts.numpy().astype(np.int64))
        return logits, weights, experts


def _numpy(x: torch.Tensor) -> npt.NDArray[np.float64]:
    array: npt.NDArray[np.float64] = x.to(torch.float64).numpy()
    return array


def _state(checkpoint: Checkpoint, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """The dequantised weights under transformers' names; expert matrices are [in][out] there."""
    state: dict[str, torch.Tensor] = {}
    for name, array in checkpoint.tensors.items():
        if name.endswith("_blocks"):
            matrices = checkpoint.experts(name.removesuffix("_blocks"))
            values = np.stack([matrices[e].T for e in range(len(matrices))])
            state[name.removesuffix("_blocks")] = torch.from_numpy(values).to(dtype)
        elif array.dtype == np.uint16:
            state[name] = torch.from_numpy(checkpoint.values(name)).to(dtype)
    return state
