"""The compiled core. Its public face is the Python package; only that may import it.

Arrays are numpy's, of exactly the dtype named (bfloat16 travels as the bits in uint16); nothing is
converted or copied. Arguments that do not fit raise InvalidArgument before anything is written.
Every call that does work releases the GIL.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from .checkpoint import Checkpoint, ModelConfig
from .sampling import Sampling

_F32: TypeAlias = npt.NDArray[np.float32]
_F64: TypeAlias = npt.NDArray[np.float64]
_Bf16: TypeAlias = npt.NDArray[np.uint16]
_I32: TypeAlias = npt.NDArray[np.int32]
_I16: TypeAlias = npt.NDArray[np.int16]
_I8: TypeAlias = npt.NDArray[np.int8]
_U8: TypeAlias = npt.NDArray[np.uint8]
_Mask: TypeAlias = npt.NDArray[np.bool_] | npt.NDArray[np.uint8]
_Tokens: TypeAlias = Sequence[int] | npt.NDArray[np.integer[Any]]
# A plain id; with log-probabilities asked for, (id, logprob, [(id, logprob), ...]).
_Sampled: TypeAlias = int | tuple[int, float, list[tuple[int, float]]]

__version__: str

# --- what this machine and build offer ------------------------------------------------------------

def available_isas() -> list[str]:
    """ISA levels that this processor can run, lowest first; "scalar" is always there."""

def default_isa() -> str:
    """The highest of them, or the one GPT_OSS_NATIVE_ISA names."""

def default_num_threads() -> int:
    """Threads a pool gets unless told: what this process may use, or GPT_OSS_NATIVE_THREADS."""

def cpu_model_name() -> str:
    """Marketing name of the processor."""

def read_bandwidth(
    num_bytes: int, num_threads: int = 0, repeats: int = 3, *, small_pages: bool = False
) -> float:
    """Bytes a second that threads together read from a buffer of num_bytes; the best of repeats."""

def arithmetic_peaks(num_threads: int = 0, seconds: float = 0.05) -> dict[str, float]:
    """Operations a second (a multiply-add is two) of loops over registers, by instruction, for
    those this machine has: fma_avx2, fma_avx512, vnni_avx2, vnni_avx512, bf16_avx512, amx_int8,
    amx_bf16; fma_scalar anywhere."""

def cuda_status() -> str:
    """Why CUDA is not used; empty where it can be."""

def cuda_device_text() -> str:
    """The first CUDA device in words; empty where none can be used."""

# --- kernels on arrays ----------------------------------------------------------------------------

class Ops:
    """Every op of one device, on the CPU of one ISA level over a pool of threads, one call at a
    time; see `ops`."""

    def __init__(
        self, *, isa: str | None = None, num_threads: int = 0, device: str = "cpu"
    ) -> None: ...
    def time_kernels(self, repeats: int, evict_bytes: int = 0) -> None:
        """From now on a call's kernels run `repeats` times (in place as often), timed apart from
        its preparation, each after sweeping so many bytes through the caches; 0: once, untimed."""

    def kernel_seconds(self) -> list[float]:
        """Of the last call, one a repeat; empty where the device's table does not time."""

    def embed(self, tokens: _I32, table: _Bf16, out: _F32) -> None: ...
    def rms_norm(self, x: _F32, scale: _Bf16, eps: float, out: _F32) -> None: ...
    def linear(
        self,
        x: _F32,
        weight: _Bf16,
        bias: _Bf16 | None,
        accumulate: bool,
        int8: bool,
        out: _F32,
        float32: bool = False,
    ) -> None: ...
    def quantize_int8(self, x: _F32, q: _I8, scales: _F32) -> None: ...
    def quantize_int15(self, x: _F32, codes: _I16, scales: _F32) -> None: ...
    def linear_mxfp4(
        self,
        x: _F32,
        blocks: _U8,
        scales: _U8,
        bias: _Bf16,
        x_rows: _I32,
        out_rows: _I32,
        int8: bool,
        out: _F32,
    ) -> None: ...
    def swiglu(self, gate_up: _F32, limit: float, alpha: float, out: _F32) -> None: ...
    def rope(self, x: _F32, cos_sin: _F32) -> None: ...
    def attention(
        self,
        q: _F32,
        k: _F32,
        v: _F32,
        sinks: _Bf16,
        window: int,
        kv_dtype: str,
        split: bool,
        out: _F32,
    ) -> None: ...
    def router_topk(
        self, logits: _F32, expert_ids: _I32, weights: _F32, forced: _I32 | None
    ) -> None: ...
    def moe_combine(self, expert_out: _F32, weights: _F32, out: _F32) -> None: ...
    def draw_tokens(self, logits: _F32, samplers: list[Sampler], tokens: _I32) -> None:
        """On CUDA: the token that each row's sampler would draw next; their state stays."""

