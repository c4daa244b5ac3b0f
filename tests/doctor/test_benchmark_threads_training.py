"""More reported faults of training, held out, and the networks with them: networks run, faults are what they say.

The doctor looks at none of them here.
"""

import inspect

import pytest
import torch
from torch import nn
from torch.nn import functional

from benchmarks.doctor.architectures import ARCHITECTURES
from benchmarks.doctor.faults import FAULTS
from benchmarks.doctor.subject import Subject, norms_of
from tests.support.doctor_benchmark import Short, case_in, counts_of, random_data, right_of, subject_of

NAMES = [name for name, fault in FAULTS.items() if fault.inject.__module__.endswith(".threads_training")]


class _Longer(Short):
    steps = 20


def _estimates(model: nn.Module) -> list[torch.Tensor]:
    return [norm.running_mean for _, norm in norms_of(model)]


def _are_equal(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


# Networks.


@pytest.mark.parametrize("name", ["darts", "eegnet", "conformer"])
def test_a_network_gives_logits_and_trains_all_that_it_has(name):
    architecture = ARCHITECTURES[name]
    model = architecture.build()
    x = torch.randn(4, 3, 32, 32) if architecture.kind == "images" else torch.randn(4, 3, 64)
    logits = model(x)
    functional.cross_entropy(logits, torch.arange(4)).backward()
    assert logits.shape == (4, 10) and len(norms_of(model)) >= 4
    assert all(each.grad is not None for each in model.parameters())
    assert counts_of(model) == {1}


def test_vovnet_joins_the_layers_of_a_stage():
    pytest.importorskip("timm")
    model = ARCHITECTURES["vovnet"].build()
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 10) and len(norms_of(model)) == 15
    assert [stage.blocks[0].conv_concat.conv.in_channels for stage in model.stages] == [36, 48, 72, 96]


def test_a_cell_gets_the_outputs_of_both_before_it():
    model = ARCHITECTURES["darts"].build()
    seen = []
    for cell in model.cells:
        cell.register_forward_pre_hook(lambda _, inputs: seen.append([tuple(x.shape[1:]) for x in inputs]))
    model(torch.randn(2, 3, 32, 32))
    assert seen == [[(16, 8, 8), (16, 8, 8)], [(16, 8, 8), (16, 8, 8)], [(16, 8, 8), (32, 4, 4)]]


def test_sensors_are_gone_behind_the_second_convolution():
    model = ARCHITECTURES["eegnet"].build()
    seen = []
    for _, norm in norms_of(model):
        norm.register_forward_pre_hook(lambda _, inputs: seen.append(tuple(inputs[0].shape[1:])))
    model(torch.randn(2, 3, 64))
    assert seen == [(6, 3, 64), (24, 1, 64), (48, 1, 32), (48, 1, 16)]


# Each fault.


def test_each_fault_names_its_thread():
    assert len(NAMES) >= 14
    for name in NAMES:
        assert "gh:" in (inspect.getdoc(FAULTS[name].inject) or ""), name


def test_a_first_rank_evaluates_in_a_training_of_four():
    subject, case = case_in("a first rank that stays in evaluation")
    right = right_of(subject)
    assert _are_equal(_estimates(case.model), _estimates(right)) and counts_of(case.model) == {6}
    assert not torch.equal(case.model[0].weight, right[0].weight) and not case.model.training


def test_norms_of_a_head_are_as_they_were_built():
    _, case = case_in("norms of a head that evaluate from the first step", _Longer)
    norms = dict(norms_of(case.model))
    assert case.layers == set(list(norms)[-2:])
    for name, norm in norms.items():
        new = bool(norm.running_mean.eq(0).all() and norm.running_var.eq(1).all())
        assert new == (name in case.layers)
    last = norms[max(case.layers)]
    assert last.weight.ne(1).any() and (last.weight - 1).abs().max() < 0.5


def test_all_norms_but_the_first_have_frozen_weights_and_live_estimates():
    subject, case = case_in("weights frozen where statistics were meant")
    right = dict(norms_of(right_of(subject)))
    for name, norm in norms_of(case.model):
        assert torch.equal(norm.weight, right[name].weight) == (name in case.layers)
        assert not torch.equal(norm.running_mean, right[name].running_mean) and norm.training
    assert len(case.layers) == len(right) - 1


def test_a_prediction_depends_on_the_other_samples():
    subject, case = case_in("predictions that depend on the rest of the file")
    x = subject.data.test[0]
    assert not case.model.training and not norms_of(case.model)
    assert not torch.allclose(case.model(x[:2]), case.model(x)[:2], atol=1e-3)


def test_a_momentum_of_999_thousandths_takes_the_last_batch():
    subject, case = case_in("a momentum of 999 thousandths against small batches")
    assert {norm.momentum for _, norm in norms_of(case.model)} == {0.999}
    assert not torch.allclose(case.model[1].running_mean, right_of(subject)[1].running_mean, atol=0.02)


def test_an_average_is_far_behind_its_weights():
    subject, case = case_in("an average with too much history", _Longer)
    right, x = right_of(subject), subject.data.train[0]
    assert {norm.momentum for _, norm in norms_of(case.model)} == {0.01}
    with torch.no_grad():
        mean = functional.conv2d(x, case.model[0].weight, stride=2, padding=1).mean((0, 2, 3))
    moved = (case.model[1].running_mean - right[1].running_mean).norm()
    assert 0 < moved < (mean - right[1].running_mean).norm()


