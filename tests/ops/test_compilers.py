"""Where Numba or Triton is absent, broken or switched off, layers train by torch's kernels; one warning says why."""

import gc
import json
import subprocess
import sys

import pytest

from steadynorm.ops import _compilers

TRAIN = """
import warnings
import torch, steadynorm
from steadynorm.ops import dispatch

def train(backend="auto"):
    torch.manual_seed(0)
    x = torch.randn(16, 8, 32, 32, requires_grad=True)
    layer = steadynorm.BatchNorm2d(8, activation="relu")
    with steadynorm.backend(backend):
        y = layer(x)
        y.backward(torch.randn(y.shape))
    return x.grad, layer.running_var

with warnings.catch_warnings(record=True) as told:
    warnings.simplefilter("always")
    grads = [train() for _ in range(2)]
    tuned = steadynorm.BatchNorm1d(4, running="self_tuned")
    for _ in range(3):
        tuned(torch.randn(16, 4))
told = [str(one.message) for one in told if one.category is RuntimeWarning]
for ours, theirs in zip(grads[1], train("reference")):
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
assert tuned.running_mean.abs().sum() > 0
print(len(told), dispatch.explain_backend(torch.zeros(32, 8, 32, 32)).backend)
print(told[0] if told else "")
try:
    train("numba")
except RuntimeError as error:
    print(error)
"""
BLOCK = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "{name}":
            raise ModuleNotFoundError("No module named '{name}'", name=name)
sys.meta_path.insert(0, Block())
"""
FIRST_WARNS = """
warnings.simplefilter("error")
layer = steadynorm.BatchNorm2d(8)
try:
    layer(torch.zeros(32, 8, 32, 32))
except RuntimeWarning:
    print("warned")
layer(torch.zeros(32, 8, 32, 32))
"""
ON_GPU = """
import torch, steadynorm, warnings
from steadynorm.ops import dispatch
class OnGpu:
    is_cpu, is_cuda = False, True
    def numel(self): return 1 << 24
with warnings.catch_warnings(record=True) as told:
    choices = [dispatch.explain_backend(OnGpu()) for _ in range(2)]
print(len(told), choices[1].backend, choices[1].reason)
try:
    with steadynorm.backend("triton"): pass
except RuntimeError as error:
    print(error)
"""
# what is wrong: the package, its source, what the warning says
FAKES = {
    "refuses NumPy": ("numba", "raise ImportError('Numba needs NumPy 2.3 or less.')", "Numba needs NumPy 2.3"),
    "empty": ("numba", "", "numba cannot be loaded (AttributeError"),
    "half written": ("numba", "def (", "SyntaxError"),
    "no library": ("llvmlite", "raise OSError('cannot load libllvmlite.so')", "cannot load libllvmlite.so"),
}


# Each program runs in a copy of a process that has imported torch, which takes longer than all that the program does.
EACH_BY_ITSELF = """
import json, os, sys
import torch

def run(program, environment):
    os.environ.update(environment)
    sys.path[:0] = filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))
    exec(compile(program, "<program>", "exec"), {"__name__": "__main__"})

loaded = [name for name in sys.modules if name.partition(".")[0] in ("numba", "llvmlite", "triton", "steadynorm")]
assert not loaded, loaded
for program, environment, output in json.load(sys.stdin):
    child = os.fork()
    if child == 0:
        sys.stdout = sys.stderr = open(output, "w")
        status = 1
        try:
            run(program, environment)
            status = 0
        except BaseException:
            import traceback
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(status)
    with open(output, "a") as file:
        print(f"status {os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])}", file=file)
"""


def fake(folder, package, content):
    """A folder in which a package has that source."""
    (folder / package).mkdir(parents=True)
    (folder / package / "__init__.py").write_text(content)
    return {"PYTHONPATH": str(folder)}


@pytest.fixture(scope="module")
def said(tmp_path_factory):
    """What each program prints, by its name."""
    folder = tmp_path_factory.mktemp("programs")
    programs = {
        **{f"without {name}": (BLOCK.format(name=name) + TRAIN, {}) for name in ("numba", "llvmlite")},
        **{name: (TRAIN, fake(folder / name, package, source)) for name, (package, source, _) in FAKES.items()},
        "switched off": (TRAIN, {"NUMBA_DISABLE_JIT": "1"}),
        "warnings are errors": (BLOCK.format(name="numba") + TRAIN.partition("with warnings")[0] + FIRST_WARNS, {}),
        "broken triton": (ON_GPU, fake(folder / "triton", "triton", "raise ImportError('libcuda.so.1 is missing')")),
    }
    outputs = {name: folder / f"{number}.txt" for number, name in enumerate(programs)}
    asked = [(*program, str(outputs[name])) for name, program in programs.items()]
    command = [sys.executable, "-c", EACH_BY_ITSELF]
    done = subprocess.run(command, input=json.dumps(asked), capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr
    return {name: path.read_text().splitlines() for name, path in outputs.items()}


def lines_of(said, name):
    *lines, status = said[name]
    assert status == "status 0", lines
    return lines


def assert_falls_back(lines, reason):
    assert lines[0] == "1 torch"
    assert lines[1].startswith("steadynorm: the compiled kernels must be importable")
    assert reason in lines[1]
    assert lines[2].startswith("backend: numba must be installed and usable, but")
    assert reason in lines[2]


@pytest.mark.parametrize("name", ["numba", "llvmlite"])
def test_without_numba_layers_train_by_torchs_kernel(said, name):
    assert_falls_back(lines_of(said, f"without {name}"), f"No module named '{name}'")


@pytest.mark.parametrize("fault", FAKES)
def test_a_broken_numba_is_named_and_passed_over(said, fault):
    assert_falls_back(lines_of(said, fault), FAKES[fault][2])


@pytest.mark.parametrize(
    "error",
    [
        ValueError("numpy.dtype size changed"),
        SystemError("initialization failed"),
        TypeError("metaclass conflict"),
        ImportError(),
    ],
    ids=repr,
)
def test_other_errors_of_an_import_are_named_too(error, monkeypatch):
    def fail():
        raise error

    _compilers._try.cache_clear()
    with monkeypatch.context() as patched:
        patched.setattr(_compilers, "_load_numba", fail)
        reason = _compilers.why_unusable("numba")
    _compilers._try.cache_clear()
    assert reason == f"numba cannot be loaded ({type(error).__name__}: {error})"


@pytest.mark.parametrize("collecting", [True, False])
def test_loading_the_kernels_leaves_pythons_garbage_collector_as_it_was(collecting):
    before = gc.isenabled()
    try:
        (gc.enable if collecting else gc.disable)()
        _compilers._load_numba.__wrapped__()
        assert gc.isenabled() is collecting
    finally:
        (gc.enable if before else gc.disable)()


def test_switched_off_compilation_is_no_error(said):
    assert_falls_back(lines_of(said, "switched off"), "NUMBA_DISABLE_JIT is set")


def test_where_warnings_are_errors_the_second_batch_trains(said):
    assert lines_of(said, "warnings are errors") == ["warned"]


def test_a_broken_triton_is_named_and_passed_over(said):
    first, second = lines_of(said, "broken triton")
    assert first.startswith("1 torch triton cannot be loaded (ImportError: libcuda.so.1 is missing)")
    assert second.startswith("backend: triton must be installed and usable, but triton cannot be loaded")
