import functools
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import steadynorm
import steadynorm.doctor
import steadynorm.functional
import steadynorm.layers
import steadynorm.rules
import steadynorm.statistics
import steadynorm.surgery
from steadynorm.layers.kinds import BATCH_NORMS

OPTIONAL = (
    "altair",
    "rich",
    "tyro",
    "pyarrow",
    "triton",
    "jinja2",
    "PIL",
    "huggingface_hub",
    "tensorboard",
    "safetensors",
    "filelock",
)
IMPORTS = ("import torch, numpy", "import steadynorm")
PROJECT = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())


@functools.cache
def imported_by(*statements: str) -> list[set[str]]:
    """Names of the modules that a fresh interpreter holds after each statement."""
    code = "import json, sys\n" + "\n".join(f"{each}\nprint(json.dumps(sorted(sys.modules)))" for each in statements)
    result = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return [set(json.loads(line)) for line in result.stdout.splitlines()]


def test_citation_and_changes_are_of_this_version():
    root = Path(__file__).parents[1]
    changes = re.search(r"^## (\S+) \((.+)\)$", (root / "CHANGELOG.md").read_text(), flags=re.MULTILINE)
    citation = dict(
        re.findall(r"^(version|date-released): (.+)$", (root / "CITATION.cff").read_text(), flags=re.MULTILINE)
    )
    assert changes is not None and changes[1] == citation["version"] == steadynorm.__version__
    assert changes[2] == citation["date-released"]


def test_public_names_are_the_documented_ones():
    layers = sorted(cls.__name__ for kind in BATCH_NORMS.values() if kind.ours for cls in kind.classes.values())
    functions = ["backend", "batch_norm", "diagnose", "explain_backend", "surgery", "treat_", "warmup"]
    assert steadynorm.__all__ == sorted([*layers, "Watch"]) + functions


@pytest.mark.parametrize(
    "module",
    [
        steadynorm,
        steadynorm.doctor,
        steadynorm.doctor.watch,
        steadynorm.functional,
        steadynorm.layers,
        steadynorm.rules,
        steadynorm.statistics,
        steadynorm.surgery,
    ],
    ids=lambda module: module.__name__,
)
def test_public_names_are_sorted_and_there(module):
    assert module.__all__ == sorted(module.__all__)
    assert all(hasattr(module, name) for name in module.__all__)


@pytest.mark.parametrize("name", steadynorm.__all__)
def test_public_names_are_documented(name):
    assert getattr(steadynorm, name).__doc__


def test_the_doctor_is_imported_when_it_is_called_for():
    assert steadynorm.diagnose is steadynorm.doctor.diagnose and steadynorm.treat_ is steadynorm.doctor.treat_
    assert "steadynorm.doctor" not in imported_by("import steadynorm")
    with pytest.raises(AttributeError, match=r"^module 'steadynorm' has no attribute 'treat'$"):
        steadynorm.treat  # noqa: B018


def test_importing_the_library_imports_no_optional_package():
    before, after = imported_by(*IMPORTS)
    extra = after - before
    assert "steadynorm.layers" in extra
    assert not extra.intersection(OPTIONAL), sorted(extra.intersection(OPTIONAL))


def test_the_core_needs_three_packages_and_the_lab_what_the_core_does_not_use():
    project = PROJECT["project"]
    assert [re.split(r"[<>=]", name)[0] for name in project["dependencies"]] == ["torch", "numpy", "numba"]
    assert {"safetensors", "filelock"} <= set(project["optional-dependencies"]["lab"])
    assert "safetensors" in project["optional-dependencies"]["deploy"]


def test_the_core_works_where_nothing_else_is_installed():
    blocked = f"import sys\nfor name in {OPTIONAL}: sys.modules[name] = None"
    use = """
import torch
from torch import nn
import steadynorm
from steadynorm.surgery import convert_, fold_
model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
model(torch.randn(8, 3, 8, 8)).square().mean().backward()
assert len(convert_(model, "batch_norm").changed) == 1
assert len(fold_(model.eval(), torch.randn(2, 3, 8, 8)).changed) == 1
"""
    subprocess.run([sys.executable, "-c", blocked + use], check=True)


def test_the_version_is_that_of_the_package():
    assert re.fullmatch(r"\d+\.\d+\.\d+", steadynorm.__version__)
    assert PROJECT["project"]["dynamic"] == ["version"]
    assert PROJECT["tool"]["hatch"]["version"]["path"] == "src/steadynorm/__init__.py"  # where the build reads it


def test_the_package_says_where_it_belongs():
    classifiers = PROJECT["project"]["classifiers"]
    assert "Topic :: Scientific/Engineering :: Artificial Intelligence" in classifiers
    assert PROJECT["project"]["requires-python"] == ">=3.11"
    assert "Programming Language :: Python :: 3.11" in classifiers
    assert not [name for name in classifiers if name.startswith("License")]  # the license field says it
    assert PROJECT["project"]["urls"]


def test_importing_the_library_imports_none_of_the_experiments():
    assert not [name for name in imported_by(*IMPORTS)[-1] if name.startswith("steadynorm.lab")]
