"""End-to-end speed of a loaded model: prefill and decode, with what they read and where time goes.

Decoding at batch 1 is bound by memory, so its line says how many bytes a token cannot avoid reading
(see `checkpoint_report`; keys and values included), the rate that makes, and the share of the read
bandwidth that the same machine had in the same minute: bandwidth and decoding are measured in turn,
so that a busy machine or a changing clock strikes both. Every figure is the median of the repeats.
"""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from .. import _core
from ..errors import InvalidArgument
from ..model import Model
from ..sampling import GREEDY
from ..session import Session
from .lines import Line
from .machine import OthersWatch, last_level_cache_bytes

_MIN_SWEEP_BYTES = 1 << 30
_TOUCHED = "experts touched"  # how the trace calls their number
_KEPT_DEPTH = 1024
_SWEEP_CACHES = 4  # a sweep over so many last-level caches comes from memory


@dataclass(frozen=True, kw_only=True)
class ModelBench:
    """One measured line.

    Attributes:
        op: "prefill", ``tokens`` in one call, logits of the last; or "decode", one at a time,
            greedy, through `Session.generate`; or "decode x N", one of each of N sessions a step,
            ``tokens`` in all.
        depth: tokens in the cache before.
        seconds: of each repeat, for all ``tokens``.
        tokens_per_second: median.
        gflops: of prefill, multiply-adds twice of what cannot be left out, attention's not counted;
            else None.
        token_bytes: of decode, what one token reads at least: of a batch its part of what a step
            reads, with the experts that its tokens did choose; else None.
        bytes_per_second: of decode, ``token_bytes`` times the median rate; else None.
        read_bytes_per_second: median of the read bandwidth measured in turn; None where it says
            nothing (CUDA, or weights that fit in the last-level cache).
        share: ``bytes_per_second / read_bytes_per_second``, the median of the pairs.
        zones: name to (calls, seconds) a run, from a traced run of its own.
        others: CPUs that other programs kept busy during the repeats; None where unknown.
    """

    op: str
    model: str
    engine: str
    precision: str
    dense: str
    tokens: int
    depth: int
    seconds: tuple[float, ...]
    tokens_per_second: float
    gflops: float | None = None
    token_bytes: int | None = None
    bytes_per_second: float | None = None
    read_bytes_per_second: float | None = None
    share: float | None = None
    zones: dict[str, tuple[int, float]] = field(default_factory=dict)
    others: float | None = None

    def line(self) -> Line:
        """The time, bytes and operations of one token, and all else beside them."""
        per_token = tuple(seconds / self.tokens for seconds in self.seconds)
        device, _, rest = self.engine.partition(" ")
        words = rest.replace(",", "").split()
        return Line(
            op=self.op,
            case=f"{self.model} {self.dense} {self.precision} {self.tokens} at {self.depth}",
            device=device,
            engine=words[0] if words else device,
            threads=int(words[1]) if len(words) > 1 and words[1].isdigit() else 0,
            warm=True,
            seconds=per_token,
            num_bytes=self.token_bytes,
            operations=None
            if self.gflops is None
            else self.gflops * 1e9 * statistics.median(per_token),
            read_peak=self.read_bytes_per_second,
            others=self.others,
            extra=asdict(self),
        )


