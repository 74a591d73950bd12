"""The Triton kernel in Triton's interpreter, with CPU tensors and addresses of this process.

Without a GPU, Triton can also compile it for one. Triton reads the variable that chooses the
interpreter when it is imported, so each test is a process of its own. NPSTREAM_TRITON names the
directory of a Triton that other tests do not find.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import npstream

pytest.importorskip("torch")

TRITON = os.environ.get("NPSTREAM_TRITON", "")
if not TRITON and importlib.util.find_spec("triton") is None:
    pytest.skip(
        "Triton is not installed: pip install --target DIRECTORY triton; NPSTREAM_TRITON=DIRECTORY",
        allow_module_level=True,
    )

KERNEL = """
import numpy as np
import torch
from npstream.torch import gather_kernel
from npstream.torch.gather_kernel import gather_values

generator = np.random.default_rng(0)
memory = generator.integers(0, 256, 1 << 16, np.uint8)
base = memory.ctypes.data
gather_kernel.MAX_WORDS = 16  # so that values need several passes
for nbytes in [1, 3, 7, 8, 9, 16, 120, 127, 129, 257, 1000]:
    for offset in (0, 1, 12):
        begins = generator.integers(0, len(memory) - 2000, 6)
        begins[:2] = 0, 0  # twice the same row
        output = torch.full((len(begins) + 2, nbytes), 99, dtype=torch.uint8)
        gather_values(torch.from_numpy(base + begins), offset, output[1:-1])
        expected = np.stack([memory[b + offset : b + offset + nbytes] for b in begins.tolist()])
        assert np.array_equal(output[1:-1].numpy(), expected), (nbytes, offset)
        assert (output[0] == 99).all() and (output[-1] == 99).all(), "a write outside the rows"
gather_values(torch.empty(0, dtype=torch.int64), 0, torch.empty((0, 8), dtype=torch.uint8))

import ctypes, mmap

# A page between two that cannot be read: a read outside a value at an edge crashes.
page = mmap.PAGESIZE
pages = mmap.mmap(-1, 3 * page)
pages[page : 2 * page] = bytes(k % 251 for k in range(page))
array = np.frombuffer(pages, np.uint8)
base = array.ctypes.data
protect = ctypes.CDLL(None).mprotect
for begin in (base, base + 2 * page):
    assert protect(ctypes.c_void_p(begin), ctypes.c_size_t(page), 0) == 0
for nbytes in (1, 5, 8, 13, 100, page):
    begins = np.array([page, 2 * page - nbytes])
    output = torch.empty((2, nbytes), dtype=torch.uint8)
    gather_values(torch.from_numpy(base + begins), 0, output)
    for row, begin in zip(output.numpy(), begins.tolist()):
        assert np.array_equal(row, array[begin : begin + nbytes])
"""

COMPILATION = """
from triton import compile
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from npstream.torch.gather_kernel import _copy_value

types = {"addresses": "*i64", "output": "*u8", "offset": "i32", "nbytes": "i32"}
constants = {"PASSES": 2, "WORDS": 512}
source = ASTSource(_copy_value, types | dict.fromkeys(constants, "constexpr"), constants)
for architecture in (80, 90):
    compiled = compile(source, target=GPUTarget("cuda", architecture, 32))
    loads = [line for line in compiled.asm["ptx"].splitlines() if "ld.global" in line]
    assert loads and all(".b64" in line for line in loads), loads
    assert compiled.asm["cubin"]
"""

LOOP = """
import sys
import numpy as np
import npstream
from gather_device import GatherDevice, SHIFT
from npstream.torch import device_gather
from npstream.torch.gather_kernel import gather_values

class KernelDevice(GatherDevice):
    kernels = 0

    def _copy(self, addresses, column, output):
        gather_values(addresses - SHIFT, column.offset, output)
        KernelDevice.kernels += 1

device_gather.CudaGatherBackend = lambda device: KernelDevice()
device_gather.find_cuda_obstacle = lambda: None
with npstream.open(sys.argv[1]) as dataset:
    options = {"batch_size": 16, "shuffle": True}
    gathered = dataset.iter(0, 1, device="cuda", gather="device", **options)
    for batch, arrays in zip(gathered, dataset.iter(0, 1, threads=0, **options), strict=True):
        for name, column in arrays.items():
            assert np.array_equal(batch[name].numpy(), column), name
    assert KernelDevice.kernels == 2 * 4
"""


def run(code, *arguments, **environment):
    helpers = Path(__file__).parents[1] / "helpers"
    path = os.pathsep.join([str(helpers), *filter(None, [*sys.path, TRITON])])
    result = subprocess.run(
        [sys.executable, "-W", "error::RuntimeWarning", "-c", code, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": path, **environment},
        capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr


def test_the_kernel_copies_the_bytes_of_values():
    run(KERNEL, TRITON_INTERPRET="1")


def test_the_kernel_compiles_for_gpus(tmp_path):
    run(COMPILATION, TRITON_INTERPRET="0", TRITON_CACHE_DIR=str(tmp_path))


def test_a_loop_with_the_kernel_has_the_values_of_the_files(tmp_path):
    generator = np.random.default_rng(0)
    columns = {
        "tokens": generator.integers(0, 50_000, (50, 33), np.uint16),
        "number": np.arange(50),
    }
    npstream.write(tmp_path / "data", columns, shard_size="1KiB")
    run(LOOP, tmp_path / "data", TRITON_INTERPRET="1")
