"""quantize_int15: what it has beside the contract in test_quantize_int8: every code there is."""

from __future__ import annotations

import numpy as np
from gpt_oss_native import ops


def test_quantize_int15_holds_every_code(device_isa: str) -> None:
    # All 32,513 codes, each block with the largest one, so that codes are the values themselves.
    values = np.resize(np.arange(-16256, 16257), 31 * 1056).reshape(1056, 31)
    x = np.concatenate([values, np.full((1056, 1), 16256)], axis=1).astype(np.float32)
    codes, scales = ops.quantize_int15(x, isa=device_isa, threads=1)
    np.testing.assert_array_equal(codes, x)
    assert (scales == 1).all()
