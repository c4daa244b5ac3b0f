"""Healthy variants that people asked about in threads, and that were right; each with its thread."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from benchmarks.doctor.healthy.registry import as_it_is, both, in_training, norms_evaluate_
from benchmarks.doctor.subject import Case, Norm, Subject, last_linear, norms_of, put
from benchmarks.doctor.training import fit_, step_


def _in_front_of_the_classifier(subject: Subject, module: type[nn.Module] | nn.Module) -> nn.Module:
    name, last = last_linear(subject.model)
    new = module if isinstance(module, nn.Module) else module(last.in_features)
    put(subject.model, name, nn.Sequential(new, last))
    return new


def _fine_tune(subject: Subject) -> None:
    fit_(subject.model, subject.labelled(64, 100), rate=subject.rate / 10)
    fit_(subject.model, subject.labelled(64, 40), rate=subject.rate / 100)


# Parts.


@both
def _a_neck_without_shift(subject: Subject) -> Case:
    """Its β has no gradient and stays 0, as is meant (gh:michuanhaohao/reid-strong-baseline/issues/125)."""
    neck = _in_front_of_the_classifier(subject, nn.BatchNorm1d)
    assert isinstance(neck.bias, Tensor)
    neck.bias.requires_grad_(False)
    _fine_tune(subject)
    return in_training(subject)


@both
def _a_norm_behind_the_classifier(subject: Subject) -> Case:
    """Odd, its author agrees, and it trains well (gh:yaoing/DAN/issues/14)."""
    name, last = last_linear(subject.model)
    put(subject.model, name, nn.Sequential(last, nn.BatchNorm1d(last.out_features)))
    _fine_tune(subject)
    return as_it_is(subject)


class _Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.mix, self.norm = nn.Linear(width, width, bias=False), nn.BatchNorm1d(width)
        nn.init.zeros_(self.norm.weight)

    def forward(self, x: Tensor) -> Tensor:
        added: Tensor = x + self.norm(self.mix(x))
        return added


@both
def _a_new_block_whose_gamma_began_at_zero(subject: Subject) -> Case:
    """They will be trained (gh:tensorpack/tensorpack/issues/420); here for 60 steps."""
    _in_front_of_the_classifier(subject, _Residual)
    fit_(subject.model, subject.labelled(64, 60), rate=subject.rate / 20)
    return in_training(subject)


class _Siamese(nn.Module):
    """One network for two views that are alike, called once for each."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        both: Tensor = self.inner(x) + self.inner(x.flip(3) if x.dim() == 4 else x.roll(3, 2))
        return both / 2


@both
def _norms_shared_by_two_inputs_of_one_source(subject: Subject) -> Case:
    """Mean and variance are right after enough training (gh:keras-team/keras/pull/2944)."""
    model = _Siamese(subject.model)
    fit_(model, subject.labelled(64, 100), rate=subject.rate / 20)
    return Case(model=model.train(), batches=subject.data.batches())


# Training.


def _steps(subject: Subject, number: int) -> None:
    """Train in the modes that are set."""
    parameters = [each for each in subject.model.parameters() if each.requires_grad]
    optimizer = torch.optim.SGD(parameters, subject.rate / 20, momentum=0.9)
    for x, labels in subject.labelled(64, number):
        step_(subject.model, optimizer, x, labels)


@both
def _norms_that_evaluate_while_their_gamma_trains(subject: Subject) -> Case:
    """``norm_eval=True`` with ``requires_grad=True``, detection's default (gh:open-mmlab/mmdetection/issues/10939)."""
    norms_evaluate_(subject)
    _steps(subject, 80)
    return as_it_is(subject)


@both
def _a_norm_without_weights_in_front_of_a_linear_probe(subject: Subject) -> Case:
    """As a benchmark of representations asks for; the backbone evaluates (gh:open-mmlab/mmselfsup/issues/11)."""
    subject.model.requires_grad_(False)
    _, last = last_linear(subject.model)
    last.requires_grad_(True)
    norm = _in_front_of_the_classifier(subject, nn.BatchNorm1d(last.in_features, affine=False))
    norms_evaluate_(subject)
    norm.train()
    _steps(subject, 120)
    return as_it_is(subject)


@both
def _weight_decay_on_everything(subject: Subject) -> Case:
    """Does it penalize γ and β? Yes, it does (gh:torch/torch7/issues/846); 0.0005, as for wide residual networks."""
    optimizer = torch.optim.SGD(subject.model.parameters(), subject.rate / 20, momentum=0.9, weight_decay=5e-4)
    fit_(subject.model, subject.labelled(64, 90), rate=subject.rate / 20, optimizer=optimizer)
    return Case(model=subject.model, batches=subject.data.batches(), options={"optimizer": optimizer})


# Files and numbers.


class _Frozen(nn.Module):
    """A norm of four buffers, made from a file in which mean and variance are part of weight and bias."""

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, norm: Norm) -> None:
        super().__init__()
        assert norm.running_mean is not None and norm.running_var is not None
        weight = norm.weight.detach() / (norm.running_var + norm.eps).sqrt()
        self.register_buffer("weight", weight)
        self.register_buffer("bias", norm.bias.detach() - norm.running_mean * weight)
        self.register_buffer("running_mean", torch.zeros(norm.num_features))
        self.register_buffer("running_var", torch.ones(norm.num_features))

    def forward(self, x: Tensor) -> Tensor:
        scale = self.weight * self.running_var.rsqrt()
        shape = (1, -1) + (1,) * (x.dim() - 2)
        return x * scale.view(shape) + (self.bias - self.running_mean * scale).view(shape)


@both
def _frozen_norms_with_means_of_zero_and_variances_of_one(subject: Subject) -> Case:
    """Detectron's files have them, which looks redundant (gh:facebookresearch/maskrcnn-benchmark/issues/267)."""
    for name, norm in norms_of(subject.model):
        if type(norm) in (nn.BatchNorm1d, nn.BatchNorm2d):
            put(subject.model, name, _Frozen(norm).eval())
    return as_it_is(subject)


@both
def _a_file_from_before_there_were_counters(subject: Subject) -> Case:
    """``num_batches_tracked`` is not found and remains 0, which changes nothing (gh:longcw/MOTDT/issues/26)."""
    file = {name: value.clone() for name, value in subject.model.state_dict().items() if "num_batches" not in name}
    for _, norm in norms_of(subject.model):
        assert norm.num_batches_tracked is not None
        norm.num_batches_tracked.zero_()
    return Case(model=subject.model, batches=subject.data.batches(), options={"checkpoint": file})


@both
def _a_network_in_half_precision_with_norms_in_single(subject: Subject) -> Case | None:
    """What a norm needs (gh:onnx/onnx-tensorrt/issues/235)."""
    subject.model.half()
    for _, norm in norms_of(subject.model):
        norm.float()
    batches = [(x.half(), labels) for x, labels in subject.data.batches()]
    try:
        with torch.no_grad():
            subject.model(batches[0][0])
    except RuntimeError:  # an operation that the processor does not have in half precision
        return None
    return Case(model=subject.model, batches=batches)
