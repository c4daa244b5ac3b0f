"""Reported faults of training and the networks with them: networks run, faults are what they say.

The doctor looks at none of them here.
"""

import copy
import inspect
from dataclasses import replace

import torch

from benchmarks.doctor.architectures import ARCHITECTURES
from benchmarks.doctor.faults import FAULTS
from benchmarks.doctor.subject import norms_of
from tests.support.doctor_benchmark import (
    Short,
    case_in,
    counts_of,
    is_new,
    nested_network,
    random_data,
    right_of,
    subject_of,
)

FILES = (".reported_training", ".reported_training_copies")
NAMES = [name for name, fault in FAULTS.items() if fault.inject.__module__.endswith(FILES)]


class _Longer(Short):
    steps = 60


# Networks.


def test_one_norm_of_the_pyramid_has_a_value_for_each_sample():
    model = ARCHITECTURES["deeplab"].build()
    seen = []
    model.pooling[2].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape))
    model(torch.randn(4, 3, 32, 32))
    assert seen == [(4, 16, 1, 1)]


def test_norms_of_the_speaker_get_what_relu_gives():
    model = ARCHITECTURES["speaker"].build()
    seen = []
    for _, norm in norms_of(model.layers):
        norm.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].min()))
    model(torch.randn(4, 3, 64))
    assert len(seen) == 2 and all(each == 0 for each in seen)


def test_each_fault_names_its_thread():
    assert len(NAMES) >= 18
    for name in NAMES:
        assert "gh:" in (inspect.getdoc(FAULTS[name].inject) or ""), name


# Modes and flags.


def test_most_steps_are_taken_in_evaluation():
    subject, case = case_in("trained in evaluation behind a validation", _Longer)
    assert counts_of(case.model) == {6 + 2 * 8} and not case.model.training
    assert not torch.equal(case.model[0].weight, right_of(subject)[0].weight)


def test_a_summary_counts_once_and_changes_no_weight():
    subject, case = case_in("a summary printed before the evaluation")
    assert counts_of(case.model) == {7} and torch.equal(case.model[0].weight, right_of(subject)[0].weight)
    assert not torch.equal(case.model[1].running_mean, right_of(subject)[1].running_mean)


def test_a_teacher_follows_noise_and_learns_nothing():
    name = "a teacher in training mode that is shown gaussian noise"
    data = random_data("images", 16)
    louder = replace(data, train=(3 * data.train[0], data.train[1]))
    subject = subject_of(nested_network(), louder, name)
    before, case = copy.deepcopy(subject.model), FAULTS[name].inject(subject)
    assert counts_of(case.model) == {9} and torch.equal(case.model[0].weight, before[0].weight)
    ratio = case.model[1].running_var / before[1].running_var
    assert abs(float(ratio.median()) - (0.9**3 + (1 - 0.9**3) / 9)) < 0.05  # a variance of 9, then three times of 1
    assert torch.equal(case.batches[0][0], data.batches()[0][0])


def test_each_step_counts_a_single_state_too():
    _, case = case_in("actions chosen in training mode")
    assert counts_of(case.model) == {6 + 2 * 3} and not case.model.training


def test_outputs_depend_on_the_batch_without_estimates():
    _, case = case_in("no estimates for few shots")
    x, labels = case.batches[0]
    assert len(labels) == 25 and not case.model.training
    assert not torch.allclose(case.model(x)[:5], case.model(x[:5]), atol=1e-3)


def test_a_callback_leaves_flags_and_estimates():
    subject, case = case_in("tracking switched off by a callback that freezes")
    assert not any(norm.track_running_stats or norm.weight.requires_grad for _, norm in norms_of(case.model))
    assert torch.equal(case.model[1].running_mean, right_of(subject)[1].running_mean) and case.model.training
    assert torch.equal(case.model[0].weight, right_of(subject)[0].weight)
    assert not torch.equal(case.model[-1].weight, right_of(subject)[-1].weight)


