"""Reported faults of files and of what is built, and reported healthy variants: they are what they say.

The doctor looks at none of them here.
"""

import copy
import inspect

import torch
from torch import nn

from benchmarks.doctor.architectures.registry import block
from benchmarks.doctor.faults import FAULTS
from benchmarks.doctor.healthy import HEALTHY
from benchmarks.doctor.subject import Case, Subject, last_linear, norms_of
from tests.support.doctor_benchmark import Short, case_in, counts_of, right_of

FILES = (".reported_files", ".reported_building")
NAMES = [name for name, fault in FAULTS.items() if fault.inject.__module__.endswith(FILES)]
VARIANTS = [name for name, each in HEALTHY.items() if each.make.__module__.endswith(".reported")]


class _Longer(Short):
    steps = 40


def _network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        *block(3, 8, stride=2),
        *block(8, 8),
        *block(8, 16, stride=2),
        *block(16, 16),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, 10),
    )


def _small(name: str, kind: type[Subject] = Short) -> tuple[Subject, Case]:
    return case_in(name, kind, _network)


def _right(subject: Subject) -> nn.Module:
    return right_of(subject, _network)


def test_each_fault_and_each_variant_names_its_thread():
    assert len(NAMES) >= 18 and len(VARIANTS) >= 10
    made = [*(FAULTS[name].inject for name in NAMES), *(HEALTHY[name].make for name in VARIANTS)]
    assert all("gh:" in inspect.getdoc(each) for each in made)


# Files that are read, or not.


def test_estimates_alone_are_those_of_a_new_layer():
    subject, case = _small("buffers initialised again behind the loading")
    right = _right(subject)
    for (name, norm), (_, before) in zip(norms_of(case.model), norms_of(right), strict=True):
        assert norm.running_mean.eq(0).all() and norm.running_var.eq(1).all() and norm.num_batches_tracked == 0, name
        assert torch.equal(norm.weight, before.weight) and torch.equal(norm.bias, before.bias), name
    assert torch.equal(case.model[0].weight, right[0].weight)


def test_an_initialisation_keeps_variances_and_the_file_has_the_rest():
    subject, case = _small("an initialisation called behind the loading")
    right = _right(subject).state_dict()
    assert case.options["checkpoint"].keys() == right.keys()
    assert all(torch.equal(case.options["checkpoint"][key], right[key]) for key in right)
    norm = case.model[4]
    assert norm.weight.eq(1).all() and norm.bias.eq(0.0001).all() and norm.running_mean.eq(0).all()
    assert torch.equal(norm.running_var, right["4.running_var"])
    assert 0.005 < case.model[0].weight.std() < 0.015 and 0.1 < case.model[3].weight.std() < 0.15


def test_nothing_of_a_file_with_a_prefix_is_in_the_model():
    subject, case = _small("a prefix that lets nothing load")
    right = _right(subject).state_dict()
    assert all(torch.equal(case.options["checkpoint"][f"model.{key}"], right[key]) for key in right)
    assert case.model[1].running_var.eq(1).all() and not torch.equal(case.model[0].weight, right["0.weight"])


def test_first_arrays_are_copied_and_second_ones_are_new():
    subject, case = _small("the first array of each layer copied")
    norm, right = case.model[4], _right(subject)[4]
    assert torch.equal(norm.running_mean, right.running_mean) and torch.equal(norm.weight, right.weight)
    assert norm.running_var.eq(1).all() and norm.bias.eq(0).all() and norm.num_batches_tracked == 0


# Ports.


def test_gammas_are_half_of_what_they_were():
    subject, case = _small("a fixed gamma that decayed in the file")
    torch.testing.assert_close(case.model[4].weight, 0.4956 * _right(subject)[4].weight)


def test_group_norms_have_weights_and_no_estimates():
    subject, case = _small("group norms with the weights of batch norms")
    norm, right = case.model[7], _right(subject)[7]
    assert isinstance(norm, nn.GroupNorm) and (norm.num_groups, norm.num_channels) == (8, 16)
    assert torch.equal(norm.weight, right.weight) and not norms_of(case.model)
    assert torch.equal(case.options["checkpoint"]["7.running_var"], right.running_var)


