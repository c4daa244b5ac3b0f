"""The half of the doctor's benchmark that was held out third: networks run, faults are what they say.

The doctor looks at none of them here.
"""

import pytest
import torch

from benchmarks.doctor.subject import norms_of
from tests.support.doctor_benchmark import Short, case_in, counts_of, nested_network, right_of


class _Longer(Short):
    steps = 60


# Files.


def test_noise_takes_variances_below_zero():
    _, case = case_in("noise for privacy on all of the file")
    assert any((norm.running_var < 0).any() for _, norm in norms_of(case.model))


def test_norms_in_use_saw_nothing_and_have_the_others_weights():
    subject, case = case_in("auxiliary norms in use that saw nothing")
    split, x = case.model[1], subject.data.test[0]
    assert torch.equal(split.main.weight, split.auxiliary.weight) and split.auxiliary.running_var.eq(1).all()
    assert not torch.equal(case.model(x), right_of(subject)(x))


def test_beta_and_gamma_of_the_file_are_exchanged():
    subject, case = case_in("beta and gamma in each others place")
    assert torch.equal(subject.model[1].weight, case.options["checkpoint"]["1.bias"])
    assert torch.equal(subject.model[1].bias, case.options["checkpoint"]["1.weight"])


def test_filters_are_transposed_in_their_places():
    subject, _ = case_in("filters with height and width exchanged")
    assert torch.equal(subject.model[0].weight.transpose(2, 3), right_of(subject)[0].weight)


def test_estimates_take_few_values():
    subject, _ = case_in("estimates rounded like weights")
    steps = subject.model[1].running_var * 15 / subject.model[1].running_var.max()
    torch.testing.assert_close(steps, steps.round(), rtol=0, atol=1e-3)


def test_a_third_of_the_norms_has_another_eps():
    subject, case = case_in("a momentum in the place of eps")
    assert [norm.eps for _, norm in norms_of(subject.model)] == [1e-5, 1e-5, 1e-5, 1e-5, 0.8]
    assert len(case.layers) == 1


def test_a_pasted_blocks_last_batch_is_all_it_knows():
    subject, case = case_in("a block pasted from keras")
    assert {name for name, norm in norms_of(subject.model) if norm.momentum == 0.99} == case.layers
    assert len(case.layers) == 2


def test_a_zeroed_norm_gives_its_bias():
    subject, case = case_in("zeroed by an initialisation after loading")
    (name,) = case.layers
    norm = subject.model.get_submodule(name)
    assert norm.weight.eq(0).all() and norm.bias.ne(0).any()


def test_two_new_norms_remember_their_start():
    subject, case = case_in("two norms put in anew with a slow momentum")  # codespell:ignore anew
    assert counts_of(subject.model) == {3, 9}
    assert {name for name, norm in norms_of(subject.model) if norm.momentum == 0.001} == case.layers


def test_a_block_is_gone():
    subject, _ = case_in("a block left out for speed")
    assert len(norms_of(subject.model)) < len(norms_of(nested_network()))


# Feeds.


def test_classes_stay_for_long():
    _, case = case_in("a stream in which a class stays for long")
    assert all(len(labels) == 64 and len(labels.unique()) <= 5 for _, labels in case.batches)


def test_batches_of_devices_differ():
    _, case = case_in("a device for each batch")
    means = torch.stack([x.mean((0, 2, 3)) for x, _ in case.batches])
    assert (means.std(0) > 0.2).all()


def test_the_rest_of_a_batch_is_blank():
    _, case = case_in("batches filled up with blank samples")
    for x, labels in case.batches:
        assert 20 <= int(x.flatten(1).any(1).sum()) < 40 and (labels >= 0).all()


def test_the_last_maps_of_tiny_crops_have_few_values():
    _, case = case_in("tiny crops in tiny batches")
    assert case.batches[0][0].shape == (2, 3, 4, 4) and case.model.training and case.layers


def test_what_is_divided_twice_varies_less_than_eps():
    _, case = case_in("divided twice by the largest count", _Longer)
    assert case.layers == {"inner.1"}


@pytest.mark.parametrize("name", ["inputs scaled by their batchs extremes", "a softmax over the batch"])
def test_outputs_depend_on_the_rest_of_the_batch(name):
    subject, case = case_in(name)
    x = subject.data.test[0]
    assert not any(module.training for module in case.model.modules())
    assert not torch.allclose(case.model(x[:2]), case.model(x)[:2], atol=1e-4)


def test_a_backbone_is_called_at_three_sizes():
    _, case = case_in("one backbone at three scales")
    assert counts_of(case.model) == {6 + 3 * 3}


@pytest.mark.parametrize("name", ["pictures on their side", "noise of a dark scene"])
def test_fed_data_are_those_that_accuracy_is_measured_on(name):
    subject, case = case_in(name)
    fed, (clean, _) = subject.data.fed(case.feed), subject.data.batches()[0]
    assert torch.equal(case.batches[0][0], case.feed(clean)) and not torch.equal(fed.test[0], subject.data.test[0])
    assert fed.test[0].shape == subject.data.test[0].shape and torch.equal(fed.train[0], subject.data.train[0])


def test_one_rank_of_four_has_other_estimates():
    subject, case = case_in("a rank that does not normalize its inputs")
    here = [torch.equal(state["1.running_mean"], subject.model[1].running_mean) for state in case.options["ranks"]]
    assert here == [True, True, False, True]


# Layers.


def test_a_gamma_from_zero_adds_one():
    subject, case = case_in("a gamma that is counted from zero")
    name = sorted(case.layers)[0]
    norm, right, x = subject.model.get_submodule(name), right_of(subject).get_submodule(name), torch.randn(4, 8, 5, 5)
    right.weight.data += 1
    torch.testing.assert_close(norm(x), right(x))


