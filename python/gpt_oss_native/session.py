"""One sequence of tokens on a model: forward, generate, go back, branch off."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, TypeVar, overload

import numpy as np
import numpy.typing as npt

from . import _core
from .errors import InvalidArgument
from .sampling import Sampling, Token

if TYPE_CHECKING:
    from .detokenizer import StopStrings, StreamingDetokenizer
    from .model import Model

Tokens = Sequence[int] | npt.NDArray[np.integer[Any]]
TokenOrId = TypeVar("TokenOrId", int, Token)


class Session:
    """The exact tokens it was given or sampled, and their keys and values.

    Every call either succeeds or leaves the session as it was. One call at a time: a second, from
    another thread, raises InvalidArgument. Different sessions may be used from different threads;
    their steps are combined. A session is a context manager that closes it.
    """

    def __init__(self, model: Model, core: _core.Session) -> None:
        self._model = model
        self._core = core

    @property
    def model(self) -> Model:
        """The model this session runs on."""
        return self._model

    @property
    def tokens(self) -> list[int]:
        """All tokens so far, a copy."""
        return list(self._core.tokens)

    @property
    def position(self) -> int:
        """How many tokens the session holds."""
        return int(self._core.position)

    @property
    def cached(self) -> int:
        """How many of them have keys and values; the rest is forwarded first next time."""
        return int(self._core.cached)

    @property
    def max_tokens(self) -> int:
        """Most tokens the session may hold."""
        return int(self._core.max_tokens)

    @property
    def marks(self) -> list[int]:
        """Positions that `rewind` reaches without forwarding anything again, ascending."""
        return list(self._core.marks)

    @overload
    def forward(
        self, tokens: Tokens, *, logits: Literal["last", "all"] = ...
    ) -> npt.NDArray[np.float32]: ...
    @overload
    def forward(self, tokens: Tokens, *, logits: Literal["none"]) -> None: ...
    def forward(
        self, tokens: Tokens, *, logits: Literal["last", "all", "none"] = "last"
    ) -> npt.NDArray[np.float32] | None:
        """Appends tokens and returns float32 logits: [vocab] of the last, or [len(tokens)][vocab].

        Raises InvalidArgument for a token out of range, no tokens at all, a full context or a
        closed session; OutOfMemory where pages or that many logits cannot be had.
        """
        result: npt.NDArray[np.float32] | None = self._core.forward(tokens, logits)
        return result

    def score(self, tokens: Tokens) -> npt.NDArray[np.float32]:
        """Log-probabilities of ``tokens[1:]``, [len(tokens) - 1], each after all before it.

        The session stays as it is; logits are made in blocks, never all at once.
        """
        return self._core.score(tokens)

    @overload
    def generate(
        self,
        tokens: Tokens = ...,
        sampling: Sampling | None = ...,
        *,
        max_new_tokens: int | None = ...,
        stop_tokens: Iterable[int] = ...,
        stop: str | Iterable[str] = ...,
        logprobs: None = ...,
        mask: MaskFunction | None = ...,
    ) -> Generation[int]: ...
    @overload
    def generate(
        self,
        tokens: Tokens = ...,
        sampling: Sampling | None = ...,
        *,
        max_new_tokens: int | None = ...,
        stop_tokens: Iterable[int] = ...,
        stop: str | Iterable[str] = ...,
        logprobs: int,
        mask: MaskFunction | None = ...,
    ) -> Generation[Token]: ...
    def generate(
        self,
        tokens: Tokens = (),
        sampling: Sampling | None = None,
        *,
        max_new_tokens: int | None = None,
        stop_tokens: Iterable[int] = (),
        stop: str | Iterable[str] = (),
        logprobs: int | None = None,
        mask: MaskFunction | None = None,
    ) -> Generation[Any]:
        """Appends ``tokens`` and samples what follows, one id at a time.

        Args:
            tokens: the prompt; may be empty where the session already holds tokens.
            sampling: how to choose; default: `Sampling()`, temperature 1.
            max_new_tokens: most tokens to sample; None: until a stop or the context is full.
            stop_tokens: ids that end the generation; a sampled one is yielded last.
            stop: strings that end it; the token that completes one is yielded last. Use
                `stream_text` for text in which no part of a stop string shows.
            logprobs: yield `Token` (id, logprob, top) with so many alternatives instead of ids.
            mask: called before each token; returns the allowed ids, bool [vocab] or packed bits
                (little-endian, uint8), or None for no restriction.

        Returns:
            An iterator over the tokens, with ``finish_reason``; close it (or leave its ``with``
            block) to stop early. When it ends or is closed, `tokens` is the prompt plus what was
            yielded.

        Raises:
            InvalidArgument: an option or token is out of range, or the prompt does not fit;
                nothing was changed.
        """
        sampling = Sampling() if sampling is None else sampling
        _check_options(sampling, logprobs, mask)
        matcher = None
        if stop:
            from .detokenizer import StopStrings

            matcher = StopStrings([stop] if isinstance(stop, str) else list(stop))
        self._model._ban_reserved_tokens()
        core = _core.Generation(
            self._core,
            tokens,
            sampling,
            max_new_tokens,
            list(stop_tokens),
            -1 if logprobs is None else logprobs,
        )
        return Generation(self._model, core, _with_allowed(mask, sampling), matcher)

    def stream_text(
        self,
        tokens: Tokens = (),
        sampling: Sampling | None = None,
        *,
        max_new_tokens: int | None = None,
        stop_tokens: Iterable[int] = (),
        stop: str | Iterable[str] = (),
    ) -> Iterator[str]:
        """`generate` as text: pieces that concatenate to the decoded tokens, up to a stop string.

        Stop tokens are not part of the text, and nothing that may still become a stop string is
        yielded before it is certain.
        """
        from .detokenizer import StopStrings, StreamingDetokenizer

        stops = frozenset(stop_tokens)
        holder = StopStrings([stop] if isinstance(stop, str) else list(stop)) if stop else None
        detokenizer = StreamingDetokenizer(self._model.tokenizer)
        with self.generate(
            tokens, sampling, max_new_tokens=max_new_tokens, stop_tokens=stops
        ) as generation:
            for token in generation:
                if token in stops:
                    break
                delta = detokenizer.push(token)
                if holder is not None and delta:
                    delta, stopped = holder.push(delta)
                    if stopped:
                        if delta:
                            yield delta
                        return
                if delta:
                    yield delta
        rest = detokenizer.flush()
        if holder is not None:
            rest, stopped = holder.push(rest)
            rest += "" if stopped else holder.flush()
        if rest:
            yield rest

    def fork(self) -> Session:
        """A session of its own with the same tokens; keys and values are shared until written."""
        return Session(self._model, self._core.fork())

    def rewind(self, position: int) -> int:
        """Keeps the first ``position`` tokens.

        Free at a mark and near the end; elsewhere the nearest earlier mark is taken and the tokens
        after it are forwarded again with the next call: their number is returned. The result is
        the same, bit for bit.
        """
        return int(self._core.rewind(position))

    def mark(self) -> int:
        """Makes the cached position one that `rewind` reaches for free, and returns it.

        At most 16 are kept, the oldest is dropped first. Generations mark their start themselves.
        """
        return int(self._core.mark())

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes tokens, keys and values to a file that `Model.restore` reads."""
        self._core.save(os.fspath(path))

    def close(self) -> None:
        """Releases the session's memory; later calls raise InvalidArgument."""
        self._core.close()

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return bool(self._core.closed)

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        if self.closed:
            return "<Session: closed>"
        return f"<Session: {self.position} of {self.max_tokens} tokens>"


