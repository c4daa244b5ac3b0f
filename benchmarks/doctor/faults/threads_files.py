"""What public threads tell of files, ports, averages, frozen parts and deployment; each fault with its thread."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from benchmarks.doctor.faults.registry import FAR, GAP, case, fed, held_out
from benchmarks.doctor.subject import Case, Norm, Subject, fed_by, norms_of, put
from benchmarks.doctor.training import fit_


def _arrays(norm: Norm) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Give γ, β, means and variances."""
    assert norm.running_mean is not None and norm.running_var is not None
    return norm.weight.detach(), norm.bias.detach(), norm.running_mean, norm.running_var


def _fed(subject: Subject) -> list[tuple[nn.Module, str, Norm]]:
    """List layers with the norm that gets what they give."""
    pairs = dict.fromkeys(fed_by(subject.model, subject.inputs(2, 1)[0]))
    norms = dict(norms_of(subject.model))
    return [
        (subject.model.get_submodule(layer), name, norms[name])
        for layer, name in pairs
        if layer not in norms and norms[name].affine
    ]


def _has_negative_variance(model: nn.Module) -> bool:
    return any(bool((norm.running_var < 0).any()) for _, norm in norms_of(model) if norm.running_var is not None)


# Ports.


@held_out("near-zero-variance", *GAP, consequences=FAR | {"statistics-at-init"}, repairable=True)
def _a_factor_of_zero_beside_the_estimates(subject: Subject) -> Case:
    """A fork writes 0 for the factor, and Caffe then reads means and variances of 0 (gh:NVIDIA/caffe/issues/436)."""
    for _, norm in norms_of(subject.model):
        *_, mean, var = _arrays(norm)
        mean.zero_()
        var.zero_()
    return case(subject)


@held_out("negative-variance", consequences=FAR | {"dead-channel", "near-zero-variance"}, damages=True)
def _slopes_and_biases_read_as_means_and_variances(subject: Subject) -> Case | None:
    """Slope, bias, mean, variance are taken for mean, variance, slope, bias (gh:hufu6371/DORN/issues/25).

    The same order, twice reversed: gh:Vladkryvoruchko/PSPNet-Keras-tensorflow/issues/31.
    """
    for _, norm in norms_of(subject.model):
        arrays = _arrays(norm)
        read = [each.clone() for each in arrays]
        for array, value in zip(arrays, (read[2], read[3], read[0], read[1]), strict=True):
            array.copy_(value)
    return case(subject) if _has_negative_variance(subject.model) else None


@held_out("negative-variance", consequences=FAR | {"near-zero-variance"}, damages=True)
def _a_file_read_from_one_number_too_early(subject: Subject) -> Case | None:
    """Some variances are negative, the first of a layer only (gh:marvis/pytorch-caffe-darknet-convert/issues/48).

    Darknet's order is biases, scales, means, variances, filters, behind a header of four numbers or of five.
    """
    arrays: list[Tensor] = []
    for layer, _, norm in _fed(subject):
        assert isinstance(layer.weight, Tensor)
        scales, biases, means, variances = _arrays(norm)
        arrays += [biases, scales, means, variances, layer.weight.detach()]
    if not arrays:
        return None
    stream = torch.cat([torch.zeros(1), *(each.flatten() for each in arrays)])[:-1]
    for array, values in zip(arrays, stream.split([each.numel() for each in arrays]), strict=True):
        array.copy_(values.view_as(array))
    return case(subject) if _has_negative_variance(subject.model) else None


def _dead_filters(subject: Subject, variance: float) -> str | None:
    """Let two channels of one layer be 0 for all inputs, as in a file of long training, and name its norm."""
    found = _fed(subject)
    if not found:
        return None
    layer, name, norm = subject.draw.choice(found)
    channels = subject.draw.sample(range(norm.num_features), 2)
    *_, mean, var = _arrays(norm)
    assert isinstance(layer.weight, Tensor)
    layer.weight.detach()[channels] = 0
    if isinstance(layer.bias, Tensor):
        layer.bias.detach()[channels] = 0
    mean[channels], var[channels] = 0.0, variance
    return name


class Frozen(nn.Module):
    """A norm of four buffers, as detection has it, which divides by the root of the variance alone."""

    def __init__(self, norm: Norm) -> None:
        super().__init__()
        self.num_features = norm.num_features
        for name, array in zip(("weight", "bias", "running_mean", "running_var"), _arrays(norm), strict=True):
            self.register_buffer(name, array.clone())

    def forward(self, x: Tensor) -> Tensor:
        """Normalize by the buffers."""
        weight, bias, mean, var = self.buffers()
        scale = weight * var.rsqrt()
        shape = (1, -1) + (1,) * (x.dim() - 2)
        return x * scale.view(shape) + (bias - mean * scale).view(shape)


@held_out("near-zero-variance", "backend-parity", consequences=FAR | {"dead-channel"})
def _frozen_norms_without_eps_and_a_dead_filter(subject: Subject) -> Case | None:
    """They work for ResNet, and explode for ResNeXt's and wide networks' files (gh:pytorch/vision/pull/1947)."""
    plain = [each for each in norms_of(subject.model) if type(each[1]) in (nn.BatchNorm1d, nn.BatchNorm2d)]
    dead = _dead_filters(subject, 0.0) if plain else None
    if dead is None:
        return None
    for name, norm in plain:
        put(subject.model, name, Frozen(norm).eval())
    return case(subject, dead)


