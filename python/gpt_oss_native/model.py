"""A loaded model: the checkpoint, its engine, and what belongs to both."""

from __future__ import annotations

import functools
import logging
import os
import re
import threading
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from . import _core
from .checkpoint import (
    Checkpoint,
    CheckpointReport,
    ModelConfig,
    describe,
    open_checkpoint,
    resolve,
)
from .errors import InvalidArgument

if TYPE_CHECKING:
    import tiktoken

    from .chat import Chat
    from .harmony import HarmonyEncoding
    from .sampling import Sampling
    from .session import Generation, Session

_log = logging.getLogger("gpt_oss_native")
_DEVICE = re.compile(r"auto|cpu|cuda(:[0-9]{1,4})?")


class Model:
    """A gpt-oss model in this process. Make one with `Model.load`.

    Methods may be called from any thread. A model is a context manager that closes it.
    """

    def __init__(self, core: _core.Model, checkpoint: Checkpoint, device: str) -> None:
        from .session import Session  # now, so that the first session need not wait for it

        self._session_type = Session
        self._core = core
        self._checkpoint = checkpoint
        self._device = device
        self._banning = threading.Lock()
        self._banned = False

    @classmethod
    def load(
        cls,
        name_or_path: str | os.PathLike[str] = "nano",
        *,
        device: str = "auto",
        precision: Literal["default", "float32"] = "default",
        dense: Literal["bf16", "int8"] = "bf16",
        num_threads: int | None = None,
        isa: Literal["scalar", "avx2", "avx512", "amx"] | None = None,
        copy: bool = False,
        lock: bool = False,
        check_scales: bool = True,
        revision: str | None = None,
    ) -> Model:
        """Opens a checkpoint and makes it ready.

        Weights are used in place, in the mapped files: they stay in the page cache and are shared
        between processes. A file that shrinks while it is mapped ends the process when the missing
        part is read (SIGBUS); sizes are checked before each prompt, and ``copy`` is safe.

        Args:
            name_or_path: "nano" (the checkpoint inside this package), a directory, or a hub
                repository id such as "openai/gpt-oss-20b" (extra ``hub``).
            device: "cpu", "cuda", or "cuda:N" for one of several; "auto" takes a CUDA device where
                one can be used, else the CPU.
            precision: "float32" keeps every activation in float32; "default" multiplies experts
                with int8 activations, which is several times faster.
            dense: "bf16" reads attention and unembedding matrices in place; "int8" repacks them at
                load (8.5 bits a weight): less to read for each token, more private memory.
            num_threads: CPU threads; None: all cores this process may use, or
                ``GPT_OSS_NATIVE_THREADS``.
            isa: CPU instruction set; None: the best, or ``GPT_OSS_NATIVE_ISA``.
            copy: read the files into private memory instead of mapping them.
            lock: pin the mapped files in memory.
            check_scales: read every MXFP4 scale once and refuse NaN.
            revision: branch, tag or commit of a hub repository.

        Raises:
            CheckpointError: the checkpoint is missing, damaged or not gpt-oss.
            InvalidArgument: an option is unknown or does not fit another.
            DeviceError: the device or instruction set is not there.
            OutOfMemory: memory could not be had or locked.
        """
        start = time.perf_counter()
        if not isinstance(device, str) or not _DEVICE.fullmatch(device):
            raise InvalidArgument(
                f"[load_model] device: expected 'auto', 'cpu', 'cuda' or 'cuda:N', got {device!r}"
            )
        checkpoint = open_checkpoint(resolve(name_or_path, revision=revision))
        chosen = device
        if device == "auto":
            chosen = "cpu" if _core.cuda_status() else "cuda"
        core = _core.Model(
            checkpoint,
            device=chosen,
            precision=precision,
            dense=dense,
            num_threads=_thread_count(num_threads),
            isa=isa,
            copy=copy,
            lock=lock,
            check_scales=check_scales,
        )
        model = cls(core, checkpoint, chosen.partition(":")[0])
        _log.info(
            "loaded %s in %.3f s on %s, precision %s, dense %s\n%s",
            checkpoint.directory,
            time.perf_counter() - start,
            core.describe(),
            precision,
            dense,
            describe(checkpoint),
        )
        return model

    @classmethod
    def synthetic(cls, preset: str = "20b", *, device: str = "cuda", seed: int = 0) -> Model:
        """A model of random weights, made from ``seed`` in the device's memory; for benchmarks.

        ``preset`` is one of `gpt_oss_native.synthesize.PRESETS`, whose sizes and distributions it
        has; no file is read or written, and there is no tokenizer. Raises InvalidArgument for an
        unknown preset or a device that is not CUDA, DeviceError and OutOfMemory.
        """
        from .checkpoint.config import parse_config
        from .synthesize import PRESETS, hugging_face_config

        if preset not in PRESETS:
            raise InvalidArgument(
                f"[synthetic] expected a preset of {', '.join(PRESETS)}, got {preset!r}"
            )
        config = parse_config(hugging_face_config(PRESETS[preset]))
        checkpoint = Checkpoint(Path(f"synthetic-{preset}"), "huggingface", config, (), {}, ())
        core = _core.Model(
            checkpoint,
            device=device,
            precision="default",
            dense="bf16",
            num_threads=0,
            isa=None,
            copy=False,
            lock=False,
            check_scales=False,
            synthetic_seed=seed,
        )
        return cls(core, checkpoint, device.partition(":")[0])

    @property
    def config(self) -> ModelConfig:
        """Sizes and constants of the architecture."""
        return self._checkpoint.config

    @property
    def checkpoint(self) -> Checkpoint:
        """The files this model was loaded from."""
        return self._checkpoint

    @property
    def device(self) -> str:
        """ "cpu" or "cuda"."""
        return self._device

    @functools.cached_property
    def tokenizer(self) -> tiktoken.Encoding:
        """The checkpoint's own vocabulary, built on first use.

        Raises CheckpointError when the checkpoint has no tokenizer.json or an unsupported one.
        """
        from .tokenizer import load_tokenizer

        return load_tokenizer(self._checkpoint.tokenizer_path or self._checkpoint.directory)

    @functools.cached_property
    def harmony(self) -> HarmonyEncoding:
        """The chat format over this model's vocabulary, built on first use."""
        from .harmony import HarmonyEncoding

        return HarmonyEncoding(self.tokenizer)

    def report(self) -> CheckpointReport:
        """What the checkpoint holds and what a token costs to read."""
        return describe(self._checkpoint)

    def session(self, *, max_tokens: int | None = None) -> Session:
        """An empty session of at most ``max_tokens`` tokens (default: the model's context).

        Memory is taken as tokens come. Raises InvalidArgument for a size out of range.
        """
        if max_tokens is not None and max_tokens < 1:
            raise InvalidArgument(
                f"[session] max_tokens: expected 1 to {self.config.max_context}, got {max_tokens}"
            )
        return self._session_type(self, self._core.session(max_tokens or 0))

    def chat(
        self,
        *,
        instructions: str | None = None,
        reasoning: str = "medium",
        keep_reasoning: bool = False,
        tools: Sequence[Any] = (),
        tool_choice: str = "auto",
        response_format: Any = None,
        sampling: Sampling | None = None,
        max_new_tokens: int | None = None,
        max_reasoning_tokens: int | None = None,
        max_tool_calls: int = 32,
        tool_timeout: float | None = 180.0,
        loop_guard: int | None = 512,
        mask_headers: bool = True,
        stop: str | Sequence[str] = (),
        conversation_date: str | None = None,
        max_tokens: int | None = None,
    ) -> Chat:
        """A conversation on a session of its own; the arguments are `Chat`'s."""
        from .chat import Chat

        return Chat(
            self,
            instructions=instructions,
            reasoning=reasoning,
            keep_reasoning=keep_reasoning,
            tools=tools,
            tool_choice=tool_choice,
            response_format=response_format,
            sampling=sampling,
            max_new_tokens=max_new_tokens,
            max_reasoning_tokens=max_reasoning_tokens,
            max_tool_calls=max_tool_calls,
            tool_timeout=tool_timeout,
            loop_guard=loop_guard,
            mask_headers=mask_headers,
            stop=stop,
            conversation_date=conversation_date,
            max_tokens=max_tokens,
        )

    def restore(self, path: str | os.PathLike[str]) -> Session:
        """The session that `Session.save` wrote, on this model.

        Raises CheckpointError for a damaged file, InvalidArgument for one of another model,
        precision or dense format.
        """
        return self._session_type(self, self._core.restore(os.fspath(path)))

    def forward_batch(
        self, entries: Iterable[tuple[Session, Sequence[int]]]
    ) -> list[npt.NDArray[np.float32]]:
        """Appends tokens to several sessions in common steps; last logits [vocab] of each.

        All entries succeed or every session stays as it was. Raises InvalidArgument for an empty
        list of tokens, a token out of range, a full context or a session given twice.
        """
        return _core.forward_batch([(session._core, tokens) for session, tokens in entries])

    def next_tokens(self, generations: Sequence[Generation[int]]) -> list[int | None]:
        """The next token of each of these generations, in common steps; None where one is at its
        end.

        They belong to different sessions of this model and have neither masks nor
        log-probabilities. With a CUDA device this is how one thread serves many sequences: no
        logits come to the host, and the next step is queued before the tokens of the last are
        returned. Raises InvalidArgument for generations that do not go together.
        """
        from .session import next_of_all

        return next_of_all(generations)

    def memory(self) -> dict[str, int]:
        """Bytes held now, by what for: private ``weights``, ``mapped`` files (shared with the page
        cache), ``kv_cache_full`` and ``kv_cache_window``, of those ``kv_cache_free`` and ``marks``,
        ``workspace``; and the number of ``sessions``."""
        return dict(self._core.memory())

    def trace(self, *, on: bool = True) -> None:
        """Starts (from zero) or stops summing up where the time of each step goes."""
        self._core.clear_trace()
        self._core.enable_trace(on)

    def trace_totals(self) -> dict[str, tuple[int, float]]:
        """Zone name to (count, seconds) since `trace`; the zones of a step add up to it."""
        return dict(self._core.trace_totals())

    def close(self) -> None:
        """Later calls raise InvalidArgument; memory is freed with the last session."""
        self._core.close()

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return bool(self._core.closed)

    def __enter__(self) -> Model:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        c = self.config
        where = "closed" if self.closed else f"on {self._core.describe()}"
        return (
            f"<Model {self._checkpoint.directory.name}: {c.num_layers} layers, {c.num_experts} "
            f"experts, hidden {c.hidden_size}, {where}>"
        )

    def _ban_reserved_tokens(self) -> None:
        """Ids that the tokenizer does not name are never sampled; nothing without a tokenizer."""
        if self._banned:
            return
        with self._banning:
            if not self._banned and self._checkpoint.tokenizer_path is not None:
                from .tokenizer import reserved_ids

                self._core.set_banned_tokens(reserved_ids(self.tokenizer, self.config.vocab_size))
            self._banned = True


def _thread_count(num_threads: Any) -> int:
    if num_threads is None:
        return 0
    if not isinstance(num_threads, int) or isinstance(num_threads, bool) or num_threads < 1:
        raise InvalidArgument(
            f"[load_model] num_threads: expected a positive integer or None, got {num_threads!r}"
        )
    return num_threads