Mask = npt.NDArray[np.bool_] | npt.NDArray[np.uint8] | None
MaskFunction = Callable[[], Mask]


class Generation(Iterator[TokenOrId]):
    """The tokens of one `Session.generate`, sampled as they are asked for."""

    def __init__(
        self,
        model: Model,
        core: _core.Generation,
        mask: MaskFunction | None,
        stop: StopStrings | None,
    ) -> None:
        self._core = core
        self._mask = mask
        self._stop = stop
        self._detokenizer: StreamingDetokenizer | None = None
        self._stopped = False
        if stop is not None:
            from .detokenizer import StreamingDetokenizer

            self._detokenizer = StreamingDetokenizer(model.tokenizer)

    @property
    def finish_reason(self) -> str | None:
        """ "stop" (a stop token or string), "length" (budget or context), "closed", or None: goes
        on."""
        return "stop" if self._stopped else self._core.finish_reason

    @property
    def seed(self) -> int:
        """What `Sampling.seed` must be to draw the same tokens again."""
        return int(self._core.seed)

    def __next__(self) -> TokenOrId:
        token: Any = self._core.next() if self._mask is None else self._core.next(self._mask())
        if token is None:
            raise StopIteration
        self._look_for_stop(token if isinstance(token, int) else token[0])
        return token if isinstance(token, int) else Token(*token)  # type: ignore[return-value]

    def _look_for_stop(self, token: int) -> None:
        if self._detokenizer is None or self._stop is None:
            return
        delta = self._detokenizer.push(token)
        if delta and self._stop.push(delta)[1]:
            self._stopped = True
            self._core.close()

    def close(self) -> None:
        """Stops here; the session keeps what was yielded and stays usable."""
        self._core.close()

    def __enter__(self) -> Generation[TokenOrId]:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def next_of_all(generations: Sequence[Generation[int]]) -> list[int | None]:
    """`Model.next_tokens`."""
    for index, generation in enumerate(generations):
        if generation._mask is not None:
            raise InvalidArgument(
                f"[next_tokens] generations[{index}]: expected one without a mask or allowed "
                "tokens; take its tokens one by one"
            )
    tokens = _core.next_tokens([generation._core for generation in generations])
    for generation, token in zip(generations, tokens, strict=True):
        if token is not None:
            generation._look_for_stop(token)
    return tokens


def _check_options(sampling: Any, logprobs: int | None, mask: Any) -> None:
    if not isinstance(sampling, Sampling):
        raise InvalidArgument(f"[generate] sampling: expected a Sampling, got {sampling!r}")
    if logprobs is not None and logprobs < 0:
        raise InvalidArgument(f"[generate] logprobs: expected 0 or more, or None, got {logprobs}")
    if mask is not None and not callable(mask):
        raise InvalidArgument(
            f"[generate] mask: expected a function that returns a mask, got a "
            f"{type(mask).__name__}; give one for all tokens as Sampling.allowed_tokens"
        )


def _with_allowed(mask: MaskFunction | None, sampling: Sampling) -> MaskFunction | None:
    """The mask of each step, `Sampling.allowed_tokens` included."""
    if sampling.allowed_tokens is None:
        return mask
    allowed = np.ascontiguousarray(sampling.allowed_tokens)
    if allowed.dtype != np.bool_:
        raise InvalidArgument(
            f"[generate] allowed_tokens: expected bool [vocab], got {allowed.dtype}"
        )
    if mask is None:
        return lambda: allowed

    def both() -> Mask:
        step = mask()
        if step is None:
            return allowed
        if step.dtype == np.bool_:
            return np.logical_and(allowed, step)
        bits = np.unpackbits(step.view(np.uint8), count=len(allowed), bitorder="little")
        return np.logical_and(allowed, bits)

    return both
