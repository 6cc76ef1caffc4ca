"""Which tiles the tensor-core products of csrc/cuda take: host functions, compiled as they are.

They need the CUDA compiler for the headers, and no device.
"""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

CSRC = Path(__file__).resolve().parents[2] / "csrc"
SMS = 132  # of an H200

SHIM = """
#include "cuda/tuning.h"
using namespace gptoss::cuda;
namespace {
DeviceInfo device_of(int sms, int capability) {
  DeviceInfo device;
  device.num_sms = sms;
  device.compute_capability = capability;
  return device;
}
}  // namespace
extern "C" void dense(long rows, int tokens, int sms, int* out) {
  const DenseTiling tiling = dense_tiling(rows, tokens, device_of(sms, 90));
  out[0] = tiling.warpgroups;
  out[1] = tiling.tile_tokens;
  out[2] = tiling.splits;
}
extern "C" int expert(int slots, int experts, int capability) {
  return expert_tile_tokens(slots, experts, device_of(132, capability));
}
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        pytest.skip("needs the CUDA compiler")
    folder = tmp_path_factory.mktemp("tuning")
    source, built = folder / "shim.cc", folder / "tuning.so"
    source.write_text(SHIM)
    options = ["-std=c++20", "-shared", "-Xcompiler=-fPIC", f"-I{CSRC}", "-o", str(built)]
    subprocess.run([nvcc, *options, str(source), str(CSRC / "cuda/tuning.cc")], check=True)
    return ctypes.CDLL(str(built))


@pytest.fixture
def dense(library: ctypes.CDLL) -> Callable[..., tuple[int, int, int]]:
    def call(rows: int, tokens: int, sms: int = SMS) -> tuple[int, int, int]:
        out = (ctypes.c_int * 3)()
        library.dense(ctypes.c_long(rows), tokens, sms, out)
        return out[0], out[1], out[2]

    return call


def test_dense_tiles_are_of_shapes_that_kernels_have(
    dense: Callable[..., tuple[int, int, int]],
) -> None:
    for rows in (32, 96, 2880, 5120, 201_088):
        for tokens in [*range(1, 300), 511, 2048, 4096, 8191]:
            warpgroups, tile, splits = dense(rows, tokens)
            assert splits == 1 or (warpgroups == 1 and splits * -(-rows // 64) <= SMS)
            allowed = {1: (16, 32, 64, 128), 2: (128, 160, 192, 224, 256)}[warpgroups]
            assert tile in allowed, (rows, tokens, warpgroups, tile)


def test_few_tokens_take_one_tile_and_as_many_row_blocks_as_there_can_be(
    dense: Callable[..., tuple[int, int, int]],
) -> None:
    for tokens in (1, 16, 17, 33, 64):
        warpgroups, tile, splits = dense(2880, tokens)
        assert warpgroups == 1
        assert tokens <= tile < 2 * max(tokens, 16)
        assert splits == 2  # 45 tiles for 132 multiprocessors
    assert dense(2880, 256) == (1, 128, 1)  # 90 tiles for 132 multiprocessors; wide ones were 23


def test_many_tokens_take_wide_tiles_that_fill_the_last_wave(
    dense: Callable[..., tuple[int, int, int]],
) -> None:
    for rows in (2880, 5120):
        for tokens in (2048, 4096, 8192):
            warpgroups, tile, _ = dense(rows, tokens)
            assert warpgroups == 2
            tiles = -(-rows // 128) * -(-tokens // tile)
            assert tiles / (-(-tiles // SMS) * SMS) > 0.75, (rows, tokens, tile)


def test_expert_tiles_fit_the_kernels_of_the_device(library: ctypes.CDLL) -> None:
    for slots in (1, 4, 132, 1024, 16_384):
        for experts in (1, 4, 32, 128):
            assert library.expert(slots, experts, 80) == 128
            assert library.expert(slots, experts, 100) == 128
            assert library.expert(slots, experts, 90) in (64, 192)
    assert library.expert(64 * 4, 32, 90) == 64  # 8 tokens an expert: bytes
    assert library.expert(256 * 4, 32, 90) == 64  # 32
    assert library.expert(4096 * 4, 32, 90) == 192  # 512: arithmetic
