"""quantize_int15

python benchmarks/bench_quantize_int15.py --threads 1 --json before.json
"""

from __future__ import annotations

from gpt_oss_native.bench.run import run_op

if __name__ == "__main__":
    raise SystemExit(run_op("quantize_int15", __doc__))
