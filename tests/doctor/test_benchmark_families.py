"""The half of the doctor's benchmark that was held out second: networks run, faults are what they say.

The doctor looks at none of them here.
"""

import itertools

import pytest
import torch
from torch import nn

from benchmarks.doctor.architectures.registry import block
from benchmarks.doctor.subject import Case, Subject, norms_of
from tests.support.doctor_benchmark import Short, case_in, counts_of, subject_of


class _Longer(Short):
    steps = 12


def _network() -> nn.Module:
    torch.manual_seed(0)
    part = nn.Sequential(*block(8, 8), *block(8, 8))
    return nn.Sequential(*block(3, 8), part, *block(8, 8), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))


def _small(name: str, kind: type[Subject] = Short) -> tuple[Subject, Case]:
    return case_in(name, kind, _network, side=8)


def test_parameters_are_the_clients_mean_and_buffers_the_last_ones():
    subject, case = _small("federated averages with the last clients buffers")
    assert all(int(norm.num_batches_tracked) == 6 + 20 for _, norm in norms_of(case.model))
    assert case.model is subject.model


def test_a_negated_task_leaves_variances_below_zero():
    _, case = _small("a task vector subtracted with its buffers", _Longer)
    assert (norms_of(case.model)[0][1].running_var < 0).any()


def test_no_counter_at_all_gives_no_number():
    _, case = _small("clients weighted by counters that are zero")
    assert all(norm.running_mean.isnan().all() and norm.running_var.isnan().all() for _, norm in norms_of(case.model))


def test_filters_are_of_a_lower_rank():
    subject, _ = _small("filters of low rank")
    assert int(torch.linalg.matrix_rank(subject.model[3][0].weight.flatten(1), rtol=1e-4)) == 3


def test_filters_have_a_spectral_norm_of_one():
    subject, _ = _small("spectral norm put on after training")
    assert torch.linalg.matrix_norm(subject.model[3][0].weight.flatten(1), 2).item() == pytest.approx(1, abs=0.05)
    assert not any(module.training for module in subject.model.modules())


def test_parameters_are_the_files_and_buffers_are_not():
    subject, case = _small("a file of trained parameters over another networks buffers")
    whole, now = case.options["checkpoint"], subject.model.state_dict()
    parameters = dict(subject.model.named_parameters())
    assert all(torch.equal(whole[name], now[name]) for name in parameters)
    assert not torch.equal(whole["1.running_mean"], now["1.running_mean"])


def test_one_layer_and_its_norm_are_not_the_files():
    subject, case = _small("a layer and its norm left out by a filter")
    whole, now = case.options["checkpoint"], subject.model.state_dict()
    (norm,) = case.layers
    other = {key.rpartition(".")[0] for key in whole if not torch.equal(whole[key], now[key])}
    assert norm in other and len(other) == 2


def test_estimates_are_those_of_the_last_batch():
    subject, _ = _small("a momentum of one left from a calibration")
    first = norms_of(subject.model)[0][1]
    assert first.momentum == 1.0 and int(first.num_batches_tracked) == 6 + 3


@pytest.mark.parametrize("name", ["buffers removed and the flag left", "features centred by their batch"])
def test_outputs_depend_on_the_rest_of_the_batch(name):
    subject, case = _small(name)
    x = subject.data.test[0]
    assert not any(module.training for module in case.model.modules())
    assert not torch.allclose(case.model(x[:2]), case.model(x)[:2], atol=1e-4)


def test_estimates_of_one_norm_are_in_half_precision():
    _, case = _small("one norm between two casts")
    assert [norm.running_mean.dtype for _, norm in norms_of(case.model)].count(torch.bfloat16) == 1


def test_eval_does_not_reach_a_norm_in_a_dict():
    _, case = _small("norms of two domains in a plain dict")
    assert len(norms_of(case.model)) == len(norms_of(_network())) - 1
    _, right = _small("norms of two domains in a module dict")
    assert len(norms_of(right.model)) == 2 * len(norms_of(_network()))


def test_each_sample_gets_a_gradient():
    _, case = _small("private training that keeps its norms")
    x, labels = case.batches[0]
    nn.functional.cross_entropy(case.model(x), labels).backward()
    last = case.model._module[-1]
    torch.testing.assert_close(last.weight.grad_sample.sum(0), last.weight.grad)


@pytest.mark.parametrize(
    "name", ["a cached affine that outlives its estimates", "a fast path that leaves out the mean"]
)
def test_code_of_ones_own_is_wrong_in_evaluation_alone(name):
    subject, case = _small(name)
    right = subject_of(_network(), subject.data, name).model
    x = subject.data.test[0]
    assert not torch.allclose(case.model(x), right(x), atol=1e-2)
    torch.testing.assert_close(case.model.train()(x), right.train()(x))


@pytest.mark.parametrize(
    ("name", "again"), [("a hook that runs its layer again", 2), ("hooks that only look", 1)], ids=str
)
def test_a_hook_that_runs_its_layer_is_counted(name, again):
    _, case = _small(name)
    case.model(case.batches[0][0])
    assert max(int(norm.num_batches_tracked) for _, norm in norms_of(case.model)) == 6 + again