class ModelBencher:
    """Measures one loaded model. ``precision`` and ``dense`` are those it was loaded with.

    Prompts are random ids from ``seed``. Sessions at a depth are kept in the directory ``states``,
    if given, for this run and others: tens of thousands of tokens take minutes. Raises
    InvalidArgument for counts out of range or beyond the context, and where ``states`` is no
    directory or holds a session of another model.
    """

    def __init__(
        self,
        model: Model,
        *,
        precision: str = "default",
        dense: str = "bf16",
        num_threads: int = 0,
        repeats: int = 3,
        seed: int = 0,
        states: Path | None = None,
    ) -> None:
        if repeats < 1:
            raise InvalidArgument(f"[bench] repeats: expected 1 or more, got {repeats}")
        if states is not None and not states.is_dir():
            raise InvalidArgument(f"[bench] states: expected a directory, got {states}")
        self._model = model
        self._precision = precision
        self._dense = dense
        self._num_threads = num_threads
        self._repeats = repeats
        self._states = states
        self._random = np.random.default_rng(seed)

    def prefill(self, tokens: int, *, depth: int = 0) -> ModelBench:
        """``tokens`` new tokens in one call, after ``depth`` tokens."""
        _check("tokens", tokens, 1)
        with self._session_at(depth, tokens) as session:
            prompt = self._prompt(tokens)

            def run() -> float:
                session.rewind(depth)
                start = time.perf_counter()
                session.forward(prompt)
                return time.perf_counter() - start

            run()  # faults pages in, grows the workspace
            others = OthersWatch()
            seconds = [run() for _ in range(self._repeats)]
            busy = others.cpus()
            zones = self._traced(run)
            zones.pop(_TOUCHED, None)
        rate = tokens / statistics.median(seconds)
        flops = 2 * self._prompt_products(tokens)
        return ModelBench(
            op="prefill",
            **self._identity(),
            tokens=tokens,
            depth=depth,
            seconds=tuple(seconds),
            tokens_per_second=rate,
            gflops=flops * rate / tokens / 1e9,
            zones=zones,
            others=busy,
        )

    def decode(self, tokens: int, *, depth: int = 0) -> ModelBench:
        """``tokens`` tokens one after another, after ``depth`` tokens (one at least)."""
        _check("tokens", tokens, 1)
        depth = max(1, depth)
        token_bytes = self.token_bytes(depth + tokens // 2)
        with self._session_at(depth, tokens + 2) as session:

            def run() -> float:
                session.rewind(depth)
                # The first token comes from the prompt's step; the others are one step each.
                generation = session.generate((), GREEDY, max_new_tokens=tokens + 1)
                next(generation)
                start = time.perf_counter()
                for _ in generation:
                    pass
                return time.perf_counter() - start

            return self._decoded("decode", run, tokens, depth, lambda touched: token_bytes)

    def decode_batch(self, batch: int, steps: int, *, depth: int = 0) -> ModelBench:
        """``steps`` steps of one random token of each of ``batch`` sessions, after ``depth``."""
        _check("batch", batch, 1)
        _check("steps", steps, 1)
        depth = max(1, depth)
        with contextlib.ExitStack() as stack:
            sessions = [
                stack.enter_context(self._session_at(depth, steps + 2)) for _ in range(batch)
            ]
            prompts = [self._prompt(batch) for _ in range(steps)]

            def run() -> float:
                for session in sessions:
                    session.rewind(depth)
                start = time.perf_counter()
                for tokens in prompts:
                    self._model.forward_batch(
                        [(s, [token]) for s, token in zip(sessions, tokens, strict=True)]
                    )
                return time.perf_counter() - start

            def token_bytes(touched: int) -> int:
                config = self._model.config
                each = config.num_experts
                missed = (1 - config.experts_per_token / each) ** batch
                if touched == 0:  # not traced: as many as random choices touch
                    touched = round(config.num_layers * steps * each * (1 - missed))
                chosen = config.num_layers * config.experts_per_token * batch * steps
                shared = (touched - chosen) * self._expert_bytes()
                shared -= (batch - 1) * steps * self._dense_bytes()
                return self.token_bytes(depth + steps // 2) + shared // (batch * steps)

            return self._decoded(f"decode x {batch}", run, steps * batch, depth, token_bytes)

    def _decoded(
        self,
        op: str,
        run: Callable[[], float],
        tokens: int,
        depth: int,
        token_bytes_of: Callable[[int], int],
    ) -> ModelBench:
        """The line of a decoding ``run``; bytes by the number of experts that it touched."""
        zones = self._traced(run)  # a warm-up too
        touched, _ = zones.pop(_TOUCHED, (0, 0.0))
        token_bytes = token_bytes_of(touched)
        sweep = _sweep_bytes(token_bytes) if self._model.device == "cpu" else None
        others = OthersWatch()
        seconds: list[float] = []
        bandwidths: list[float] = []
        for _ in range(self._repeats):
            if sweep is not None:
                bandwidths.append(_core.read_bandwidth(sweep, self._num_threads))
            seconds.append(run())
        busy = others.cpus()
        zones = self._traced(run)
        zones.pop(_TOUCHED, None)
        rate = tokens / statistics.median(seconds)
        pairs = zip(seconds, bandwidths, strict=False)
        shares = [tokens * token_bytes / s / bandwidth for s, bandwidth in pairs]
        return ModelBench(
            op=op,
            **self._identity(),
            tokens=tokens,
            depth=depth,
            seconds=tuple(seconds),
            tokens_per_second=rate,
            token_bytes=token_bytes,
            bytes_per_second=token_bytes * rate,
            read_bytes_per_second=statistics.median(bandwidths) if bandwidths else None,
            share=statistics.median(shares) if shares else None,
            zones=zones,
            others=busy,
        )

    def _prompt_products(self, tokens: int) -> int:
        """Multiply-adds of a prompt whose last logits are wanted: of the other rows the last layer
        need not compute more than keys and values."""
        config = self._model.config
        hidden = config.hidden_size
        unembedding = config.vocab_size * hidden
        whole = self._model.report().active_parameters - unembedding
        experts = config.experts_per_token * 3 * config.intermediate_size + config.num_experts
        rest_of_layer = hidden * (2 * config.num_heads * config.head_dim + experts)
        return whole * tokens + unembedding - rest_of_layer * (tokens - 1)

    def _expert_bytes(self) -> int:
        """Of one expert of one layer: both matrices in MXFP4."""
        config = self._model.config
        return 3 * config.intermediate_size * config.hidden_size * 17 // 32

    def _dense_bytes(self) -> int:
        """What tokens of a step share whatever they are."""
        config = self._model.config
        experts = config.num_layers * config.experts_per_token * self._expert_bytes()
        return self._weight_bytes() - experts

    def _weight_bytes(self) -> int:
        report = self._model.report()
        return report.token_bytes_int8 if self._dense == "int8" else report.token_bytes_bf16

    def token_bytes(self, position: int) -> int:
        """Bytes that decoding one token at ``position`` cannot avoid reading."""
        config = self._model.config
        element = 4 if self._precision == "float32" else 2
        seen = sum(
            min(position, config.sliding_window) if window else position
            for window in config.layer_windows
        )
        return self._weight_bytes() + 2 * element * config.num_kv_heads * config.head_dim * seen

    def _identity(self) -> dict[str, Any]:
        return {
            "model": self._model.checkpoint.directory.name,
            "engine": self._model._core.describe(),
            "precision": self._precision,
            "dense": self._dense,
        }

    def _session_at(self, depth: int, room: int) -> Session:
        """A session that holds ``depth`` random tokens, marked, with room for more."""
        _check("depth", depth, 0)
        if depth + room > self._model.config.max_context:
            raise InvalidArgument(
                f"[bench] expected depth and tokens within the context of "
                f"{self._model.config.max_context}, got {depth} and {room}"
            )
        saved = self._state(depth)
        if saved is not None and saved.exists():
            session = self._model.restore(saved)
        else:
            whole = depth + room if saved is None else self._model.config.max_context
            session = self._model.session(max_tokens=whole)
            if depth:
                session.forward(self._prompt(depth), logits="none")
            if saved is not None:
                session.save(saved)
        if depth:
            session.mark()
        return session

    def _state(self, depth: int) -> Path | None:
        """Where a session of ``depth`` tokens is kept; a few are soon computed."""
        if self._states is None or depth < _KEPT_DEPTH:
            return None
        name = f"{self._model.checkpoint.directory.name}-{self._dense}-{self._precision}-{depth}"
        return self._states / f"{name}.session"

    def _prompt(self, count: int) -> list[int]:
        ids: list[int] = self._random.integers(0, self._model.config.vocab_size, count).tolist()
        return ids

    def _traced(self, run: Callable[[], float]) -> dict[str, tuple[int, float]]:
        self._model.trace(on=True)
        try:
            run()
            return self._model.trace_totals()
        finally:
            self._model.trace(on=False)


def _sweep_bytes(token_bytes: int) -> int | None:
    """How much memory a measurement reads; None when a token's bytes may stay in cache."""
    cache = last_level_cache_bytes()
    if token_bytes <= max(cache, 32 << 20):
        return None
    return max(_MIN_SWEEP_BYTES, min(_SWEEP_CACHES * cache, 2 * _MIN_SWEEP_BYTES))


def _check(name: str, value: int, least: int) -> None:
    if value < least:
        raise InvalidArgument(f"[bench] {name}: expected {least} or more, got {value}")
