"""A whole model: ``gpt-oss-native bench`` under the name that benchmarks have here.

python benchmarks/bench_model.py -m DIR --dense int8 --prefill 512 2048 --depth 0 4096
"""

from __future__ import annotations

import sys

from gpt_oss_native.cli import main

if __name__ == "__main__":
    raise SystemExit(main(["bench", *sys.argv[1:]]))
