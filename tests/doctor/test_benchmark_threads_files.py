"""Faults and healthy variants from threads about files, ports and norms by hand: they are what they say.

The doctor looks at none of them here.
"""

import pytest
import torch
from torch import nn

from benchmarks.doctor.subject import norms_of
from tests.support.doctor_benchmark import Short, case_in, counts_of, is_new, nested_network, right_of


class _Longer(Short):
    steps = 40


# Ports.


def test_a_factor_of_zero_takes_all_estimates_away():
    subject, _ = case_in("a factor of zero beside the estimates")
    for (_, norm), (_, right) in zip(norms_of(subject.model), norms_of(right_of(subject)), strict=True):
        assert norm.running_mean.eq(0).all() and norm.running_var.eq(0).all() and torch.equal(norm.weight, right.weight)


def test_slopes_and_biases_are_means_and_variances():
    subject, _ = case_in("slopes and biases read as means and variances")
    for (_, norm), (_, right) in zip(norms_of(subject.model), norms_of(right_of(subject)), strict=True):
        assert torch.equal(norm.running_mean, right.weight) and torch.equal(norm.running_var, right.bias)
        assert torch.equal(norm.weight, right.running_mean) and torch.equal(norm.bias, right.running_var)


def test_each_array_begins_with_the_end_of_the_one_before():
    subject, _ = case_in("a file read from one number too early")
    (filters, norm), (_, right), behind = subject.model[:2], right_of(subject)[:2], subject.model[3][1]
    assert norm.bias[0] == 0 and torch.equal(norm.bias[1:], right.bias[:-1]) and norm.weight[0] == right.bias[-1]
    assert norm.running_var[0] == right.running_mean[-1] and filters.weight.flatten()[0] == right.running_var[-1]
    assert behind.bias[0] == right_of(subject)[0].weight.flatten()[-1]


def test_frozen_norms_divide_by_nothing_in_dead_channels():
    subject, case = case_in("frozen norms without eps and a dead filter")
    (name,) = case.layers
    assert int(case.model.get_submodule(name).running_var.eq(0).sum()) == 2 and not norms_of(case.model)
    assert case.model(subject.data.test[0]).isnan().any()


def test_eps_is_taken_off_and_two_variances_are_below_zero():
    subject, case = case_in("eps subtracted from all variances of a file")
    (name,) = case.layers
    for each, norm in norms_of(subject.model):
        right = right_of(subject).get_submodule(each)
        below = norm.running_var < 0
        assert int(below.sum()) == (2 if each == name else 0)
        torch.testing.assert_close(norm.running_var[~below], right.running_var[~below] - 1e-5, rtol=0, atol=1e-7)


# Files.


def test_fused_filters_give_what_norms_gave_but_for_their_shift():
    subject, case = case_in("fused filters in a network that has its norms")
    x, right = subject.data.test[0], right_of(subject)
    shift = right[:2](x) - case.model[0](x)
    torch.testing.assert_close(shift, shift[:1, :, :1, :1].expand_as(shift), rtol=0, atol=1e-4)
    assert shift.abs().max() > 0.05
    for _, norm in norms_of(case.model):
        assert norm.weight.eq(1).all() and norm.bias.eq(0).all() and norm.running_var.eq(1).all()


def test_three_quarters_of_a_layers_variances_are_corrupt():
    _, case = case_in("most variances of a layer corrupt in its file")
    for name, norm in norms_of(case.model):
        size = norm.num_features if name in case.layers else 0
        assert int(norm.running_var.isinf().sum()) == size // 4 and int(norm.running_var.isnan().sum()) == size // 2


# Averages and clients.


def test_batches_are_counted_and_not_measured():
    subject, _ = case_in("averaged weights measured with a momentum of zero")
    assert is_new(subject.model) and {norm.momentum for _, norm in norms_of(subject.model)} == {0.1}
    assert counts_of(subject.model) == {3} and not torch.equal(subject.model[0].weight, right_of(subject)[0].weight)


def test_estimates_are_those_of_the_centre_with_more_contrast():
    subject, _ = case_in("the first centres estimates in an evaluation of all")
    assert (subject.model[1].running_var > 1.2 * right_of(subject)[1].running_var).all()
    assert counts_of(subject.model) == {6 + 3 * 3}
    assert not torch.equal(subject.model[0].weight, right_of(subject)[0].weight)


# Frozen parts and deployment.


def test_new_filters_stand_under_old_estimates():
    subject, case = case_in("new first filters in a stage that is frozen")
    model, right = subject.model, right_of(subject)
    assert not torch.equal(model[0].weight, right[0].weight) and not model[0].weight.requires_grad
    assert torch.equal(model[1].running_mean, right[1].running_mean) and torch.equal(model[1].weight, right[1].weight)
    assert not torch.equal(model[3][1].running_mean, right[3][1].running_mean) and case.layers == {"1"}
    assert all(norm.train().training for _, norm in norms_of(model))


def test_inputs_have_more_contrast_than_those_of_training():
    subject, case = case_in("standardized for a network of inputs in one")
    fed, (clean, _) = subject.data.fed(case.feed), subject.data.batches()[0]
    assert torch.equal(case.batches[0][0], case.feed(clean)) and torch.equal(fed.train[0], subject.data.train[0])
    torch.testing.assert_close(fed.test[0].std() / subject.data.test[0].std(), torch.tensor(2.21))


# Norms by hand.


