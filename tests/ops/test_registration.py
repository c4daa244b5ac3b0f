"""The package is reloaded, and imported again beside models of the first import."""

import subprocess
import sys

import pytest

AGAIN = {
    "reload": """
import importlib, steadynorm.ops.dispatch
importlib.reload(steadynorm.ops.dispatch)
importlib.reload(steadynorm.ops.registration)
importlib.reload(steadynorm)
""",
    "import": """
for name in [name for name in sys.modules if name.partition(".")[0] == "steadynorm"]:
    del sys.modules[name]
import gc; gc.collect()
import steadynorm
""",
}
CODE = """
import sys, torch, steadynorm
def train(layer):
    torch.manual_seed(0)
    x = torch.randn(16, 8, 8, 8, requires_grad=True)
    y = layer(x)
    y.backward(torch.randn(y.shape))
    return x.grad
first = steadynorm.BatchNorm2d(8, activation="relu")
expected = train(first)
for _ in range(2):
    AGAIN
    second = steadynorm.BatchNorm2d(8, activation="relu")
    for name in ("auto", "reference", "numba"):
        with steadynorm.backend(name):
            for layer in (first, second):
                torch.testing.assert_close(train(layer), expected)
x = torch.randn(4, 3, 5, dtype=torch.float64, requires_grad=True)
assert torch.autograd.gradcheck(lambda x: torch.ops.steadynorm.moments(x), (x,))
asked = []
steadynorm.ops.dispatch.choose_backend = lambda *_, **__: asked.append(1) or "reference"
torch.ops.steadynorm.moments(x)
print(len(asked))
"""


@pytest.mark.parametrize("way", AGAIN)
def test_models_of_both_imports_train_and_the_newest_chooses(way):
    again = AGAIN[way].strip().replace("\n", "\n    ")
    code = CODE.replace("AGAIN", again)
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "1\n"
