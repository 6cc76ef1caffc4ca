"""rms_norm

python benchmarks/bench_rms_norm.py --threads 1 --json before.json
"""

from __future__ import annotations

from gpt_oss_native.bench.run import run_op

if __name__ == "__main__":
    raise SystemExit(run_op("rms_norm", __doc__))