def test_a_norm_keeps_a_tenth_of_what_it_knew():
    _, case = case_in("torchs momentum kept for the old value")
    norm, torchs, x = case.model[1], nn.BatchNorm2d(8, momentum=0.9), torch.randn(4, 8, 5, 5)
    torchs.load_state_dict(norm.state_dict())
    torch.testing.assert_close(norm(x), torchs(x))
    torch.testing.assert_close(norm.running_var, torchs.running_var)
    assert norm.momentum == 0.1 and case.model.training


def test_one_value_makes_a_variance_that_is_no_number():
    _, case = case_in("a last batch of one for norms that divide by zero")
    *others, neck = [norm for _, norm in norms_of(case.model)]
    assert neck.running_var.isnan().all() and all(norm.running_var.isfinite().all() for norm in others)


def test_a_norm_by_hand_is_torchs_in_larger_batches():
    _, case = case_in("a last batch of one for norms that divide by zero")
    norm, torchs, x = case.model[1].train(), nn.BatchNorm2d(8), torch.randn(4, 8, 5, 5)
    torchs.load_state_dict(norm.state_dict())
    torch.testing.assert_close(norm(x), torchs(x))
    torch.testing.assert_close(norm.running_var, torchs.running_var)


def test_norms_have_a_channel_for_each_column():
    subject, case = case_in("keras default axis behind every convolution")
    assert [norm.num_features for _, norm in norms_of(case.model)] == [8, 8, 8, 4, 2]
    columns = case.model[0](subject.data.train[0][:64]).transpose(1, 3)
    y = case.model[1].train()(columns.transpose(1, 3))
    torch.testing.assert_close(y.mean((0, 1, 2)), case.model[1].norm.bias, rtol=0, atol=1e-5)


def test_all_norms_of_a_size_are_one():
    _, case = case_in("norms shared with the layers of all steps", network=lambda: nested_network(middle=12))
    assert case.model[1] is case.model[3][1] is case.model[4][4] and case.layers == {"1"}
    assert counts_of(case.model) == {6 + 4 * 3, 6 + 3} and len(norms_of(case.model)) == 2


# Arguments and flags.


def test_one_eps_is_the_number_of_channels():
    _, case = case_in("the number of channels in the place of eps")
    for name, norm in norms_of(case.model):
        assert norm.eps == (norm.num_features if name in case.layers else 1e-5)
    assert len(case.layers) == 1


def test_a_momentum_is_lost_in_its_backup():
    subject, case = case_in("a momentum whose backup was overwritten")
    before = case.model[1].running_mean.clone()
    case.model(case.batches[0][0] + 3)
    assert {norm.momentum for _, norm in norms_of(case.model)} == {0.0} and case.model.training
    assert torch.equal(case.model[1].running_mean, before)
    assert not torch.equal(before, right_of(subject)[1].running_mean)


def test_an_evaluation_without_estimates_depends_on_the_batch():
    subject, case = case_in("a backbone that does not track")
    x = subject.data.test[0]
    assert not any(module.training for module in case.model.modules())
    assert not list(case.model.buffers()) and not torch.allclose(case.model(x[:2]), case.model(x)[:2], atol=1e-4)


def test_one_sample_is_in_the_estimates():
    subject, _ = case_in("one sample that was not standardized")
    assert (subject.model[1].running_var > 2 * right_of(subject)[1].running_var).all()


# Healthy variants.


def test_biases_are_subtracted_again():
    subject, case = case_in("biases under norms")
    x, right = subject.data.test[0], right_of(subject)
    assert all(each.bias is not None and each.bias.abs().sum() > 0.1 for each in (case.model[0], case.model[3][0]))
    bias, norm = case.model[0].bias.clone(), case.model[1]
    with torch.no_grad():
        with_bias = norm.train()(case.model[0](x))
        torch.testing.assert_close(with_bias, norm(case.model[0](x) - bias.view(1, -1, 1, 1)), rtol=0, atol=1e-4)
    assert right[0].bias is None


def test_bins_are_normalized_on_the_last_axis():
    subject, case = case_in("a norm of each frequency bin", _Longer)
    x = subject.data.train[0][:64]
    front = case.model[0]
    assert (front.scale * x).std((0, 1, 2)).max() > 50 * (front.scale * x).std((0, 1, 2)).min()
    torch.testing.assert_close(front(x).std((0, 1, 2)), torch.ones(16), rtol=0, atol=0.3)


def test_frozen_norms_without_eps_are_near_torchs():
    subject, case = case_in("frozen norms that have no eps")
    x = subject.data.test[0]
    assert not norms_of(case.model) and not torch.equal(case.model(x), right_of(subject)(x))
    torch.testing.assert_close(case.model(x), right_of(subject)(x), rtol=0, atol=1e-2)


def test_an_average_is_of_parameters_and_buffers():
    subject, _ = case_in("an average of the last files with their buffers")
    assert counts_of(subject.model) == {6 + 5 * 3}
    assert not torch.equal(subject.model[1].running_mean, right_of(subject)[1].running_mean)


@pytest.mark.parametrize(("name", "count"), [("1", 32 * 8 * 8), ("4.4", 32 * 4 * 4)])
def test_variances_are_smaller_by_one_value(name, count):
    subject, _ = case_in("variances that are divided by the count")
    right = right_of(subject).get_submodule(name).running_var * (count - 1) / count
    torch.testing.assert_close(subject.model.get_submodule(name).running_var, right)


def test_eps_and_momentum_are_set_and_trained_with():
    _, case = case_in("eps and momentum set behind the loading")
    assert {(norm.eps, norm.momentum) for _, norm in norms_of(case.model)} == {(1e-4, 0.01)}
    assert counts_of(case.model) == {6 + 3} and case.model.training