def test_a_bias_free_norm_divides_and_does_not_subtract():
    subject, case = _small("norms without mean that were converted in training")
    norm, right, x = case.model[4], _right(subject)[4], torch.randn(3, 8, 4, 4)
    assert isinstance(norm, nn.BatchNorm2d) and type(norm) is not nn.BatchNorm2d
    shift = right.bias - right.weight * right.running_mean / (right.running_var + 1e-5).sqrt()
    torch.testing.assert_close(norm(x) + shift.view(-1, 1, 1), right(x), rtol=1e-3, atol=1e-3)
    before = norm.running_var.clone()
    norm.train()(x)
    assert not torch.equal(norm.running_var, before) and torch.equal(norm.running_mean, right.running_mean)


# Pruning, averages, numbers.


def test_two_fifths_of_the_filters_are_zero_and_their_norms_are_as_before():
    subject, case = _small("zeroed filters whose norms still shift")
    assert [int(each.weight.flatten(1).any(1).logical_not().sum()) for each in (case.model[0], case.model[9])] == [3, 6]
    assert torch.equal(case.model[1].weight, _right(subject)[1].weight)


def test_a_threshold_of_all_layers_takes_half_of_the_channels():
    _, case = _small("one threshold for the gammas of all layers")
    kept = torch.cat([norm.weight != 0 for _, norm in norms_of(case.model)])
    assert int(kept.sum()) == len(kept) // 2
    assert all(bool(norm.bias[norm.weight == 0].eq(0).all()) for _, norm in norms_of(case.model))


def test_a_soup_is_a_mean_of_other_networks():
    subject, case = _small("a soup of two fine tunings")
    right = _right(subject)
    assert not torch.equal(case.model[0].weight, right[0].weight)
    assert not torch.equal(case.model[1].running_mean, right[1].running_mean) and not case.model.training
    assert counts_of(case.model) == {6}  # not of floats


def test_a_server_has_new_weights_and_the_buffers_of_its_start():
    subject, case = _small("a server whose optimizer has no buffers")
    right = _right(subject)
    assert not torch.equal(case.model[0].weight, right[0].weight)
    assert all(torch.equal(one, other) for one, other in zip(case.model.buffers(), right.buffers(), strict=True))


def test_all_is_in_half_precision():
    _, case = _small("all of a training in half precision")
    assert case.model.training and case.model[1].running_var.dtype == torch.float16


def test_training_does_not_reach_buffers_behind_a_fake_quantiser():
    subject, case = _small("buffers cut off by fake quantisation")
    right = _right(subject)
    assert not torch.equal(case.model[0].weight, right[0].weight)
    assert all(torch.equal(one, other) for one, other in zip(case.model.buffers(), right.buffers(), strict=True))
    assert {norm.momentum for _, norm in norms_of(case.model)} == {0.1}


# Freezes and fine-tuning.


def test_a_linear_evaluation_moves_estimates_and_the_head():
    subject, case = _small("a linear evaluation in training mode")
    right = _right(subject)
    assert {name for name, each in case.model.named_parameters() if each.requires_grad} == {"14.weight", "14.bias"}
    assert torch.equal(case.model[9].weight, right[9].weight) and case.model.training
    assert not torch.equal(case.model[14].weight, right[14].weight)
    assert not torch.equal(case.model[1].running_mean, right[1].running_mean)


def test_a_freeze_keeps_buffers_and_flags_no_tracking():
    subject, case = _small("a freeze that takes tracking away")
    right = _right(subject)
    assert not any(norm.track_running_stats for _, norm in norms_of(case.model)) and case.model.training
    assert torch.equal(case.model[1].running_mean, right[1].running_mean)
    assert not torch.equal(case.model[14].weight, right[14].weight)


def test_norms_are_frozen_and_filters_are_not():
    subject, case = _small("frozen norms in a network that trains")
    right = _right(subject)
    assert torch.equal(case.model[4].weight, right[4].weight) and torch.equal(case.model[4].bias, right[4].bias)
    assert not torch.equal(case.model[3].weight, right[3].weight) and case.model.training
    assert not torch.equal(case.model[4].running_mean, right[4].running_mean)


def test_momentum_is_nine_tenths_and_batches_have_eight_samples():
    _, case = _small("a momentum of nine tenths with batches of eight")
    assert {norm.momentum for _, norm in norms_of(case.model)} == {0.9} and case.model.training
    assert {len(labels) for _, labels in case.batches} == {8}
    assert counts_of(case.model) == {9}


