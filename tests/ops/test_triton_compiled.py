"""What the GPU kernels become on a GPU: compiled for one without having one, in a process that interprets nothing."""

import importlib.util
import json
import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="Triton has no package for this platform"
)
KERNELS = ("moments", "transform", "transform_sums", "transform_grad")


@pytest.fixture(scope="module")
def hopper(tmp_path_factory):
    """What every kernel becomes on a GPU of compute capability 9, by name; compiled without one, in a fresh process."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path_factory.mktemp("triton"))
    result = subprocess.run(
        [sys.executable, "-c", COMPILE], check=True, capture_output=True, text=True, env=environment
    )
    return json.loads(result.stdout)


COMPILE = """
import json, re
from unittest import mock
import torch, triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from steadynorm.ops import _triton

NAMES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
found = {}

def compile_only(kernel, programs, *arguments, num_warps=8, **blocks):
    given = dict(zip(kernel.arg_names, arguments)) | blocks
    signature, constants, attributes = {}, {}, {}
    for i, (name, value) in enumerate(given.items()):
        if name in blocks or value is None or type(value) is int and value == 1:
            signature[name], constants[i,] = "constexpr", value
            continue
        pointer = isinstance(value, torch.Tensor)
        signature[name] = "*" + NAMES[value.dtype] if pointer else "i32" if value < 2**31 else "i64"
        if pointer or value % 16 == 0:
            attributes[i,] = [["tt.divisibility", 16]]
    options = {"num_warps": num_warps, "enable_fp_fusion": True}
    source = ASTSource(kernel, signature, constants, attributes)
    ptx = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options).asm["ptx"]
    found[f"{label} {kernel.__name__}"] = {
        "wide": len(re.findall(r"ld\\.global\\S*\\.v4|cp\\.async\\S* .*, 0x10,", ptx)),
        "spilled": len(re.findall(r"(?:ld|st)\\.local", ptx)),
    }

with mock.patch.multiple(_triton, _launch=compile_only, _programs_at_once=lambda device: 396, _check=lambda *_: None):
    for label, shape, dtype, layout in (
        ("runs", (16, 64, 56, 56), torch.bfloat16, torch.contiguous_format),
        ("odd", (16, 64, 7, 7), torch.float32, torch.contiguous_format),
        ("short", (256, 64, 7, 7), torch.bfloat16, torch.contiguous_format),
        ("rows", (16, 64, 56, 56), torch.bfloat16, torch.channels_last),
        ("ones", (2, 1, 1, 1), torch.float16, torch.contiguous_format),
        ("image", (1, 3, 5, 5), torch.float32, torch.contiguous_format),
    ):
        x = torch.empty(shape, dtype=dtype).to(memory_format=layout)
        numbers = [torch.empty(shape[1]) for _ in range(6)]
        _triton.moments(x)
        residual, activation = (x, "silu") if label == "rows" else (None, "relu")
        _triton.transform(x, *numbers[:3], residual, activation)
        _triton.transform_sums(x, x, *numbers[:3], residual, activation)
        _triton.transform_grad(x, x, *numbers[:3], residual, activation, *numbers[3:])
    supported = _triton.unsupported_reason(x) is None
print(json.dumps(found | {"supported": supported}))
"""


def test_every_kernel_compiles_for_a_gpu_without_spilling(hopper):
    spilled = {name: kernel["spilled"] for name, kernel in hopper.items() if name != "supported"}
    assert len(spilled) == 36
    assert not any(spilled.values()), spilled


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("tensor", ["runs", "short", "rows"])
def test_large_tensors_are_read_16_bytes_at_a_time(hopper, tensor, kernel):
    assert hopper[f"{tensor} {kernel}"]["wide"] >= 2


def test_tensors_on_the_cpu_are_not_supported_unless_interpreted(hopper):
    assert hopper["supported"] is False
