"""Several threads at once, and forked processes, by each of Numba's threading layers."""

import os
import subprocess
import sys

import pytest

BEGIN = """
import os, threading, numba, torch, steadynorm
def train(seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(16, 8, 32, 32, generator=generator, requires_grad=True)
    layer = steadynorm.BatchNorm2d(8, activation="relu")
    with torch.no_grad():
        layer.weight.uniform_(0.5, 1.5, generator=generator)
    y = layer(x)
    y.backward(torch.randn(y.shape, generator=generator))
    return y.detach(), x.grad, layer.weight.grad, layer.running_var
"""
AT_ONCE = """
torch.set_num_threads(2)
expected = [train(seed) for seed in range(4)]
print(numba.threading_layer())
wrong = []
def repeat(seed):
    for _ in range(40):
        if not all(map(torch.equal, train(seed), expected[seed])):
            wrong.append(seed)
threads = [threading.Thread(target=repeat, args=(seed,)) for seed in range(4)]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(wrong)
"""
GRAPH_OF_THE_PARENT = """
torch.set_num_threads(1)
x = torch.randn(16, 8, 32, 32, requires_grad=True)
y = steadynorm.BatchNorm2d(8, activation="relu")(x)
child = os.fork()
if child == 0:
    try:
        y.sum().backward()
    except RuntimeError as error:
        print(error, flush=True)
    os._exit(0)
print(os.waitpid(child, 0)[1])
"""
FIRST_IN_THE_CHILD = """
torch.set_num_threads(2)
torch.randn(2**20).exp().sum()  # starts torch's threads
child = os.fork()
if child == 0:
    torch.set_num_threads(1)
    train(0)
    print("trained", flush=True)
    os._exit(0)
print(os.waitpid(child, 0)[1])
"""


def run_python(code, **environment):
    environment = os.environ | {"OMP_NUM_THREADS": "2", "NUMBA_NUM_THREADS": "2"} | environment
    done = subprocess.run(
        [sys.executable, "-c", BEGIN + code], env=environment, capture_output=True, text=True, timeout=250
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.parametrize("layer", ["omp", "workqueue"])
def test_threads_that_train_at_once_get_the_numbers_of_one(layer):
    """The work queue ends a process in which two threads enter it at once."""
    assert run_python(AT_ONCE, NUMBA_THREADING_LAYER=layer) == [layer, "[]"]


def test_a_graph_of_the_parent_has_no_backward_in_a_forked_child():
    message, status = run_python(GRAPH_OF_THE_PARENT)
    assert message.startswith(
        "steadynorm.ops: the compiled kernels must run in the process that loaded them, got one fo"
    )
    assert status == "0"


def test_a_forked_child_may_be_the_first_to_load_the_kernels():
    assert run_python(FIRST_IN_THE_CHILD) == ["trained", "0"]
