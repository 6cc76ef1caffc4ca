"""llama.cpp as `peers_cpu.py` drives it: requests and answers are JSON, one object a line.

Runs in the peer's own environment (llama-cpp-python); knows nothing of this package. Everything is
called below llama-cpp-python's `Llama` class, so that only llama.cpp is timed. Options are the
library's own defaults, but: the context as long as needed, whole micro-batches of 512, sliding
windows kept no longer than they are seen, KV cache float16, flash attention where the library
chooses it, repacking as it chooses.
"""

from __future__ import annotations

import ctypes
import time
from typing import Any

import llama_cpp as lib
import numpy as np
from serving import serve


class Engine:
    """One model and one context."""

    def __init__(self) -> None:
        self._log = lib.llama_log_callback(lambda level, text, data: None)
        lib.llama_log_set(self._log, None)
        lib.llama_backend_init()
        self._model: Any = None
        self._context: Any = None
        self._vocab = 0

    def load(self, path: str, threads: int, context: int) -> dict[str, Any]:
        """Load a model, ready to run."""
        start = time.perf_counter()
        model_params = lib.llama_model_default_params()
        self._model = lib.llama_model_load_from_file(path.encode(), model_params)
        if not self._model:
            raise RuntimeError(f"llama.cpp could not load {path}")
        params = lib.llama_context_default_params()
        params.n_ctx = context
        params.n_batch = 2048
        params.n_ubatch = 512
        params.n_threads = params.n_threads_batch = threads
        params.swa_full = False
        params.no_perf = True
        self._context = lib.llama_init_from_model(self._model, params)
        if not self._context:
            raise RuntimeError("llama.cpp could not make a context")
        self._vocab = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(self._model))
        seconds = time.perf_counter() - start
        return {"seconds": seconds, "engine": lib.llama_print_system_info().decode().strip()}

    def set_threads(self, threads: int) -> dict[str, Any]:
        """Threads from now on."""
        lib.llama_set_n_threads(self._context, threads, threads)
        return {}

    def reset(self) -> dict[str, Any]:
        """Forget all tokens."""
        lib.llama_memory_clear(lib.llama_get_memory(self._context), False)
        return {}

    def prefill(self, tokens: list[int]) -> dict[str, Any]:
        """Append tokens; logits of the last."""
        start = time.perf_counter()
        for begin in range(0, len(tokens), 2048):
            self._decode(tokens[begin : begin + 2048])
        token = int(self._logits().argmax())
        return {"seconds": time.perf_counter() - start, "token": token}

    def generate(self, count: int, token: int) -> dict[str, Any]:
        """Greedy tokens one by one, the first from the token given."""
        tokens = []
        start = time.perf_counter()
        for _ in range(count):
            self._decode([token])
            token = int(self._logits().argmax())
            tokens.append(token)
        return {"seconds": time.perf_counter() - start, "tokens": tokens}

    def logits(self, tokens: list[int]) -> dict[str, Any]:
        """Logits of each token, by appending them one by one; in a file of float32."""
        rows = []
        for token in tokens:
            self._decode([token])
            rows.append(self._logits().copy())
        return {"rows": np.stack(rows)}

    def save(self, path: str) -> dict[str, Any]:
        """What the context holds, in a file."""
        done = lib.llama_state_seq_save_file(self._context, path.encode(), 0, None, 0)
        if not done:
            raise RuntimeError(f"llama.cpp could not write {path}")
        return {"bytes": done}

    def restore(self, path: str) -> dict[str, Any]:
        """What `save` wrote."""
        count = ctypes.c_size_t()
        none = (lib.llama_token * 1)()
        done = lib.llama_state_seq_load_file(
            self._context, path.encode(), 0, none, 0, ctypes.byref(count)
        )
        if not done:
            raise RuntimeError(f"llama.cpp could not read {path}")
        return {}

    def _decode(self, tokens: list[int]) -> None:
        array = (lib.llama_token * len(tokens))(*tokens)
        status = lib.llama_decode(self._context, lib.llama_batch_get_one(array, len(tokens)))
        if status != 0:
            raise RuntimeError(f"llama_decode returned {status}")

    def _logits(self) -> Any:
        pointer = lib.llama_get_logits_ith(self._context, -1)
        return np.ctypeslib.as_array(pointer, shape=(self._vocab,))


if __name__ == "__main__":
    serve(Engine(), RuntimeError)
