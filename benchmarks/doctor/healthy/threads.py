"""Healthy variants that people worried about in threads, or that look odd, and that are right; each with its thread."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from benchmarks.doctor.faults.threads_files import Frozen
from benchmarks.doctor.healthy.registry import as_it_is, held_out, in_training
from benchmarks.doctor.subject import Case, Subject, fed_by, norms_of, put, shapes_of
from benchmarks.doctor.training import fit_

# Parts.


@held_out
def _biases_under_norms(subject: Subject) -> Case | None:
    """A serious issue? The norm takes them off again (gh:yjh0410/yolov2-yolov3_PyTorch/issues/35)."""
    norms = dict(norms_of(subject.model))
    given: dict[str, Tensor] = {}
    for name, fed in dict.fromkeys(fed_by(subject.model, subject.inputs(2, 1)[0])):
        layer = subject.model.get_submodule(name)
        assert isinstance(layer.weight, Tensor)
        if name not in norms and (layer.bias is None or name in given):
            bias = given.setdefault(name, nn.init.normal_(torch.empty(len(layer.weight)), std=0.1))
            layer.bias = nn.Parameter(bias.clone())
            mean = norms[fed].running_mean
            assert mean is not None
            mean += bias
    if not given:
        return None
    fit_(subject.model, subject.labelled(64, 60), rate=subject.rate / 50)
    return in_training(subject)


class _Bins(nn.Module):
    """A front end whose frequency bins have scales of their own, and a norm of each bin, on the last axis."""

    scale: Tensor
    offset: Tensor

    def __init__(self, bins: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("scale", torch.linspace(math.log(10), math.log(0.1), bins).exp())
        self.register_buffer("offset", torch.linspace(5, -5, bins))
        self.bn0 = nn.BatchNorm1d(bins) if dim == 3 else nn.BatchNorm2d(bins)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.bn0((self.scale * x + self.offset).transpose(1, -1))
        return y.transpose(1, -1)


@held_out
def _a_norm_of_each_frequency_bin(subject: Subject) -> Case:
    """Why ``transpose(1, 3)`` before the norm? It is meant so (gh:qiuqiangkong/audioset_tagging_cnn/issues/39)."""
    x = subject.inputs(2, 1)[0]
    model = nn.Sequential(_Bins(x.shape[-1], x.dim()), subject.model)
    fit_(model, subject.labelled(64, 100), rate=subject.rate / 20)
    fit_(model, subject.labelled(64, 40), rate=subject.rate / 200)
    return Case(model=model, batches=subject.data.batches())


# Files and numbers.


@held_out
def _frozen_norms_that_have_no_eps(subject: Subject) -> Case | None:
    """They differ from torch's by some 1e-6 where no variance is small (gh:pytorch/vision/issues/2169)."""
    norms = norms_of(subject.model)
    if any(norm.running_var is not None and bool((norm.running_var < 1e-3).any()) for _, norm in norms):
        return None
    for name, norm in norms:
        if type(norm) in (nn.BatchNorm1d, nn.BatchNorm2d):
            put(subject.model, name, Frozen(norm).eval())
    return as_it_is(subject)


@held_out
def _an_average_of_the_last_files_with_their_buffers(subject: Subject) -> Case:
    """Should estimates be measured again? That made it worse (gh:huggingface/pytorch-image-models/issues/224)."""
    files: list[dict[str, Tensor]] = []
    for _ in range(5):
        fit_(subject.model, subject.labelled(64, 20), rate=subject.rate / 50)
        files.append({name: value.clone() for name, value in subject.model.state_dict().items()})
    for name, value in subject.model.state_dict().items():
        if value.is_floating_point():
            value.copy_(torch.stack([file[name] for file in files]).mean(0))
    return as_it_is(subject)


@held_out
def _variances_that_are_divided_by_the_count(subject: Subject) -> Case:
    """As batches are normalized, and not by one less, as torch stores them (gh:pytorch/pytorch/issues/19902)."""
    shapes = shapes_of(subject.model, subject.inputs(64, 1)[0])
    for name, norm in norms_of(subject.model):
        if norm.running_var is not None and name in shapes:
            count = shapes[name].numel() / norm.num_features
            norm.running_var *= (count - 1) / count
    return as_it_is(subject)


@held_out
def _eps_and_momentum_set_behind_the_loading(subject: Subject) -> Case:
    """0.0001 and 0.01 in a pretrained backbone; does it harm? (gh:openpifpaf/openpifpaf/issues/99)."""
    for _, norm in norms_of(subject.model):
        norm.eps, norm.momentum = 1e-4, 0.01
    fit_(subject.model, subject.labelled(64, 100), rate=subject.rate / 50)
    return in_training(subject)
