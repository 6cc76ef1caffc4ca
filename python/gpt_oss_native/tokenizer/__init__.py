"""The tokenizer: a ``tiktoken.Encoding`` built from a checkpoint's own ``tokenizer.json``.

Nothing here reaches the network, and nothing tokenises differently from the file: what tiktoken
cannot represent exactly is a ``CheckpointError`` at load.
"""

from __future__ import annotations

from .encode import encode_text
from .ids import decode_bytes, decode_text, reserved_ids, special_ids
from .load import load_tokenizer
from .patterns import GPT2_PATTERN, O200K_PATTERN

__all__ = [
    "GPT2_PATTERN",
    "O200K_PATTERN",
    "decode_bytes",
    "decode_text",
    "encode_text",
    "load_tokenizer",
    "reserved_ids",
    "special_ids",
]
