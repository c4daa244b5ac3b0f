"""Every example that a user may copy is run: in docstrings, in the README and on the pages of docs/."""

import doctest
import importlib
import pkgutil
import re
from pathlib import Path

import pytest
import torch

import steadynorm
from steadynorm import surgery
from steadynorm.lab.experiments import EXPERIMENTS

README = (Path(__file__).parents[1] / "README.md").read_text()
PAGES = sorted((Path(__file__).parents[1] / "docs").rglob("*.md"))
BLOCKS = [
    pytest.param(page, code, id=f"{page.stem}-{number}")
    for page in PAGES
    for number, code in enumerate(re.findall(r"```python\n(.*?)```", page.read_text(), flags=re.DOTALL))
]
FRAMEWORKS = {"accelerate": "accelerate", "lightning": "lightning", "transformers": "accelerate"}
"""Packages of which examples are shown -> what may be absent; transformers' Trainer needs accelerate."""
MODULES = [
    module.name for module in pkgutil.walk_packages(steadynorm.__path__, "steadynorm.") if "__main__" not in module.name
]


OF_PACKAGES = {"lightning": "lightning", "trainer": "transformers"}
"""Part of the integrations -> the package that it needs, which may be absent."""


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_in_docstrings_work(name: str) -> None:
    part = name.removeprefix("steadynorm.integrations.").partition(".")[0]
    pytest.importorskip(OF_PACKAGES.get(part, "torch"), reason=f"{name} needs a package that is not installed")
    result = doctest.testmod(importlib.import_module(name), extraglobs={"torch": torch})
    assert result.failed == 0


def test_some_docstring_has_an_example() -> None:
    finder = doctest.DocTestFinder()
    assert any(test.examples for name in MODULES for test in finder.find(importlib.import_module(name)))


@pytest.mark.parametrize("code", re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL))
def test_the_python_in_the_readme_works(code: str) -> None:
    exec(code, {})


@pytest.mark.parametrize(("page", "code"), BLOCKS)
@pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:.*LeafSpec.*:FutureWarning")
def test_the_python_in_the_docs_works(page: Path, code: str) -> None:
    for name, needed in FRAMEWORKS.items():
        if re.search(rf"^(import|from) {name}\b", code, flags=re.MULTILINE):
            pytest.importorskip(needed, reason=f"{page.name} shows {name}; {needed} is not installed")
    exec(code, {})


@pytest.mark.parametrize(
    "code", re.findall(r"\| `([^`|]+)` \|$", (PAGES[0].parents[0] / "which_norm.md").read_text(), flags=re.MULTILINE)
)
def test_every_choice_of_a_norm_ends_in_code_that_works(code: str) -> None:
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 32, 3), torch.nn.BatchNorm2d(32), torch.nn.ReLU())
    batches = [torch.randn(4, 3, 8, 8) for _ in range(2)]
    names = {"torch": torch, "surgery": surgery, "c": 32, "k": 4, "model": model, "batches": batches}
    assert eval(code, {**vars(steadynorm), **names}) is not None


def test_the_readme_has_python() -> None:
    assert "```python" in README


def test_the_pictures_and_files_that_the_readme_links_exist() -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", README)
    assert links
    assert [link for link in links if not (Path(__file__).parents[1] / link).exists()] == []


def test_the_make_targets_in_the_readme_exist() -> None:
    targets = re.findall(r"^make (\w+)", README, flags=re.MULTILINE)
    makefile = (Path(__file__).parents[1] / "Makefile").read_text()
    assert targets
    assert all(re.search(rf"^{target}:", makefile, flags=re.MULTILINE) for target in targets)


def test_the_readme_lists_every_experiment() -> None:
    table = re.findall(r"^\| \[`(\w+)`\]\(docs/\1\.md\) \|", README, flags=re.MULTILINE)
    assert sorted(table) == sorted(EXPERIMENTS)