def test_a_summary_counts_once():
    subject, case = _small("a summary before the evaluation")
    assert counts_of(case.model) == {7} and not case.model.training
    assert torch.equal(case.model[0].weight, _right(subject)[0].weight)
    assert not torch.equal(case.model[1].running_mean, _right(subject)[1].running_mean)


# Norms of one's own, and what is built around them.


def test_a_books_norm_has_averages_of_nothing_where_there_is_no_gradient():
    subject, case = _small("a books averages that no file has")
    norm, right, x = case.model[4], _right(subject)[4], torch.randn(3, 8, 4, 4)
    with torch.no_grad():
        plain = right.weight.view(-1, 1, 1) * x + right.bias.view(-1, 1, 1)
        torch.testing.assert_close(norm(x), plain, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(norm(x), right.train()(x))
    assert "4.moving_mean" not in case.model.state_dict() and norm.moving_mean.ne(0).any()


def test_a_norm_for_meta_learning_trains_in_evaluation():
    subject, case = _small("training true in a norm for meta learning")
    norm, right, x = case.model[4], _right(subject)[4].train(), torch.randn(3, 8, 4, 4)
    assert not norm.training
    torch.testing.assert_close(norm(x), right(x))
    torch.testing.assert_close(norm.running_mean.data, right.running_mean)


def test_a_trace_keeps_its_mode():
    subject, case = _small("traced before it evaluates")
    x = subject.data.test[0]
    assert not case.model.training and not any(each.training for each in case.model.modules())
    assert not torch.allclose(case.model(x)[:3], case.model(x[:3]), atol=1e-4)


def test_members_of_an_ensemble_are_hidden_and_train():
    subject, case = _small("members of an ensemble in a plain list")
    x = subject.data.test[0]
    assert not case.model.training and not norms_of(case.model) and len(case.model.members) == 3
    assert all(norm.training for member in case.model.members for _, norm in norms_of(member))
    mean = torch.stack([copy.deepcopy(member)(x) for member in case.model.members]).mean(0)
    torch.testing.assert_close(case.model(x), mean)


def test_norms_of_one_size_are_one():
    _, case = _small("a decoder that is its encoders list")
    assert case.model[1] is case.model[4] and case.model[7] is case.model[10] and case.layers == {"1", "7"}
    assert int(case.model[1].num_batches_tracked) == 6 + 2 * 3


def test_evaluation_has_a_norm_that_nothing_trained():
    subject, case = _small("a second candidates norm that is not shared")
    (name,) = case.layers
    twins, x = case.model.get_submodule(name.removesuffix(".second")), torch.randn(3, 16, 4, 4)
    x = x[:, : twins.first.num_features]
    assert twins.second.running_var.eq(1).all() and twins.second.weight.eq(1).all()
    torch.testing.assert_close(twins(x), x, rtol=1e-4, atol=1e-4)
    right = _right(subject).get_submodule(name.removesuffix(".second")).train()
    torch.testing.assert_close(twins.train()(x), right(x))


def test_a_norm_has_as_many_channels_as_there_are_places():
    _, case = _small("as many channels as the error asked for")
    (name,) = case.layers
    outer, norm = case.model.get_submodule(name.removesuffix(".norm")), case.model.get_submodule(name)
    x = torch.randn(5, 8, 8, norm.num_features // 8)
    y = outer.train()(x)
    assert norm.num_features in (16, 64) and y.shape == x.shape
    shift, scale = norm.bias.view(8, -1), norm.weight.view(8, -1)
    torch.testing.assert_close(y.mean((0, 1)), shift, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(y.std((0, 1), unbiased=False), scale.abs(), rtol=1e-3, atol=1e-3)


def test_each_value_of_a_map_has_its_own_statistics():
    _, case = _small("statistics of each place of a map")
    (name,) = case.layers
    seen = []
    norm = case.model.get_submodule(name)
    norm.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape))
    case.model(case.batches[0][0])
    assert seen == [(64, norm.num_features)] and norm.num_features in (8 * 64, 16 * 16)
    assert int(norm.num_batches_tracked) == 3


def test_two_instance_norms_evaluate_by_averages():
    subject, case = _small("instance norms that evaluate by averages")
    norms = [each for each in case.model.modules() if isinstance(each, nn.InstanceNorm2d)]
    assert len(norms) == 2 == len(case.layers) and all(each.track_running_stats for each in norms)
    x = torch.randn(2, norms[0].num_features, 4, 4)
    assert not torch.allclose(norms[0](x), copy.deepcopy(norms[0]).train()(x), atol=1e-3)
    moved = [
        norm.running_mean.ne(_right(subject).get_submodule(name).running_mean).any()
        for name, norm in case.model.named_modules()
        if isinstance(norm, nn.InstanceNorm2d)
    ]
    assert all(moved)


def test_inputs_without_normalization_are_those_of_a_picture():
    subject, case = _small("to tensor without normalize")
    clean, _ = subject.data.batches()[0]
    torch.testing.assert_close(case.batches[0][0], clean * 0.251 + 0.473)
    assert torch.equal(subject.data.fed(case.feed).test[0], case.feed(subject.data.test[0]))
    assert torch.equal(case.options["reference"][0][0], subject.data.train[0][:64])


# Healthy variants.


def test_a_neck_has_no_shift():
    _, case = _small("a neck without shift")
    neck = case.model[14][0]
    assert neck.bias.eq(0).all() and neck.weight.requires_grad and neck.weight.ne(1).any() and case.model.training


def test_the_last_layer_is_a_norm():
    _, case = _small("a norm behind the classifier")
    assert isinstance(case.model[14][1], nn.BatchNorm1d) and int(case.model[14][1].num_batches_tracked) == 6


def test_a_gamma_leaves_zero():
    _, case = _small("a new block whose gamma began at zero")
    assert case.model[14][0].norm.weight.ne(0).all()


def test_two_views_are_called_alike():
    subject, case = _small("norms shared by two inputs of one source")
    assert counts_of(case.model) == {6 + 2 * 3}
    x = subject.data.test[0]
    case.model.eval()
    torch.testing.assert_close(case.model(x), case.model(x.flip(3)))


def test_norms_evaluate_and_train_their_weights():
    subject, case = _small("norms that evaluate while their gamma trains")
    right = _right(subject)
    assert case.model.training and not any(norm.training for _, norm in norms_of(case.model))
    assert torch.equal(case.model[4].running_mean, right[4].running_mean)
    assert not torch.equal(case.model[4].weight, right[4].weight) and case.model[4].weight.requires_grad


def test_a_probe_trains_behind_a_backbone_that_evaluates():
    subject, case = _small("a norm without weights in front of a linear probe")
    norm, last = case.model[14]
    assert norm.weight is None and norm.training and int(norm.num_batches_tracked) == 3
    assert torch.equal(case.model[1].running_mean, _right(subject)[1].running_mean)
    assert {id(each) for each in case.model.parameters() if each.requires_grad} == {id(last.weight), id(last.bias)}


def test_decay_is_on_everything():
    _, case = _small("weight decay on everything")
    (group,) = case.options["optimizer"].param_groups
    assert group["weight_decay"] == 5e-4 and len(group["params"]) == len(list(case.model.parameters()))


def test_counters_are_missing_in_the_file_and_zero_in_the_model():
    subject, case = _small("a file from before there were counters")
    assert counts_of(case.model) == {0}
    assert not any("num_batches" in key for key in case.options["checkpoint"])
    assert torch.equal(case.model[1].running_var, _right(subject)[1].running_var)


def test_frozen_norms_compute_the_same_with_statistics_of_nothing():
    subject, case = _small("frozen norms with means of zero and variances of one")
    assert case.model[4].running_mean.eq(0).all() and case.model[4].running_var.eq(1).all()
    assert not list(case.model[4].parameters()) and not norms_of(case.model)
    torch.testing.assert_close(case.model(subject.data.test[0]), _right(subject)(subject.data.test[0]))


def test_norms_are_in_single_precision_between_halves():
    _, case = _small("a network in half precision with norms in single")
    assert {each.dtype for norm in (case.model[1], case.model[4]) for each in norm.parameters()} == {torch.float32}
    assert last_linear(case.model)[1].weight.dtype == torch.float16
    assert case.model(case.batches[0][0]).dtype == torch.float16
