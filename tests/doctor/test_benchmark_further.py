"""The further networks and faults of the doctor's benchmark: each network runs, and each fault is what it says."""

import copy
import random
from dataclasses import replace

import pytest
import torch
from torch import nn

from benchmarks.doctor import measure
from benchmarks.doctor.architectures import ARCHITECTURES
from benchmarks.doctor.architectures.registry import Architecture, block
from benchmarks.doctor.faults import FAULTS
from benchmarks.doctor.faults.registry import held_out as register_fault
from benchmarks.doctor.healthy import HEALTHY
from benchmarks.doctor.healthy.registry import both as register_variant
from benchmarks.doctor.subject import Case, Subject, fed_by, norms_of
from benchmarks.doctor.training import Data
from steadynorm.surgery import recalibrate_


def _network() -> nn.Module:
    """Norms of maps and of vectors, and a part of two of them behind the first."""
    torch.manual_seed(0)
    part = nn.Sequential(*block(8, 8), *block(8, 8, stride=2))
    head = [nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 10)]
    return nn.Sequential(*block(3, 8), part, nn.AdaptiveAvgPool2d(1), nn.Flatten(), *head)


@pytest.fixture(scope="module")
def data() -> Data:
    generator = torch.Generator().manual_seed(0)
    x, labels = torch.randn(1024, 3, 8, 8, generator=generator), torch.randint(0, 10, (1024,), generator=generator)
    return Data(train=(x, labels), validation=(x, labels), test=(x[:200], labels[:200]))


class _Short(Subject):
    """Trains for a few steps where the benchmark takes a hundred."""

    def inputs(self, size, number):
        return super().inputs(size, min(number, 20))

    def labelled(self, size, number):
        return super().labelled(size, 8 if number > 8 else number)


@pytest.fixture
def subject(data) -> Subject:
    model = _network()
    for _ in range(20):
        model(data.train[0][:256])  # now its statistics are those of data
    return _Short(model=model.eval(), data=data, draw=random.Random(0), rate=0.05)


def _inject(name: str, subject: Subject) -> Case:
    case = FAULTS[name].inject(subject)
    assert case is not None
    return case


def test_a_package_that_is_not_there_is_known():
    one = next(iter(ARCHITECTURES.values()))
    assert one.is_available() and not replace(one, package="no_such_package").is_available()


def test_names_are_taken_once():
    with pytest.raises(ValueError, match="must differ, got 'statistics lost' twice"):
        register_fault("train-eval-gap")(_statistics_lost)
    with pytest.raises(ValueError, match="must differ, got 'trained' twice"):
        register_variant(_trained)


def _statistics_lost(subject: Subject) -> None:
    """Has the name of a fault of the tuning half."""


def _trained(subject: Subject) -> None:
    """Has the name of a healthy variant."""


def test_a_fault_by_its_cost_is_not_counted_where_it_costs_nothing(subject, monkeypatch, capsys):
    nothing = replace(
        FAULTS["inputs normalized twice"],
        half="held out",
        inject=lambda subject: Case(model=subject.model, batches=None),
    )
    tiny = Architecture(name="tiny", half="held out", kind="images", build=_network)
    absent = replace(tiny, name="absent", package="no_such_package")
    monkeypatch.setattr(measure, "ARCHITECTURES", {"absent": absent, "tiny": tiny})
    monkeypatch.setattr(measure, "FAULTS", {"nothing": replace(nothing, name="nothing")})
    monkeypatch.setattr(measure, "HEALTHY", {})
    monkeypatch.setattr(measure, "trained", lambda *_: subject.model)
    monkeypatch.setattr(measure, "said", lambda _: {})
    assert list(measure.measured("held out", range(1), lambda _: subject.data, folder=None)) == []
    assert capsys.readouterr().err.splitlines() == [
        "absent: not measured, install no_such_package",
        "tiny, seed 0, nothing: not counted, costs too little",
    ]


def test_a_layer_is_paired_with_the_norm_that_gets_its_output(subject):
    named = fed_by(subject.model, subject.inputs(2, 1)[0])
    assert named == [("0", "1"), ("3.0", "3.1"), ("3.3", "3.4"), ("6", "7")]
    behind_relu = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.BatchNorm1d(4)).eval()
    assert fed_by(behind_relu, torch.randn(2, 3)) == []