@pytest.mark.parametrize("name", ["a hook that adapts in evaluation", "dropout at test time by training mode"], ids=str)
def test_estimates_move_in_evaluation(name):
    subject, case = _small(name)
    before = [norm.running_mean.clone() for _, norm in norms_of(subject.model)]
    case.model(2 * subject.data.test[0])
    after = [norm.running_mean for _, norm in norms_of(subject.model)]
    assert any(not torch.equal(one, other) for one, other in zip(before, after, strict=True))


def test_a_teachers_estimates_follow_its_students_batches():
    _, case = _small("a frozen teacher that trains with its student")
    case.model(case.batches[0][0])
    counted = {name: int(norm.num_batches_tracked) for name, norm in norms_of(case.model)}
    assert set(counted.values()) == {7} and {name for name in counted if name.startswith("teacher.")} == case.layers


@pytest.mark.parametrize(
    ("name", "same"),
    [("a target network with the statistics of its start", True), ("a target network with averaged buffers", False)],
)
def test_a_target_keeps_its_estimates_or_averages_them(name, same):
    subject, case = _small(name)
    start = subject_of(_network(), subject.data, name).model
    assert torch.equal(case.model.target[1].running_mean, start[1].running_mean) == same
    assert not torch.equal(case.model.target[0].weight, start[0].weight)


@pytest.mark.parametrize(
    ("name", "same"), [("one rank that resumed without buffers", False), ("ranks that are alike", True)], ids=str
)
def test_one_rank_of_four_has_other_estimates(name, same):
    _, case = _small(name)
    alike = [torch.equal(state["1.running_mean"], case.model[1].running_mean) for state in case.options["ranks"]]
    assert alike == [True, True, same, True]


def test_a_pooled_branch_has_one_value_for_each_sample():
    _, case = _small("a pooled branch with batches of two")
    (name,) = case.layers
    seen = []
    case.model.get_submodule(name).register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape))
    case.model(case.batches[0][0])
    assert seen == [(2, 8, 1, 1)]


def test_rows_hold_values_of_several_channels():
    _, case = _small("rows cut across channels")
    (name,) = case.layers
    assert isinstance(case.model.get_submodule(name), nn.BatchNorm1d)


def test_a_block_is_run_three_times():
    _, case = _small("a block unrolled with one set of norms")
    assert counts_of(case.model) == {6 + 3, 6 + 3 * 3}


def test_a_batch_of_films_has_four_labels_and_one_of_a_bucket_samples_alike():
    _, films = _small("frames of four films in a batch")
    assert all(len(labels.unique_consecutive()) <= 4 and len(labels) == 64 for _, labels in films.batches)
    _, buckets = _small("buckets of like samples")
    contrasts = [x.flatten(1).std(1) for x, _ in buckets.batches]
    assert sorted(float(each.min()) for each in contrasts) == [float(each.min()) for each in sorted(contrasts, key=min)]
    spans = sorted((float(each.min()), float(each.max())) for each in contrasts)
    assert all(high <= low for (_, high), (low, _) in itertools.pairwise(spans))


def test_each_second_batch_is_of_the_other_camera():
    _, case = _small("two loaders by turns")
    means = [float(x.mean()) for x, _ in case.batches]
    assert max(means[::2]) + 1 < min(means[1::2])


def test_a_quarter_of_each_batch_is_as_it_was():
    subject, case = _small("weak and strong views in one batch")
    for (x, _), (clean, _) in zip(case.batches, subject.data.batches(), strict=True):
        assert torch.equal(x[:16], clean[:16]) and not torch.isclose(x[16:], clean[16:]).all(3).any()


def test_padding_is_black_and_of_many_widths():
    _, case = _small("padded before the mean is subtracted")
    widths = {int((each == -1.9).all(0).all(0).sum()) for x, _ in case.batches for each in x}
    assert widths == {1, 2, 3, 4, 5}


@pytest.mark.parametrize(
    "name", ["blue in the place of red", "out of focus", "recalibrated for a new camera without a reset"], ids=str
)
def test_fed_data_are_those_that_accuracy_is_measured_on(name):
    subject, case = _small(name)
    fed, (clean, _) = subject.data.fed(case.feed), subject.data.batches()[0]
    assert torch.equal(case.batches[0][0], case.feed(clean)) and not torch.equal(fed.test[0], subject.data.test[0])
    assert fed.test[0].shape == subject.data.test[0].shape and torch.equal(fed.train[0], subject.data.train[0])


def test_a_glitch_leaves_a_variance_far_too_large():
    subject, case = _small("a glitch among the last batches")
    right = subject_of(_network(), subject.data, "").model
    assert (case.model[1].running_var > 100 * right[1].running_var).all()


def test_a_probed_network_evaluates_and_its_head_alone_trains():
    _, case = _small("a head fine tuned on a network that evaluates")
    assert [name for name, each in case.model.named_parameters() if each.requires_grad] == ["9.weight", "9.bias"]
    assert case.model.training and not any(norm.training for _, norm in norms_of(case.model))


def test_a_long_tail_has_more_of_the_first_class_than_of_the_last():
    _, case = _small("trained on a long tail that is shuffled")
    labels = torch.cat([labels for _, labels in case.batches])
    assert int((labels == 0).sum()) > 3 * int((labels == 9).sum())