@held_out("negative-variance", consequences=FAR | {"near-zero-variance", "dead-channel"})
def _eps_subtracted_from_all_variances_of_a_file(subject: Subject) -> Case | None:
    """A loader takes torch's version for its own old one, without eps (gh:facebookresearch/detectron2/pull/3160)."""
    dead = _dead_filters(subject, 1e-9)
    if dead is None:
        return None
    for _, norm in norms_of(subject.model):
        *_, var = _arrays(norm)
        var -= norm.eps
    return case(subject, dead)


# Files.


@held_out("statistics-at-init", *GAP, consequences=FAR, repairable=True, damages=True)
def _fused_filters_in_a_network_that_has_its_norms(subject: Subject) -> Case | None:
    """Its convolutions are built without bias, so that biases are dropped (gh:open-mmlab/mmdetection/issues/2924)."""
    found = _fed(subject)
    for layer, _, norm in found:
        assert isinstance(layer.weight, Tensor)
        scales, biases, means, variances = _arrays(norm)
        factor = scales / (variances + norm.eps).sqrt()
        layer.weight.detach().mul_(factor.view(-1, *(1,) * (layer.weight.dim() - 1)))
        if isinstance(layer.bias, Tensor):
            layer.bias.detach().copy_(biases + (layer.bias.detach() - means) * factor)
        norm.reset_parameters()
    return case(subject) if found else None


@held_out("nonfinite-statistics", consequences=FAR, repairable=True)
def _most_variances_of_a_layer_corrupt_in_its_file(subject: Subject) -> Case:
    """Infinite or not a number, in one layer of weights to download (gh:sharif-apu/BJDD_CVPR21/issues/4)."""
    name, norm = subject.one_norm()
    *_, var = _arrays(norm)
    quarter = len(var) // 4
    var[quarter : 2 * quarter] = float("inf")
    var[2 * quarter :] = float("nan")
    return case(subject, name)


# Averages and clients.


@held_out("statistics-at-init", *GAP, consequences=FAR | {"statistics-horizon"}, repairable=True, damages=True)
def _averaged_weights_measured_with_a_momentum_of_zero(subject: Subject) -> Case:
    """Where torch's own sets None, so that nothing is measured (gh:Lightning-AI/pytorch-lightning/issues/14866)."""
    average = torch.optim.swa_utils.AveragedModel(subject.model)
    for _ in range(4):
        fit_(subject.model, subject.labelled(64, 25), rate=subject.rate / 2)
        average.update_parameters(subject.model)
    for kept, mean in zip(subject.model.parameters(), average.module.parameters(), strict=True):
        kept.detach().copy_(mean.detach())
    for _, norm in norms_of(subject.model):
        norm.reset_running_stats()
        norm.momentum = 0.0
    subject.follow_(subject.inputs(64, 20))
    for _, norm in norms_of(subject.model):
        norm.momentum = 0.1
    return case(subject)


@held_out(*GAP, consequences=FAR | {"copied-statistics-mismatch"}, repairable=True, damages=True, costs=True)
def _the_first_centres_estimates_in_an_evaluation_of_all(subject: Subject) -> Case:
    """Three centres average parameters, and the first one's model is evaluated (gh:owkin/FLamby/issues/260)."""
    centres = [copy.deepcopy(subject.model) for _ in range(3)]
    for _ in range(3):
        for centre, gain, offset in zip(centres, (1.4, 1.0, 0.7), (0.5, 0.0, -0.5), strict=True):
            seen = [(gain * x + offset, labels) for x, labels in subject.labelled(64, 15)]
            fit_(centre, seen, rate=subject.rate / 5)
        for each in zip(*(centre.parameters() for centre in centres), strict=True):
            mean = torch.stack([one.detach() for one in each]).mean(0)
            for one in each:
                one.detach().copy_(mean)
    subject.model.load_state_dict(centres[0].state_dict())
    return case(subject)


# Frozen parts and deployment.


@held_out(*GAP, "outlier-statistics", repairable=True, damages=True, costs=True)
def _new_first_filters_in_a_stage_that_is_frozen(subject: Subject) -> Case:
    """Five input channels do not fit the file, whose first layers stay frozen (gh:open-mmlab/mmdetection/issues/7334).

    Here the channels stay three; the filters are new, and neither they nor the norms of the first quarter follow.
    """
    model = subject.model
    kinds = (nn.Conv1d, nn.Conv2d, nn.Linear)
    first = next(each for each in model.modules() if isinstance(each, kinds))
    nn.init.kaiming_normal_(first.weight)
    norms = norms_of(model)
    frozen = norms[: max(1, len(norms) // 4)]
    for part in (first, *(norm for _, norm in frozen)):
        part.requires_grad_(False)
    for _, norm in frozen:
        vars(norm)["train"] = lambda mode=True, norm=norm: norm
    optimizer = torch.optim.SGD([each for each in model.parameters() if each.requires_grad], subject.rate / 5, 0.9)
    fit_(model, subject.labelled(64, 120), rate=subject.rate / 5, optimizer=optimizer)
    for _, norm in frozen:
        del vars(norm)["train"]
    return case(subject, norms[0][0])


@held_out("domain-shift", consequences=FAR, costs=True)
def _standardized_for_a_network_of_inputs_in_one(subject: Subject) -> Case:
    """It wants x / 127.5 - 1, and is fed (x - mean) / std: 2.2 times the contrast, and a fifth of a deviation brighter.

    gh:facebookresearch/ImageNet-Adversarial-Training/issues/11
    """
    return fed(subject, lambda x: 2.21 * (x + 0.2))