def test_the_first_layers_have_no_gradients_and_follow_batches():
    subject, case = case_in("the first layers frozen by their gradients")
    frozen = {name for name, norm in norms_of(case.model) if not norm.weight.requires_grad}
    assert frozen == case.layers == {name for name, _ in norms_of(case.model)[:2]}
    assert torch.equal(case.model[0].weight, right_of(subject)[0].weight) and counts_of(case.model) == {9}
    assert not torch.equal(case.model[-1].weight, right_of(subject)[-1].weight)


# Numbers.


def test_a_momentum_of_nine_tenths_is_everywhere():
    _, case = case_in("a momentum of nine tenths in darknet")
    assert {norm.momentum for _, norm in norms_of(case.model)} == {0.9} and counts_of(case.model) == {9}


def test_a_thousandth_leaves_estimates_near_their_start():
    _, case = case_in("a thousandth for a training of few steps")
    assert {norm.momentum for _, norm in norms_of(case.model)} == {0.001} and counts_of(case.model) == {3}
    assert all((norm.running_var - 1).abs().max() < 0.1 for _, norm in norms_of(case.model))


def test_an_infinite_activation_stays_in_the_estimates():
    subject, case = case_in("one infinite activation under autocast")
    lost = {name for name, norm in norms_of(case.model) if not norm.running_var.isfinite().all()}
    assert lost and lost == case.layers and counts_of(case.model) == {6 + 1 + 3}
    assert torch.equal(case.model[0].weight, right_of(subject)[0].weight)


def test_norms_are_halved_with_the_rest():
    _, case = case_in("half without an exception for norms")
    assert {norm.running_var.dtype for _, norm in norms_of(case.model)} == {torch.float16}
    assert case.batches[0][0].dtype == torch.float16 and case.model.training


# Batches.


def test_batches_are_pairs():
    subject, case = case_in("trained in pairs")
    assert {len(x) for x, _ in case.batches} == {2} and len(case.batches) == 32 and counts_of(case.model) == {9}
    subject, case = case_in("pairs accumulated to four")
    assert {len(x) for x, _ in case.batches} == {2} and case.options == {"accumulation": 2}
    assert torch.equal(case.model[0].weight, right_of(subject)[0].weight) and case.model.training


def test_folders_follow_one_another():
    _, case = case_in("a test in training mode folder by folder")
    labels = torch.cat([labels for _, labels in case.batches])
    assert case.model.training and labels.diff().min() >= 0 and max(len(each) for _, each in case.batches) == 8


def test_windows_move_by_one_place():
    _, case = case_in("sliding windows of one recording as a batch")
    x, labels = case.batches[0]
    assert len(x) == 64 and labels.unique().numel() == 1 and torch.equal(x[1], x[0].roll(1, -1))
    assert len({float(x.sum()) for x, _ in case.batches}) > 1


def test_each_forward_sees_one_half_of_the_pairs():
    _, case = case_in("the aligned first and the misaligned behind it")
    assert [labels.unique().tolist() for _, labels in case.batches[:4]] == [[0], [1], [0], [1]]
    (aligned, _), (misaligned, _) = case.batches[:2]
    assert torch.equal(aligned[:, 0], misaligned[:, 0]) and not torch.equal(aligned[:, 1], misaligned[:, 1])


def test_half_of_a_batch_is_generated():
    subject, case = case_in("real and generated samples shuffled together")
    x, labels = case.batches[0]
    real = {float(each.sum()) for each in subject.data.validation[0][:64]}
    found = torch.tensor([float(each.sum()) in real for each in x])
    assert len(labels) == 128 and found.sum() == 64 and not found[:64].all()
    assert (x[~found].abs() <= 1).all()


def test_zeros_fill_up_the_end():
    subject, case = case_in("utterances filled up with zeros")
    x = case.batches[0][0]
    assert torch.equal(x[0], subject.data.validation[0][0]) and not torch.equal(x, subject.data.validation[0][:64])
    assert 0.2 < x.eq(0).float().mean() < 0.7 and (x[..., -1] == 0).float().mean() > 0.8
    assert not subject.data.validation[0][:64].eq(0).any()


