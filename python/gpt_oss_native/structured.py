"""Text that follows a JSON schema, by construction: token masks from llguidance, extra ``grammar``.

Only texts are constrained, from their ``<|message|>`` on; which ones is the chat's matter.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import threading
import weakref
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from .errors import InvalidArgument

if TYPE_CHECKING:
    import tiktoken

    from .harmony import HarmonyEncoding

# The trie of a vocabulary takes a second to build for o200k; it is kept as long as the vocabulary.
_tokenizers: weakref.WeakKeyDictionary[tiktoken.Encoding, dict[int, Any]] = (
    weakref.WeakKeyDictionary()
)
_building = threading.Lock()


@functools.cache
def is_available() -> bool:
    """Whether llguidance is installed."""
    return importlib.util.find_spec("llguidance") is not None


def require(what: str) -> None:
    """Raises InvalidArgument, naming the extra, where llguidance is not installed."""
    if not is_available():
        raise InvalidArgument(
            f"[chat] {what}: expected the package llguidance, which keeps the text to the schema, "
            "and it is not installed; run pip install 'gpt-oss-native[grammar]'"
        )


class SchemaGrammar:
    """A JSON schema over a vocabulary, ready to be followed many times.

    Raises InvalidArgument for a schema that llguidance cannot follow; with ``lenient``, keywords
    and formats that it does not know are passed over.
    """

    def __init__(
        self,
        encoding: HarmonyEncoding,
        schema: dict[str, Any],
        vocab_size: int,
        *,
        lenient: bool = False,
    ) -> None:
        require("a schema")
        import llguidance

        self.encoding = encoding
        self.vocab_size = vocab_size
        self._tokenizer = _tokenizer(encoding, vocab_size)
        if lenient:
            schema = {**schema, "x-guidance": {"lenient": True}}
        try:
            grammar = llguidance.LLMatcher.grammar_from_json_schema(json.dumps(schema))
            problem = llguidance.LLMatcher.validate_grammar(grammar, self._tokenizer)
        except (TypeError, ValueError) as error:
            problem = str(error)
        if problem:
            raise InvalidArgument(
                f"[chat] schema: expected a JSON schema that can be followed, got one with: "
                f"{problem}"
            )
        self._start = llguidance.LLMatcher(self._tokenizer, grammar)
        self._num_words = (int(self._tokenizer.vocab_size) + 31) // 32

    def matcher(self, *ends: int) -> Matcher:
        """Follows one text, which any of the tokens ``ends`` finishes."""
        words = np.zeros(self._num_words, dtype=np.uint32)
        return Matcher(self._start.deep_copy(), self.encoding.return_, ends, words, self.vocab_size)


class Matcher:
    """Where one text stands in its schema."""

    def __init__(
        self,
        inner: Any,
        eos: int,
        ends: tuple[int, ...],
        words: npt.NDArray[np.uint32],
        vocab_size: int,
    ) -> None:
        self._inner = inner
        self._eos = eos
        self._ends = ends
        # llguidance writes its masks in here, over all ids that the tokenizer names.
        self._where = (words.ctypes.data, words.nbytes)
        self._bits = words.view(np.uint8)[: (vocab_size + 7) // 8]

    @property
    def error(self) -> str:
        """Why `mask` gave None."""
        return str(self._inner.get_error())

    def mask(self) -> npt.NDArray[np.uint8] | None:
        """Which tokens may come next, packed bits, valid until the next call; None after an
        error."""
        self._inner.unsafe_compute_mask_ptr(*self._where)
        if self._inner.is_error():
            return None
        bits, eos = self._bits, self._eos
        if self._ends != (eos,) and bits[eos >> 3] >> (eos & 7) & 1:
            bits[eos >> 3] &= ~(1 << (eos & 7)) & 0xFF
            for end in self._ends:
                bits[end >> 3] |= 1 << (end & 7)
        return bits

    def accept(self, token: int) -> bool:
        """Takes a token; False where the schema does not allow it, and then `mask` gives None."""
        return token in self._ends or bool(self._inner.consume_token(token))


def _tokenizer(encoding: HarmonyEncoding, vocab_size: int) -> Any:
    from llguidance.tiktoken import lltokenizer_from_encoding

    with _building:
        found = _tokenizers.setdefault(encoding.tokenizer, {})
        if vocab_size not in found:
            # The published tokenizer names one id more than the model has.
            size = max(vocab_size, encoding.vocab_size)
            found[vocab_size] = lltokenizer_from_encoding(
                encoding.tokenizer, n_vocab=size, eos_token=encoding.return_
            )
        return found[vocab_size]
