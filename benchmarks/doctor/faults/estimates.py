"""Running statistics that are lost, poisoned, or of other data or weights."""

from __future__ import annotations

import torch
from torch import nn

from benchmarks.doctor.faults.registry import GAP, case, tuning
from benchmarks.doctor.subject import Case, Subject, alike, norms_of


@tuning("statistics-at-init", consequences=GAP | {"statistics-horizon"}, repairable=True)
def _statistics_lost(subject: Subject) -> Case:
    for _, norm in norms_of(subject.model):
        norm.reset_running_stats()
    return case(subject)


@tuning("statistics-at-init", consequences=GAP, repairable=True)
def _statistics_of_one_layer_lost(subject: Subject) -> Case:
    name, norm = subject.one_norm()
    norm.reset_running_stats()
    return case(subject, name)


@tuning("nonfinite-statistics", consequences=GAP, repairable=True)
def _an_infinite_pixel_in_training(subject: Subject) -> Case:
    (x,) = subject.inputs(32, 1)
    x = x.clone()
    x[0, 0, 3] = float("inf")
    subject.follow_([x, *subject.inputs(32, 20)])
    return case(subject)


@tuning("nonfinite-statistics", consequences=GAP, repairable=True)
def _a_variance_that_is_not_a_number(subject: Subject) -> Case:
    name, norm = subject.one_norm()
    assert norm.running_var is not None
    norm.running_var[subject.draw.randrange(norm.num_features)] = float("nan")
    return case(subject, name)


@tuning("negative-variance", consequences=GAP | {"outlier-statistics"}, repairable=True)
def _a_negative_variance(subject: Subject) -> Case:
    name, norm = subject.one_norm()
    assert norm.running_var is not None
    norm.running_var[subject.draw.randrange(norm.num_features)] *= -1
    return case(subject, name)


@tuning(*GAP, consequences=frozenset({"outlier-statistics"}), repairable=True)
def _standard_deviations_stored_as_variances(subject: Subject) -> Case:
    for _, norm in norms_of(subject.model):
        assert norm.running_var is not None
        norm.running_var.sqrt_()
    return case(subject)


@tuning(*GAP, consequences=frozenset({"outlier-statistics"}), repairable=True)
def _statistics_of_two_layers_swapped(subject: Subject) -> Case | None:
    pairs = alike(subject.model)
    if not pairs:
        return None
    (first, a), (second, b) = subject.draw.choice(pairs)
    for key in ("running_mean", "running_var"):
        one, other = getattr(a, key), getattr(b, key)
        before = one.clone()
        one.copy_(other)
        other.copy_(before)
    return case(subject, first, second)


@tuning("outlier-statistics", consequences=GAP, repairable=True)
def _a_mean_far_away(subject: Subject) -> Case:
    name, norm = subject.one_norm()
    assert norm.running_mean is not None
    norm.running_mean[subject.draw.randrange(norm.num_features)] = 1e4
    return case(subject, name)


@tuning("outlier-statistics", *GAP, consequences=frozenset({"near-zero-variance"}), repairable=True)
def _a_variance_far_too_small(subject: Subject) -> Case:
    name, norm = subject.one_norm()
    assert norm.running_var is not None
    norm.running_var[subject.draw.randrange(norm.num_features)] *= 1e-5
    return case(subject, name)


@tuning("statistics-horizon", *GAP, consequences=frozenset({"statistics-at-init"}), repairable=True)
def _few_updates_after_a_reset(subject: Subject) -> Case:
    for _, norm in norms_of(subject.model):
        norm.reset_running_stats()
    subject.follow_(subject.inputs(64, 4))
    return case(subject)


@tuning("checkpoint-diff", "statistics-at-init", consequences=GAP, repairable=True)
def _parameters_loaded_without_buffers(subject: Subject) -> Case:
    whole = {name: tensor.clone() for name, tensor in subject.model.state_dict().items()}
    for _, norm in norms_of(subject.model):
        norm.reset_running_stats()
    return case(subject, checkpoint=whole)


@tuning("statistics-at-init", consequences=GAP | {"outlier-statistics"}, repairable=True)
def _a_mean_that_a_port_left_at_zero(subject: Subject) -> Case:
    """The variance's key was known, and the mean's was not; not the first layer, whose input may have mean 0."""
    name, norm = subject.draw.choice(norms_of(subject.model)[1:])
    assert norm.running_mean is not None
    norm.running_mean.zero_()
    return case(subject, name)


@tuning("near-zero-variance", *GAP, consequences=frozenset({"outlier-statistics"}), repairable=True)
def _variances_of_nothing_in_a_whole_layer(subject: Subject) -> Case:
    name, norm = subject.one_norm()
    assert norm.running_var is not None
    norm.running_var.zero_()
    return case(subject, name)


@tuning("outlier-statistics", *GAP, repairable=True)
def _two_means_fifty_deviations_off(subject: Subject) -> Case:
    name, norm = subject.one_norm()
    assert norm.running_mean is not None and norm.running_var is not None
    rows = subject.draw.sample(range(norm.num_features), 2)
    norm.running_mean[rows] += 50 * norm.running_var[rows].sqrt()
    return case(subject, name)


@tuning("checkpoint-diff", consequences=GAP)
def _weight_and_bias_of_one_norm_not_loaded(subject: Subject) -> Case:
    whole = {name: tensor.clone() for name, tensor in subject.model.state_dict().items()}
    name, norm = subject.one_norm()
    nn.init.ones_(norm.weight)
    nn.init.zeros_(norm.bias)
    return case(subject, name, checkpoint=whole)


@tuning("mixed-eps", consequences=GAP, repairable=True, costs=True)
def _eps_of_two_layers_as_large_as_their_variance(subject: Subject) -> Case:
    (first, one), (second, other) = subject.draw.sample(norms_of(subject.model), 2)
    assert one.running_var is not None
    one.eps = other.eps = float(one.running_var.mean())
    return case(subject, first, second)


@tuning(*GAP, consequences=frozenset({"outlier-statistics"}), repairable=True, costs=True)
def _variances_of_two_layers_ten_times_too_large(subject: Subject) -> Case:
    chosen = subject.draw.sample(norms_of(subject.model), 2)
    for _, norm in chosen:
        assert norm.running_var is not None
        norm.running_var *= 10
    return case(subject, *(name for name, _ in chosen))


# Data that the statistics followed though they should not, or weights that moved without them.


@tuning(*GAP, repairable=True)
def _other_images_in_training_mode(subject: Subject) -> Case:
    subject.follow_([1.5 * x + 1 for x in subject.inputs(64, 40)])
    return case(subject)


@tuning(*GAP, repairable=True)
def _noise_in_training_mode(subject: Subject) -> Case:
    generator = torch.Generator().manual_seed(subject.draw.randrange(2**31))
    shape = subject.data.train[0][:64].shape
    subject.follow_([torch.randn(shape, generator=generator) for _ in range(40)])
    return case(subject)


@tuning(*GAP, repairable=True, damages=True)
def _pruned(subject: Subject) -> Case:
    for module in subject.model.modules():
        if isinstance(module, nn.Conv1d | nn.Conv2d):
            weight = module.weight.data
            weight[weight.abs() < weight.abs().flatten().quantile(0.6)] = 0
    return case(subject)


@tuning(*GAP, repairable=True, damages=True)
def _rounded_to_three_bits(subject: Subject) -> Case:
    for module in subject.model.modules():
        if isinstance(module, nn.Conv1d | nn.Conv2d):
            weight = module.weight.data
            step = weight.abs().max() / 3.5
            weight.copy_((weight / step).round().clamp(-3, 3) * step)
    return case(subject)