def yarn_angles(config: ModelConfig, positions: Sequence[int]) -> tuple[_F32, _F32]:
    """Cosines and sines [positions][head_dim / 2] of a config's rotary table."""

# --- the engine -----------------------------------------------------------------------------------

class Model:
    """A checkpoint's weights on a device; raises CheckpointError, OutOfMemory, DeviceError."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        device: str,
        precision: str,
        dense: str,
        num_threads: int,
        isa: str | None,
        copy: bool,
        lock: bool,
        check_scales: bool,
        synthetic_seed: int | None = None,
    ) -> None: ...
    @property
    def closed(self) -> bool: ...
    def session(self, max_tokens: int) -> Session:
        """An empty session of at most so many tokens; 0: the model's context."""

    def restore(self, path: str) -> Session:
        """What `Session.save` wrote."""

    def describe(self) -> str: ...
    def memory(self) -> dict[str, int]:
        """Bytes by purpose, and the number of sessions."""

    def set_banned_tokens(self, tokens: _Tokens) -> None:
        """Ids that are never sampled."""

    def enable_trace(self, on: bool) -> None: ...
    def trace_totals(self) -> dict[str, tuple[int, float]]:
        """Calls and seconds by zone."""

    def clear_trace(self) -> None: ...
    def close(self) -> None: ...

class Session:
    """Tokens in, logits out."""

    @property
    def tokens(self) -> list[int]: ...
    @property
    def position(self) -> int: ...
    @property
    def cached(self) -> int:
        """How many of the tokens have keys and values; the others are forwarded first."""

    @property
    def max_tokens(self) -> int: ...
    @property
    def closed(self) -> bool: ...
    @property
    def marks(self) -> list[int]:
        """Positions to which rewinding is free."""

    def forward(self, tokens: _Tokens, logits: str) -> _F32 | None:
        """Logits [vocab] ("last") or [tokens][vocab] ("all"), or None ("none")."""

    def forward_forced(self, tokens: _Tokens, experts: _I32) -> _F32:
        """Logits [tokens][vocab] with the experts [layers][tokens][experts_per_token] given."""

    def score(self, tokens: _Tokens) -> _F32:
        """Log-probabilities [tokens - 1] of each token after those before it."""

    def fork(self) -> Session: ...
    def rewind(self, position: int) -> int: ...
    def mark(self) -> int: ...
    def save(self, path: str) -> None: ...
    def close(self) -> None: ...

def forward_batch(entries: list[tuple[Session, _Tokens]]) -> list[_F32]:
    """Logits [vocab] of the last token of each entry."""

class Sampler:
    """Sampling from logits given, with the options and the state of one generation."""

    def __init__(
        self,
        sampling: Sampling,
        vocab_size: int,
        *,
        prompt: _Tokens = ...,
        banned: _Tokens = ...,
        num_logprobs: int = -1,
    ) -> None: ...
    @property
    def seed(self) -> int: ...
    @property
    def draws(self) -> int:
        """Random numbers used so far."""

    def sample(self, logits: _F32, mask: _Mask | None = None) -> _Sampled: ...
    def distribution(self, logits: _F32, mask: _Mask | None = None) -> _F64:
        """Probabilities [vocab] from which `sample` would draw."""

class Generation:
    """A session generating: one token a call of `next`."""

    def __init__(
        self,
        session: Session,
        tokens: _Tokens,
        sampling: Sampling,
        max_new_tokens: int | None,
        stop_tokens: _Tokens,
        num_logprobs: int,
    ) -> None: ...
    @property
    def num_generated(self) -> int: ...
    @property
    def seed(self) -> int: ...
    @property
    def finish_reason(self) -> Literal["stop", "length", "closed"] | None: ...
    def next(self, mask: _Mask | None = None) -> _Sampled | None:
        """The next token; None at the end."""

    def close(self) -> None: ...

def next_tokens(generations: list[Generation]) -> list[int | None]:
    """The next token of each, in common steps; None for those at their end."""
