"""Further healthy variants of both halves' networks."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, update_bn

from benchmarks.doctor.healthy.registry import as_it_is, both, in_training
from benchmarks.doctor.subject import Case, Subject, norms_of
from benchmarks.doctor.training import fit_
from steadynorm.surgery import NothingDoneError, fold_

Batches = list[tuple[Tensor, Tensor]]


@both
def _moving_average_of_weights_and_buffers(subject: Subject) -> Case:
    """As timm's ``ModelEmaV3`` keeps it: buffers are averaged with the parameters."""
    average = AveragedModel(subject.model, multi_avg_fn=get_ema_multi_avg_fn(0.98), use_buffers=True)
    fit_(
        subject.model,
        subject.labelled(64, 100),
        rate=subject.rate / 20,
        after=lambda: average.update_parameters(subject.model),
    )
    return Case(model=average.module.eval(), batches=subject.data.batches())


@both
def _weights_averaged_and_statistics_updated(subject: Subject) -> Case:
    average = AveragedModel(subject.model)
    for _ in range(4):
        fit_(subject.model, subject.labelled(64, 25), rate=subject.rate / 4)
        average.update_parameters(subject.model)
    update_bn(subject.inputs(64, 100), average)
    return Case(model=average.module.eval(), batches=subject.data.batches())


@both
def _fine_tuned_on_smoothed_labels(subject: Subject) -> Case:
    fit_(subject.model, subject.labelled(64, 90), rate=subject.rate / 20, smoothing=0.1)
    return as_it_is(subject)


@both
def _fine_tuned_with_holes_cut_out(subject: Subject) -> Case:
    """A quarter of each side, or of the time, is 0 in training; evaluation sees whole inputs."""

    def cut(x: Tensor) -> Tensor:
        x, side = x.clone(), x.shape[-1] // 4
        for each in x:
            first = subject.draw.randrange(3 * side)
            second = subject.draw.randrange(3 * side)
            if each.dim() == 3:
                each[:, first : first + side, second : second + side] = 0
            else:
                each[:, first : first + side] = 0
        return x

    fit_(subject.model, [(cut(x), labels) for x, labels in subject.labelled(64, 90)], rate=subject.rate / 20)
    return as_it_is(subject)


@both
def _fine_tuned_by_adamw_without_decay_on_norms(subject: Subject) -> Case:
    plain = [each for each in subject.model.parameters() if each.dim() < 2]
    decayed = [each for each in subject.model.parameters() if each.dim() >= 2]
    groups = [{"params": decayed, "weight_decay": 0.05}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, 2e-4)
    fit_(subject.model, subject.labelled(64, 90), rate=2e-4, optimizer=optimizer)
    return Case(model=subject.model, batches=subject.data.batches(), options={"optimizer": optimizer})


@both
def _fine_tuned_in_batches_of_256(subject: Subject) -> Case:
    fit_(subject.model, subject.labelled(256, 30), rate=subject.rate / 10)
    subject.model.train()
    return Case(model=subject.model, batches=subject.data.batches(256, 4))


@both
def _fine_tuned_and_used_without_colour(subject: Subject) -> Case:
    """Of signals: on the first sensor alone."""

    def grey(x: Tensor) -> Tensor:
        return (x.mean(1, keepdim=True) if x.dim() == 4 else x[:, :1]).expand_as(x)

    fit_(subject.model, [(grey(x), labels) for x, labels in subject.labelled(64, 150)], rate=subject.rate / 10)
    batches = [(grey(x), labels) for x, labels in subject.data.batches()]
    return Case(model=subject.model, batches=batches, feed=grey)


@both
def _lower_half_frozen_while_the_rest_trains(subject: Subject) -> Case:
    """Transfer learning: the first half of the norms evaluates and has no gradient, with all that stands before."""
    norms = [norm for _, norm in norms_of(subject.model)]
    frozen, last = set(norms[: len(norms) // 2]), norms[len(norms) // 2 - 1]
    subject.model.train()
    for module in subject.model.modules():
        if not list(module.children()):
            for parameter in module.parameters(recurse=False):
                parameter.requires_grad_(False)
            if module in frozen:
                module.eval()
        if module is last:
            break
    return as_it_is(subject)


@both
def _channels_last_in_memory(subject: Subject) -> Case | None:
    if subject.data.train[0].dim() != 4:
        return None
    subject.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    batches = [(x.contiguous(memory_format=torch.channels_last), labels) for x, labels in subject.data.batches()]
    return Case(model=subject.model, batches=batches)


@both
def _double_precision(subject: Subject) -> Case:
    return Case(model=subject.model.double(), batches=[(x.double(), y) for x, y in subject.data.batches()])


@both
def _norms_folded_into_convolutions(subject: Subject) -> Case | None:
    try:
        fold_(subject.model, subject.inputs(8, 1)[0])
    except NothingDoneError:  # an activation stands between, as in ConvMixer
        return None
    return as_it_is(subject)


@both
def _weight_norm_on_the_classifier(subject: Subject) -> Case:
    last = [module for module in subject.model.modules() if isinstance(module, nn.Linear)][-1]
    parametrizations.weight_norm(last)
    return in_training(subject)


@both
def _half_of_the_samples_of_one_class(subject: Subject) -> Case:
    """Evaluation data are as unbalanced as life is, and well shuffled."""
    x, labels = subject.data.validation
    common, others = (labels == 3).nonzero().flatten()[:80], (labels != 3).nonzero().flatten()[:200]
    rows = torch.cat((common, others))
    rows = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(1))]
    return Case(model=subject.model, batches=list(zip(x[rows].split(64), labels[rows].split(64), strict=True))[:4])


@both
def _batches_of_unequal_sizes(subject: Subject) -> Case:
    x, labels = subject.data.validation
    sizes = [64, 48, 64, 33, 57, 64, 40, 62]
    return Case(
        model=subject.model,
        batches=list(zip(x[: sum(sizes)].split(sizes), labels[: sum(sizes)].split(sizes), strict=True)),
    )


@both
def _wrapped_for_several_devices(subject: Subject) -> Case:
    return Case(model=nn.DataParallel(subject.model).train(), batches=subject.data.batches())


@both
def _a_teacher_and_its_student(subject: Subject) -> Case:
    """Distillation: the teacher is frozen and evaluates, the student, once its copy, trains."""
    teacher = copy.deepcopy(subject.model).requires_grad_(False)
    fit_(subject.model, subject.labelled(64, 60), rate=subject.rate / 20)
    return Case(model=_Distilled(subject.model.train(), teacher.eval()), batches=subject.data.batches())


class _Distilled(nn.Module):
    def __init__(self, student: nn.Module, teacher: nn.Module) -> None:
        super().__init__()
        self.student, self.teacher = student, teacher

    def train(self, mode: bool = True) -> _Distilled:
        super().train(mode)
        self.teacher.eval()
        return self

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.student(x)
        return logits