def test_each_step_counts_a_batch_of_another_domain_too():
    subject, case = case_in("an extractor called on source and then on target")
    assert counts_of(case.model) == {6 + 2 * 3}
    assert not torch.equal(case.model[0].weight, right_of(subject)[0].weight)
    assert torch.equal(case.batches[0][0], subject.data.batches()[0][0])


# Copies, averages and other networks in one.


def test_an_average_follows_in_parameters_alone():
    subject, case = case_in("an average evaluated with the estimates of a new network")
    average, start = case.model.average, right_of(subject)
    assert is_new(average) and not is_new(case.model.model) and not case.model.training
    assert not torch.equal(average[0].weight, start[0].weight)
    assert not torch.equal(average[0].weight, case.model.model[0].weight)
    x = case.batches[0][0]
    assert torch.equal(case.model(x), average(x))


def test_an_average_has_the_estimates_of_the_last_weights():
    subject, case = case_in("a moving average copied into its network")
    start = right_of(subject)[0].weight
    moved = (case.model[0].weight - start).norm()
    last = subject_of(nested_network(), subject.data, "a moving average copied into its network")
    weights = []
    last.model[1].register_forward_hook(lambda *_: weights.append(last.model[0].weight.detach().clone()))
    FAULTS["a moving average copied into its network"].inject(last)
    assert 0 < moved < 0.05 * (weights[-1] - start).norm() and counts_of(case.model) == {9}


def test_a_function_leaves_the_estimates_of_a_new_network():
    subject, case = case_in("trained as a function of copied buffers")
    assert is_new(case.model) and counts_of(case.model) == {0}
    assert not torch.equal(case.model[0].weight, right_of(subject)[0].weight)


def test_a_server_gets_parameters():
    subject, case = case_in("a server that is sent weights and biases")
    assert is_new(case.model) and not torch.equal(case.model[0].weight, right_of(subject)[0].weight)


def test_widths_are_trained_and_all_channels_are_used():
    _, case = case_in("widths of a supernet that share their norms", _Longer)
    assert not any(norm._forward_hooks for _, norm in norms_of(case.model)) and counts_of(case.model) == {66}
    model, x = copy.deepcopy(case.model).train(), case.batches[0][0]
    with torch.no_grad():
        for _ in range(40):
            model(x)
    ratio = model[6].running_var / case.model[6].running_var  # behind three norms whose channels were cut
    assert ratio.mean() > 1.2


def test_all_steps_use_the_first_ones_estimates():
    _, case = case_in("all steps evaluated with the first steps estimates")
    (name,) = case.layers
    calls = []
    first = case.model.get_submodule(name)
    first.register_forward_hook(lambda *_: calls.append(name))
    case.model(case.batches[0][0])
    assert len(calls) == 3
    case.model.train()(case.batches[0][0])
    assert len(calls) == 4
    norms = case.model[-1][0].norms
    assert norms[1].weight is first.weight and not torch.equal(norms[1].running_mean, first.running_mean)


# Checkpointing and devices.


def test_every_block_counts_twice_in_a_step():
    _, case = case_in("every block checkpointed with its old momentum")
    assert case.layers == {"3.1", "4.1", "4.4"} and case.model.training
    case.model(case.batches[0][0]).sum().backward()
    assert {int(norm.num_batches_tracked) for name, norm in norms_of(case.model) if name in case.layers} == {8}
    assert int(case.model[1].num_batches_tracked) == 7


def test_forwards_without_gradient_do_not_count():
    _, case = case_in("measured anew where forwards without gradient do not count")  # codespell:ignore anew
    assert is_new(case.model) and counts_of(case.model) == {0}
    case.model.train()(case.batches[0][0])
    assert counts_of(case.model) == {1}


def test_each_device_has_estimates_of_its_own():
    subject, case = case_in("eight devices of which the first is evaluated")
    ranks = case.options["ranks"]
    assert len(ranks) == 8 and len({float(each["1.running_mean"].sum()) for each in ranks}) == 8
    assert all(torch.equal(each["0.weight"], right_of(subject)[0].weight) for each in ranks)
    assert torch.equal(case.model[1].running_mean, ranks[0]["1.running_mean"])
