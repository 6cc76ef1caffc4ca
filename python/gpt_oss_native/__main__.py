"""``python -m gpt_oss_native`` is the command ``gpt-oss-native``."""

from __future__ import annotations

from .cli import main

if __name__ == "__main__":
    raise SystemExit(main())
