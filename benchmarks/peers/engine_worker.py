"""gpt-oss-native as `peers_cpu.py` drives it: the calls of llama_worker.py, on this package."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from gpt_oss_native import GptOssError, Model, Sampling, _core
from serving import serve

GREEDY = Sampling(temperature=0)


class Engine:
    """One model and one session."""

    def __init__(self) -> None:
        self._model: Any = None
        self._session: Any = None

    def load(
        self,
        path: str,
        threads: int,
        context: int,
        dense: str = "int8",
        precision: str = "default",
        isa: str | None = None,
    ) -> dict[str, Any]:
        """Load a model, ready to run."""
        start = time.perf_counter()
        self._model = Model.load(
            path,
            device="cpu",
            dense=dense,
            precision=precision,
            num_threads=threads,
            isa=isa,
        )
        self._session = self._model.session(max_tokens=context)
        seconds = time.perf_counter() - start
        return {"seconds": seconds, "engine": self._model._core.describe()}

    def reset(self) -> dict[str, Any]:
        """Forget all tokens."""
        self._session.rewind(0)
        return {}

    def prefill(self, tokens: list[int]) -> dict[str, Any]:
        """Append tokens; logits of the last."""
        start = time.perf_counter()
        token = int(self._session.forward(tokens).argmax())
        return {"seconds": time.perf_counter() - start, "token": token}

    def generate(self, count: int, token: int) -> dict[str, Any]:
        """Greedy tokens one by one, the first from the token given."""
        start = time.perf_counter()
        tokens = list(self._session.generate([token], GREEDY, max_new_tokens=count))
        return {"seconds": time.perf_counter() - start, "tokens": tokens}

    def logits(self, tokens: list[int]) -> dict[str, Any]:
        """Logits of each token."""
        return {"rows": np.stack([self._session.forward([token]) for token in tokens])}

    def save(self, path: str) -> dict[str, Any]:
        """What the session holds, in a file."""
        self._session.save(path)
        return {}

    def restore(self, path: str) -> dict[str, Any]:
        """What `save` wrote."""
        self._session = self._model.restore(path)
        return {}

    def bandwidth(self, threads: int) -> dict[str, Any]:
        """Bytes a second that so many threads read, here and now."""
        return {"bytes_per_second": _core.read_bandwidth(1 << 30, threads, 2)}

    def memory(self) -> dict[str, Any]:
        """What the model says that it holds."""
        return dict(self._model.memory())

    def token_bytes(self, dense: str, position: int) -> dict[str, Any]:
        """What a token must read."""
        from gpt_oss_native.bench.model import ModelBencher

        return {"bytes": ModelBencher(self._model, dense=dense).token_bytes(position)}


if __name__ == "__main__":
    serve(Engine(), GptOssError)