def test_folded_weights_give_the_same_outputs_with_new_statistics(subject):
    x = subject.data.train[0][:256]
    for _, norm in norms_of(subject.model):
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.uniform_(norm.bias, -0.5, 0.5)
    recalibrate_(subject.model, [x])
    before = subject.model(x)
    model = _inject("folded weights under norms that are left", subject).model
    assert not torch.allclose(model(x), before, atol=0.1)
    recalibrate_(model, [x])
    torch.testing.assert_close(model(x), before, rtol=0, atol=0.02)  # eps counts twice


def test_half_precision_overflows_the_variances_of_counts_alone(subject):
    model = _inject("of raw counts and saved in half precision", subject).model
    first, *others = [norm for _, norm in norms_of(model)]
    assert first.running_var.isinf().all() and all(norm.running_var.isfinite().all() for norm in others)


def test_the_whole_part_is_run_again_in_the_backward(subject):
    case = _inject("a block that is run again in the backward", subject)
    before = {name: int(norm.num_batches_tracked) for name, norm in norms_of(case.model)}
    x, labels = case.batches[0]
    nn.functional.cross_entropy(case.model(x), labels).backward()
    moved = {name: int(norm.num_batches_tracked) - before[name] for name, norm in norms_of(case.model)}
    assert moved == {name: 1 + (name in case.layers) for name in moved}


def test_the_part_that_ignores_the_mode_trains_after_eval(subject):
    case = _inject("a part whose train ignores the mode", subject)
    for model in (case.model.eval(), copy.deepcopy(case.model).eval()):
        assert {name for name, norm in norms_of(model) if norm.training} == case.layers


def test_the_norm_in_a_closure_is_out_of_reach_and_normalizes_by_the_batch(subject):
    case = _inject("a norm in a closure", subject)
    assert len(norms_of(case.model.eval())) == len(norms_of(_network())) - 1
    x = subject.data.test[0]
    assert not torch.allclose(case.model(x[:2]), case.model(x)[:2], atol=1e-4)


def test_an_evaluation_of_ones_own_differs_in_evaluation_alone(subject):
    x, before = subject.data.test[0], copy.deepcopy(subject.model)
    model = _inject("an evaluation of ones own without the root", subject).model
    assert not torch.allclose(model(x), before(x), atol=1e-2)
    torch.testing.assert_close(model.train()(x), before.train()(x))


def test_only_the_norm_of_vectors_is_left_live(subject):
    case = _inject("a freeze that forgets the norms of vectors", subject)
    assert {name for name, norm in norms_of(case.model) if norm.training} == case.layers == {"7"}
    assert not any(parameter.requires_grad for _, norm in norms_of(case.model) for parameter in norm.parameters())


def test_a_sampler_for_pairs_gives_two_classes_in_order(subject):
    case = _inject("two classes a batch", subject)
    assert all(len(labels.unique()) == 2 and len(labels.unique_consecutive()) == 2 for _, labels in case.batches)


def test_padding_is_zero_and_of_every_size(subject):
    case = _inject("padded to the largest", subject)
    kept = {int((each != 0).any(0).any(0).sum()) for x, _ in case.batches for each in x}
    assert kept == {2, 3, 4, 5}


def test_fed_data_are_those_that_accuracy_is_measured_on(subject):
    case = _inject("bytes instead of normalized values", subject)
    fed = subject.data.fed(case.feed)
    torch.testing.assert_close(case.batches[0][0], case.feed(subject.data.batches()[0][0]))
    assert fed.test[0].std() > 50 and torch.equal(fed.train[0], subject.data.train[0])


def test_ranks_are_not_alike_and_the_first_is_the_model(subject):
    case = _inject("ranks with shards of their own", subject)
    means = [state["1.running_mean"] for state in case.options["ranks"]]
    assert torch.equal(means[0], case.model[1].running_mean) and not torch.equal(means[0], means[1])


def test_the_frozen_half_neither_trains_nor_has_gradients(subject):
    model = HEALTHY["lower half frozen while the rest trains"].make(subject).model
    assert [norm.training for _, norm in norms_of(model)] == [False, False, True, True]
    assert [norm.weight.requires_grad for _, norm in norms_of(model)] == [False, False, True, True]
