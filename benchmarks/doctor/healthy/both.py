"""Healthy variants of both halves' networks."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from benchmarks.doctor.healthy.registry import as_it_is, both, in_training
from benchmarks.doctor.subject import Case, Subject, norms_of
from benchmarks.doctor.training import train_
from steadynorm.surgery import convert_, freeze_, recalibrate_


def _optimizer(subject: Subject) -> torch.optim.Optimizer:
    plain = [each for each in subject.model.parameters() if each.dim() < 2]
    decayed = [each for each in subject.model.parameters() if each.dim() >= 2]
    groups = [{"params": decayed, "weight_decay": 5e-4}, {"params": plain, "weight_decay": 0.0}]
    return torch.optim.SGD(groups, subject.rate / 20, momentum=0.9)


@both
def _trained(subject: Subject) -> Case:
    return as_it_is(subject)


@both
def _batches_of_16(subject: Subject) -> Case:
    return as_it_is(subject, 16)


@both
def _batches_of_128(subject: Subject) -> Case:
    return as_it_is(subject, 128)


@both
def _two_batches(subject: Subject) -> Case:
    return Case(model=subject.model, batches=subject.data.batches(64, 2))


@both
def _training_mode(subject: Subject) -> Case:
    return in_training(subject)


@both
def _training_mode_with_batches_of_32(subject: Subject) -> Case:
    return in_training(subject, 32)


@both
def _training_data(subject: Subject) -> Case:
    return Case(model=subject.model, batches=subject.data.batches(of="train"))


@both
def _small_momentum(subject: Subject) -> Case:
    for _, norm in norms_of(subject.model):
        norm.momentum = 0.01
    subject.follow_(subject.inputs(64, 150))
    return as_it_is(subject)


@both
def _large_momentum(subject: Subject) -> Case:
    for _, norm in norms_of(subject.model):
        norm.momentum = 0.3
    subject.follow_(subject.inputs(64, 30))
    return as_it_is(subject)


@both
def _cumulative_average(subject: Subject) -> Case:
    for _, norm in norms_of(subject.model):
        norm.reset_running_stats()
        norm.momentum = None
    subject.follow_(subject.inputs(64, 60))
    return as_it_is(subject)


@both
def _recalibrated(subject: Subject) -> Case:
    recalibrate_(subject.model, subject.inputs(64, 20))
    return as_it_is(subject)


@both
def _frozen_on_purpose(subject: Subject) -> Case:
    freeze_(subject.model)
    subject.model.train()
    return as_it_is(subject)


@both
def _fine_tuned(subject: Subject) -> Case:
    train_(subject.model, subject.data, seed=3, epochs=0.3, rate=subject.rate / 20, optimizer=_optimizer(subject))
    return Case(model=subject.model, batches=subject.data.batches(), options={"optimizer": _optimizer(subject)})


@both
def _fine_tuned_with_frozen_statistics(subject: Subject) -> Case:
    freeze_(subject.model)
    train_(subject.model, subject.data, seed=3, epochs=0.3, rate=subject.rate / 20)
    return as_it_is(subject)


@both
def _fine_tuned_in_batches_of_16(subject: Subject) -> Case:
    train_(subject.model, subject.data, seed=3, epochs=0.2, rate=subject.rate / 40, batch_size=16)
    return in_training(subject, 16)


@both
def _largest_learning_rate(subject: Subject) -> Case:
    train_(subject.model, subject.data, seed=4, epochs=1, rate=4 * subject.rate)
    return as_it_is(subject)


@both
def _pruned_and_recalibrated(subject: Subject) -> Case:
    for module in subject.model.modules():
        if isinstance(module, nn.Conv1d | nn.Conv2d):
            weight = module.weight.data
            weight[weight.abs() < weight.abs().flatten().quantile(0.4)] = 0
    recalibrate_(subject.model, subject.inputs(64, 20))
    return as_it_is(subject)


@both
def _rounded_to_eight_bits(subject: Subject) -> Case:
    for module in subject.model.modules():
        if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Linear):
            weight = module.weight.data
            step = weight.abs().max() / 127
            weight.copy_((weight / step).round() * step)
    return as_it_is(subject)


class _Autocast(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            logits: Tensor = self.inner(x)
        return logits.float()


@both
def _mixed_precision(subject: Subject) -> Case:
    return Case(model=_Autocast(subject.model).eval(), batches=subject.data.batches())


@both
def _accumulation(subject: Subject) -> Case:
    subject.model.train()
    return Case(model=subject.model, batches=subject.data.batches(), options={"accumulation": 2})


@both
def _ours(subject: Subject) -> Case:
    convert_(subject.model, "batch_norm")
    return in_training(subject)


@both
def _batch_renorm(subject: Subject) -> Case:
    convert_(subject.model, "batch_renorm", warmup_steps=0)
    subject.follow_(subject.inputs(64, 20))
    return as_it_is(subject)


@both
def _self_tuned(subject: Subject) -> Case:
    convert_(subject.model, "batch_norm", running="self_tuned")
    subject.follow_(subject.inputs(64, 60))
    return as_it_is(subject)


@both
def _same_data_as_reference(subject: Subject) -> Case:
    return Case(
        model=subject.model, batches=subject.data.batches(), options={"reference": subject.data.batches(of="train")}
    )


@both
def _its_own_checkpoint(subject: Subject) -> Case:
    own = {name: tensor.clone() for name, tensor in subject.model.state_dict().items()}
    return Case(model=subject.model, batches=subject.data.batches(), options={"checkpoint": own})
