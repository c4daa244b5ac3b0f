import os
import subprocess
import sys

import pytest
import torch

from steadynorm.ops import dispatch
from steadynorm.ops.dispatch import SMALL, choose_backend

BIG = torch.zeros(8, 16, 16, 16)


@pytest.mark.parametrize(
    ("x", "others", "backend"),
    [
        (BIG, (), "numba"),
        (BIG, (BIG, None), "numba"),
        (BIG.bfloat16(), (), "numba"),
        (BIG.to(memory_format=torch.channels_last), (), "numba"),
        (torch.zeros(SMALL // 4, 4), (), "numba"),
        (torch.zeros(SMALL // 4 - 1, 4), (), "reference"),
        (BIG.half(), (), "reference"),
        (BIG.double(), (), "reference"),
        (BIG.bfloat16(), (BIG,), "reference"),
        (BIG.transpose(2, 3), (), "reference"),
        (BIG[:, :, ::2], (), "reference"),
        (BIG.to("meta"), (), "reference"),
        (torch.nn.Parameter(BIG), (), "numba"),
    ],
)
def test_the_backend_follows_from_the_tensors(x, others, backend):
    assert choose_backend(x, *others) == backend


def test_function_transforms_run_the_reference():
    seen = []

    def look(x):
        seen.append(choose_backend(x))
        return x.sum()

    torch.func.grad(look)(BIG)
    assert seen == ["reference"]


def test_a_forked_process_runs_the_reference(monkeypatch):
    parent = os.getpid()
    monkeypatch.setattr(os, "getpid", lambda: parent + 1)
    assert choose_backend(BIG) == "reference"


def test_small_tensors_do_not_pay_for_numba():
    """In a fresh process, because this one may have imported it."""
    code = (
        "import sys, torch, steadynorm\n"
        "steadynorm.BatchNorm1d(4)(torch.randn(8, 4)).sum().backward()\n"
        "assert 'numba' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_kernel_of_the_reference_has_a_door():
    from steadynorm.ops import _numba, reference

    kernels = {"moments", "transform", "transform_sums", "transform_grad"}
    for module in (dispatch, reference, _numba):
        assert kernels <= set(module.__all__)
