import subprocess
import sys

import pytest
import torch

from steadynorm.lab import machine
from steadynorm.reporting.failure import UserError

FAULTS = """
import resource, sys, torch
from steadynorm.lab.machine import reuse_memory
if sys.argv[1] == "reuse":
    assert reuse_memory()
def step():
    a = torch.ones(10_000_000)  # 40 MB
    return (a + 1).sum()
for _ in range(8):
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(how: str) -> int:
    done = subprocess.run([sys.executable, "-c", FAULTS, how], capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only glibc has mallopt")
def test_memory_of_big_tensors_is_reused() -> None:
    assert page_faults("reuse") < page_faults("as it is") / 4


def test_a_c_library_without_mallopt_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine.ctypes, "CDLL", lambda name: object())
    assert machine.reuse_memory() is False


@pytest.mark.parametrize(
    ("flags", "precision"),
    [("fma avx512f", "fp32"), ("avx512f avx512_bf16", "bf16"), ("amx_bf16", "bf16"), ("", "fp32")],
)
def test_auto_is_bf16_where_the_processor_multiplies_bf16(
    monkeypatch: pytest.MonkeyPatch, flags: str, precision: str
) -> None:
    monkeypatch.setattr(machine, "cpuinfo", {"flags": flags}.__getitem__)
    assert machine.choose_precision("auto", torch.device("cpu")) == precision


@pytest.mark.parametrize("wanted", ["fp32", "bf16"])
def test_a_named_precision_is_taken(monkeypatch: pytest.MonkeyPatch, wanted: str) -> None:
    monkeypatch.setattr(machine, "cpuinfo", lambda key: "")
    assert machine.choose_precision(wanted, torch.device("cpu")) == wanted


def test_asking_for_an_absent_gpu_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="--device cpu"):
        machine.choose_device("cuda")
    assert machine.choose_device("auto") == torch.device("cpu")


def test_threads_are_torchs_but_no_more_than_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "count_cores", lambda: 3)
    for torchs, threads in ((64, 3), (2, 2)):
        monkeypatch.setattr(torch, "get_num_threads", lambda torchs=torchs: torchs)
        assert machine.choose_threads(None) == threads
        assert machine.choose_threads(3) == 3
        with pytest.raises(UserError, match=r"--threads: must be at most the 3 cores .*, got 100000\."):
            machine.choose_threads(100_000)
