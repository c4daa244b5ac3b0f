import functools
import json
import subprocess
import sys

import pytest

import steadynorm
import steadynorm.functional
import steadynorm.layers
import steadynorm.rules
import steadynorm.statistics
import steadynorm.surgery

OPTIONAL = (
    "matplotlib",
    "rich",
    "tyro",
    "pyarrow",
    "triton",
    "jinja2",
    "PIL",
    "huggingface_hub",
    "tensorboard",
)


@functools.cache
def imported_by(statement: str) -> set[str]:
    """Names of the modules that a fresh interpreter holds after a statement."""
    code = f"{statement}\nimport json, sys\nprint(json.dumps(sorted(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return set(json.loads(result.stdout.splitlines()[-1]))


def test_public_names_are_the_documented_ones():
    families = ("BatchNorm", "BatchRenorm", "FrozenBatchNorm", "GatedBatchNorm", "GhostBatchNorm")
    layers = [f"{name}{dimensions}d" for name in families for dimensions in (1, 2, 3)]
    layers += ["MaskedBatchNorm1d", "SyncBatchNorm"]
    assert steadynorm.__all__ == [*layers, "backend", "batch_norm", "explain_backend", "surgery"]


@pytest.mark.parametrize(
    "module",
    [steadynorm, steadynorm.functional, steadynorm.layers, steadynorm.rules, steadynorm.statistics, steadynorm.surgery],
    ids=lambda module: module.__name__,
)
def test_public_names_are_sorted_and_there(module):
    assert module.__all__ == sorted(module.__all__)
    assert all(hasattr(module, name) for name in module.__all__)


@pytest.mark.parametrize("name", steadynorm.__all__)
def test_public_names_are_documented(name):
    assert getattr(steadynorm, name).__doc__


def test_importing_the_library_imports_no_optional_package():
    extra = imported_by("import steadynorm") - imported_by("import torch, numpy")
    assert not extra.intersection(OPTIONAL), sorted(extra.intersection(OPTIONAL))


def test_importing_the_library_imports_none_of_the_experiments():
    assert not [name for name in imported_by("import steadynorm") if name.startswith("steadynorm.lab")]
