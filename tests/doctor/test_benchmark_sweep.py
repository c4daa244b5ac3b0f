"""Every network of the doctor's benchmark runs; every fault changes it, and every healthy variant of it runs.

The doctor looks at none of them here. What each fault does is tested file by file, in ``test_benchmark_*.py``.
"""

import copy

import pytest
import torch

from benchmarks.doctor.architectures import ARCHITECTURES
from benchmarks.doctor.faults import FAULTS
from benchmarks.doctor.healthy import HEALTHY
from benchmarks.doctor.subject import norms_of
from tests.support.doctor_benchmark import NOTES, is_changed, random_data, subject_of

LIGHT = ("wavenet", "deeplab")
"""Networks of signals and of images, which run in a millisecond."""


def _themes(named) -> list[str]:
    return sorted({each.rpartition(".")[2] for each in named})


FAULT_THEMES = _themes(fault.inject.__module__ for fault in FAULTS.values())
HEALTHY_THEMES = _themes(variant.make.__module__ for variant in HEALTHY.values())


@pytest.mark.parametrize("architecture", ARCHITECTURES.values(), ids=lambda each: each.name)
def test_a_network_is_built_runs_and_has_norms(architecture):
    if not architecture.is_available():
        pytest.skip(f"needs {architecture.package}")
    model = architecture.build()
    assert model(torch.randn(2, *random_data(architecture.kind).train[0].shape[1:])).shape == (2, 10)
    assert len(norms_of(model)) >= 3
    assert all((norm.eps, norm.momentum) == (1e-5, 0.1) for _, norm in norms_of(model))  # healthy as they are built


@pytest.mark.parametrize("architecture", LIGHT)
@pytest.mark.parametrize("theme", FAULT_THEMES)
def test_each_fault_changes_a_network_and_leaves_it_running(theme, architecture):
    data = random_data(ARCHITECTURES[architecture].kind)
    here = [name for name, fault in FAULTS.items() if fault.inject.__module__.endswith(f".{theme}")]
    put_in = 0
    for name in here:
        torch.manual_seed(0)
        subject = subject_of(ARCHITECTURES[architecture].build(), data, name)
        before, batches = copy.deepcopy(subject.model), data.batches()
        case = FAULTS[name].inject(subject)
        if case is None:
            assert subject.model(data.test[0]).isfinite().all(), name
            continue
        put_in += 1
        assert is_changed(case, before, batches), name
        assert set(case.layers or ()) <= {name for name, _ in case.model.named_modules()}, name
        if case.batches is not None:
            x, labels = case.batches[0]
            assert copy.deepcopy(case.model)(x).shape == (len(labels), 10), name
    assert put_in


@pytest.mark.parametrize("architecture", LIGHT)
@pytest.mark.parametrize("theme", HEALTHY_THEMES)
def test_each_healthy_variant_runs_on_its_batches_and_has_finite_outputs(theme, architecture):
    data = random_data(ARCHITECTURES[architecture].kind, 16)
    here = [name for name, each in HEALTHY.items() if each.make.__module__.endswith(f".{theme}")]
    made = 0
    for name in here:
        torch.manual_seed(0)
        case = HEALTHY[name].make(subject_of(ARCHITECTURES[architecture].build(), data, name))
        if case is None:
            continue
        made += 1
        for x, labels in case.batches or ():
            assert len(x) == len(labels) and case.model(x).isfinite().all(), name
    assert made


def test_no_fault_is_to_be_found_by_a_note_but_one():
    found = {name for name, fault in FAULTS.items() if not fault.causes - NOTES}
    assert found == {"synchronised norms in a service"}  # a model that is validated in training has them rightly


def test_many_kinds_can_be_repaired_and_many_lie_in_one_or_two_layers():
    assert sum(fault.repairable for fault in FAULTS.values()) >= 50
    placed, data = 0, random_data("signals")
    for name, fault in FAULTS.items():
        case = fault.inject(subject_of(ARCHITECTURES["wavenet"].build(), data, name)) if not fault.costs else None
        placed += case is not None and 1 <= len(case.layers or ()) <= 2
    assert placed >= 30