def test_a_kernel_leaves_the_last_channels():
    subject, case = case_in("a kernel that stops four channels short")
    (name,) = case.layers
    norm, right, x = subject.model.get_submodule(name), right_of(subject).get_submodule(name), torch.randn(4, 8, 5, 5)
    assert torch.equal(norm(x)[:, :4], right(x)[:, :4]) and torch.equal(norm(x)[:, 4:], x[:, 4:])


def test_eval_does_not_reach_a_method():
    _, case = case_in("a norm held by its method")
    assert len(norms_of(case.model)) == len(norms_of(nested_network())) - 1


def test_estimates_in_half_precision_move_and_stay_so():
    _, case = case_in("estimates kept in half of the memory")
    before = case.model[1].running_mean.clone()
    case.model(case.batches[0][0] + 3)
    assert case.model[1].running_mean.dtype == torch.bfloat16 and not torch.equal(before, case.model[1].running_mean)


def test_estimates_move_twice_at_one_call():
    subject, case = case_in("estimates moved by hand and by torch")
    (name,) = case.layers
    twice, once = subject.model.get_submodule(name), right_of(subject).get_submodule(name).train()
    x = torch.randn(4, 8, 5, 5)
    twice(x)
    once(x)
    once(x)
    torch.testing.assert_close(twice.running_mean, once.running_mean)


def test_a_window_has_values_of_two_channels():
    _, case = case_in("windows cut by a reshape")
    (name,) = case.layers
    seen = []
    case.model.get_submodule(name).register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape))
    case.model(case.batches[0][0])
    assert seen[0][0] == 128 and seen[0][2] * 2 == seen[0][3]


# Loops.


def test_a_skipped_step_leaves_no_numbers():
    subject, case = case_in("a step that was skipped after its forward")
    assert any(not norm.running_var.isfinite().all() for _, norm in norms_of(case.model))
    assert torch.equal(case.model[0].weight, right_of(subject)[0].weight)


def test_sharpness_aware_steps_forward_twice():
    _, case = case_in("second forwards of sharpness aware steps")
    assert counts_of(case.model) == {6 + 2 * 3}


def test_a_warm_up_leaves_the_flag_and_the_estimates():
    subject, case = case_in("tracking switched off for a warm up")
    assert not any(norm.track_running_stats for _, norm in norms_of(case.model))
    assert torch.equal(case.model[1].running_mean, right_of(subject)[1].running_mean)
    assert not torch.equal(case.model[0].weight, right_of(subject)[0].weight)


def test_one_norm_evaluates_in_a_training():
    _, case = case_in("a norm left in evaluation")
    assert {name for name, norm in norms_of(case.model) if not norm.training} == case.layers
    assert counts_of(case.model) == {6, 9} and case.model.training


def test_a_helper_makes_its_norm_train():
    _, case = case_in("a helper that puts back the wrong mode")
    (name,) = case.layers
    case.model(case.batches[0][0])
    assert case.model.get_submodule(name).training and int(case.model.get_submodule(name).num_batches_tracked) == 7


def test_a_rate_is_zero_for_all_but_the_head():
    subject, case = case_in("a backbone with a rate of zero")
    rates = [group["lr"] for group in case.options["optimizer"].param_groups]
    assert rates == [0.0, subject.rate] and all(each.requires_grad for each in case.model.parameters())
    _, warm = case_in("the first step of a warm up")
    assert {group["lr"] for group in warm.options["optimizer"].param_groups} == {0.0}


def test_a_large_decay_shrinks_weights():
    subject, case = case_in("the decay of lions recipe", _Longer)
    assert case.model[1].weight.abs().mean() < 0.9 * right_of(subject)[1].weight.abs().mean()


def test_a_target_has_the_parameters_of_a_step_and_the_buffers_of_the_start():
    subject, case = case_in("a target that copies parameters now and then", _Longer)
    start = right_of(subject)
    assert torch.equal(case.model.target[1].running_mean, start[1].running_mean)
    assert not torch.equal(case.model.target[0].weight, start[0].weight)


def test_dropout_without_a_module_acts_in_training_alone():
    _, case = case_in("dropout called as a function")
    x = case.batches[0][0]
    assert torch.equal(case.model(x), case.model(x)) and not torch.equal(case.model.train()(x), case.model(x))


def test_synchronised_norms_are_inside_wrappers():
    _, case = case_in("synchronised norms in torchs wrapper")
    assert len(case.layers) == 2 and all("_checkpoint_wrapped_module" in name for name in case.layers)


def test_a_pooled_branch_gives_its_bias():
    _, case = case_in("a group for each channel of a pooled branch")
    (name,) = case.layers
    norm = case.model.get_submodule(name)
    torch.testing.assert_close(norm(torch.randn(2, 8, 1, 1))[0].flatten(), norm.bias)


def test_a_norm_is_called_for_each_pair():
    _, case = case_in("virtual batches of two")
    (name,) = case.layers
    case.model(case.batches[0][0])
    assert int(case.model.get_submodule(name).num_batches_tracked) >= 6 + 32


# Healthy variants.


def test_classes_come_by_turns():
    _, case = case_in("as many of each class in every batch")
    assert case.batches and all(labels.bincount().tolist() == [6] * 10 for _, labels in case.batches)


def test_eps_and_momentum_are_the_same_everywhere():
    _, case = case_in("eps and momentum of a port everywhere")
    assert {(norm.eps, norm.momentum) for _, norm in norms_of(case.model)} == {(1e-3, 0.01)}
