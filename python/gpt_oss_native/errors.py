"""The exceptions this package raises; the compiled core raises the same classes.

Every message has one form: ``[operation] what was expected, what came, what to do``.
"""

from __future__ import annotations


class GptOssError(Exception):
    """Base of everything this package raises on purpose."""


class InvalidArgument(GptOssError, ValueError):  # noqa: N818
    """An argument, a token or a state does not fit the call; nothing was changed."""


class CheckpointError(GptOssError):
    """A checkpoint is missing, damaged, or not a gpt-oss checkpoint."""


class OutOfMemory(GptOssError, MemoryError):  # noqa: N818
    """Memory for weights, cache or workspace could not be had; what was held is still held."""


class DeviceError(GptOssError):
    """The requested device is absent, unsupported, or failed."""
