from pathlib import Path

import pytest
import torch

import steadynorm
from steadynorm.reporting import environment


def test_the_machine_is_described() -> None:
    described = environment.describe_machine(torch.device("cpu"))
    assert described["cores"] >= 1
    assert described["accelerator"] is None
    assert set(environment.describe_versions()) == {"python", "steadynorm", "torch", "numpy", "safetensors"}


@pytest.mark.parametrize(
    ("quota", "cores"),
    [("max 100000\n", 8), ("250000 100000\n", 3), ("50000 100000\n", 1), ("1600000 100000\n", 8), (None, 8)],
)
def test_cores_are_those_of_the_containers_quota(
    quota: str | None, cores: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environment.os, "sched_getaffinity", lambda process: set(range(8)), raising=False)
    if quota is not None:
        (tmp_path / "cpu.max").write_text(quota)
    assert environment.count_cores(tmp_path / "cpu.max") == cores


def test_versions_are_those_of_the_packages_that_are_installed() -> None:
    found = environment.describe_versions(("torch", "no-such-package"))
    assert set(found) == {"python", "steadynorm", "torch"}
    assert (found["steadynorm"], found["torch"]) == (steadynorm.__version__, torch.__version__)