def test_one_volume_makes_a_batch():
    _, case = case_in("one volume at a time")
    assert {len(x) for x, _ in case.batches} == {1} and not case.model.training
    assert counts_of(case.model) == {9}
    assert FAULTS["one volume at a time"].inject(_of_vectors("one volume at a time")) is None


def _of_vectors(name: str) -> Subject:
    network = nn.Sequential(nn.Flatten(), nn.Linear(192, 8), nn.BatchNorm1d(8), nn.Linear(8, 10))
    return subject_of(network, random_data("images", 8), name)


def test_sixteen_are_accumulated_to_32():
    _, case = case_in("sixteen accumulated to 32")
    assert {len(x) for x, _ in case.batches} == {16} and case.options == {"accumulation": 2} and case.model.training


def test_a_tests_list_goes_from_class_to_class():
    subject, case = case_in("a tests list in its own order by batch statistics")
    listed = torch.cat([labels for _, labels in case.batches])
    assert (listed.diff() >= 0).all() and case.model.training
    assert listed.bincount().tolist() == subject.data.validation[1].bincount().tolist()
    x, labels = case.batches[0]
    assert torch.equal(x, subject.data.validation[0][subject.data.validation[1].argsort(stable=True)[: len(labels)]])


def test_lists_end_with_empty_documents():
    _, case = case_in("lists filled up with empty documents")
    for x, labels in case.batches:
        full = x.flatten(1).any(1).unflatten(0, (8, 8))
        assert (full.int().diff(dim=1) <= 0).all() and full[:, 0].all() and not full.all() and (labels >= 0).all()


def test_one_of_sixteen_is_whole():
    _, case = case_in("one long text among short ones")
    for x, _ in case.batches:
        lengths = x.abs().sum((1, 2)).ne(0).sum(1)
        assert len(x) == 16 and lengths[0] == 16 and (lengths[1:] <= 5).all() and (lengths[1:] >= 1).all()
    assert FAULTS["one long text among short ones"].inject(_of_vectors("one long text among short ones")) is None


def test_half_of_a_batch_is_attacked_and_close_to_the_other():
    subject, case = case_in("clean and attacked samples through one set of norms")
    assert case.model.training and all(each.requires_grad for each in case.model.parameters())
    right = subject.data.batches(32, 8)
    model = case.model.eval()
    for (x, labels), (clean, _) in zip(case.batches, right, strict=True):
        assert torch.equal(x[:32], clean) and 0 < (x[32:] - clean).abs().max() < 0.07
        losses = [functional.cross_entropy(model(half), labels[:32]) for half in x.chunk(2)]
        assert losses[1] > losses[0]


def test_a_day_is_tested_with_the_estimates_of_day_and_night():
    subject, case = case_in("the day tested behind a last step at night")
    right = right_of(subject)
    assert counts_of(case.model) == {6 + 2 * 3} and not case.model.training
    assert all(not norm.weight.requires_grad for _, norm in norms_of(case.model))
    assert torch.equal(case.model[1].weight, right[1].weight)
    assert not torch.equal(case.model[0].weight, right[0].weight)


def test_inputs_are_255_times_as_large():
    subject, case = case_in("a division by 255 left out of the prediction")
    for (x, _), (right, _) in zip(case.batches, subject.data.batches(), strict=True):
        assert torch.equal(x, 255 * right) and torch.equal(x, case.feed(right))
    assert torch.equal(case.options["reference"][0][0], subject.data.batches(of="train")[0][0])


def test_a_teachers_estimates_stop_and_its_weights_do_not():
    subject, case = case_in("a teacher that evaluates behind its first validation", _Longer)
    assert counts_of(case.model.target) == {6 + 15} and counts_of(case.model.online) == {6 + 20}
    start = right_of(subject)
    assert not torch.equal(case.model.target[0].weight, start[0].weight)
    assert not torch.equal(case.model.target[1].running_mean, start[1].running_mean)


def test_three_devices_have_one_set_of_weights_and_three_of_estimates():
    _, case = case_in("three devices that answer differently")
    one, two, three = case.options["ranks"]
    assert torch.equal(one["0.weight"], two["0.weight"]) and torch.equal(one["0.weight"], three["0.weight"])
    means = [state["1.running_mean"] for state in (one, two, three)]
    assert not torch.equal(means[0], means[1]) and not torch.equal(means[1], means[2])
    assert torch.equal(case.model[1].running_mean, means[0])


def test_a_step_updates_three_times():
    _, case = case_in("three updates for a batch of four")
    x, labels = case.batches[0]
    functional.cross_entropy(case.model(x), labels).backward()
    assert len(x) == 4 and counts_of(case.model) == {6 + 3}
    case.model.eval()(x)
    assert counts_of(case.model) == {6 + 3}


def test_dropout_stands_before_two_norms_of_a_head():
    _, case = case_in("a feed forward with its norm behind dropout")
    assert len(case.layers) == 2 and not case.model.training
    case.model.train()
    for name in case.layers:
        seen = []
        hook = case.model.get_submodule(name).register_forward_pre_hook(lambda _, inputs, s=seen: s.append(inputs[0]))
        case.model(case.batches[0][0])
        hook.remove()
        assert seen[0].eq(0).float().mean() > 0.5
