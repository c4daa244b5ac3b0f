"""Modes and flags, what stands around a layer, and batches."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from benchmarks.doctor.faults.registry import BATCH, GAP, case, tuning
from benchmarks.doctor.subject import Case, Norm, Subject, alike, norms_of, put
from benchmarks.doctor.training import train_

# Modes and flags.


@tuning("mixed-modes", consequences=BATCH, repairable=True)
def _one_layer_left_in_training(subject: Subject) -> Case:
    name, norm = subject.one_norm()
    norm.train()
    return case(subject, name)


@tuning("batch-dependence", consequences=GAP, repairable=False)
def _no_statistics_in_one_layer(subject: Subject) -> Case:
    name, norm = subject.one_norm()
    norm.running_mean = norm.running_var = norm.num_batches_tracked = None
    norm.track_running_stats = False
    return case(subject, name)


@tuning("track-flag-inconsistent", consequences=BATCH, repairable=False)
def _tracking_off_with_statistics_left(subject: Subject) -> Case:
    name, norm = subject.one_norm()
    norm.track_running_stats = False
    subject.model.train()
    return case(subject, name)


@tuning("frozen-affine-live-statistics")
def _frozen_weights_and_live_statistics(subject: Subject) -> Case:
    for parameter in subject.model.parameters():
        parameter.requires_grad_(False)
    last = [module for module in subject.model.modules() if isinstance(module, nn.Linear)][-1]
    last.requires_grad_(True)
    subject.model.train()
    return case(subject, *(name for name, _ in norms_of(subject.model)))


@tuning("momentum-convention", consequences=GAP | {"statistics-noise"}, repairable=True)
def _momentum_of_another_framework(subject: Subject) -> Case:
    for _, norm in norms_of(subject.model):
        norm.momentum = 0.99
    subject.follow_(subject.inputs(16, 30))
    return case(subject)


@tuning("momentum-convention", consequences=GAP | {"statistics-at-init"}, repairable=True)
def _momentum_zero(subject: Subject) -> Case:
    for _, norm in norms_of(subject.model):
        norm.reset_running_stats()
        norm.momentum = 0.0
    subject.follow_(subject.inputs(64, 10))
    return case(subject)


@tuning("mixed-eps", consequences=GAP)
def _eps_of_another_framework(subject: Subject) -> Case:
    name, norm = subject.one_norm()
    assert norm.running_var is not None
    norm.eps = float(norm.running_var.mean())
    return case(subject, name)


@tuning("low-precision-statistics", consequences=GAP)
def _training_in_bfloat16(subject: Subject) -> Case:
    subject.model.bfloat16().train()
    batches = [(x.bfloat16(), labels) for x, labels in subject.data.batches()]
    return Case(model=subject.model, batches=batches, layers=frozenset(name for name, _ in norms_of(subject.model)))


# What stands around a layer.


class _Checkpointed(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        if not torch.is_grad_enabled():
            result: Tensor = self.inner(x)
            return result
        return checkpoint(self.inner, x, use_reentrant=False)  # type: ignore[no-any-return]


@tuning("double-update")
def _activation_checkpointing(subject: Subject) -> Case:
    name, norm = subject.one_norm()
    put(subject.model, name, _Checkpointed(norm))
    subject.model.train()
    return case(subject, f"{name}.inner")


@tuning("sync-with-checkpoint", consequences=frozenset({"double-update"}))
def _synchronised_under_checkpointing(subject: Subject) -> Case:
    name, norm = subject.one_norm()
    put(subject.model, name, _Checkpointed(nn.SyncBatchNorm.convert_sync_batchnorm(norm)))
    subject.model.train()
    return Case(model=subject.model, batches=None, layers=frozenset({f"{name}.inner"}))


class _AlwaysByTheBatch(nn.BatchNorm2d):
    def _check_input_dim(self, input: Tensor) -> None:
        return None

    def forward(self, input: Tensor) -> Tensor:
        return F.batch_norm(
            input, self.running_mean, self.running_var, self.weight, self.bias, True, self.momentum or 0.0, self.eps
        )


@tuning("statistics-moved-in-eval", consequences=BATCH | {"lossy-subclass"})
def _a_subclass_that_always_trains(subject: Subject) -> Case:
    name, norm = subject.one_norm()
    live = _AlwaysByTheBatch(norm.num_features)
    live.load_state_dict(norm.state_dict())
    put(subject.model, name, live.eval())
    return case(subject, name)


class _Holder(nn.Module):
    def __init__(self, norm: Norm) -> None:
        super().__init__()
        self.held = [norm]

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.held[0](x)
        return result


@tuning("hidden-module", consequences=BATCH)
def _a_norm_in_a_plain_list(subject: Subject) -> Case:
    name, norm = subject.one_norm()
    norm.train()
    put(subject.model, name, _Holder(norm))
    return case(subject)


@tuning("reused-norm", *GAP, consequences=frozenset({"outlier-statistics"}))
def _one_norm_in_two_places(subject: Subject) -> Case | None:
    pairs = alike(subject.model)
    if not pairs:
        return None
    (first, norm), (second, _) = subject.draw.choice(pairs)
    put(subject.model, second, norm)
    return case(subject, first)


@tuning("dropout-before-norm", consequences=GAP)
def _dropout_before_a_norm(subject: Subject) -> Case:
    name, norm = subject.one_norm()
    put(subject.model, name, nn.Sequential(nn.Dropout(0.5), norm))
    train_(subject.model, subject.data, seed=1, epochs=0.3, rate=subject.rate / 5)
    return case(subject, f"{name}.1")


@tuning("degenerate-group-norm")
def _a_group_for_each_channel(subject: Subject) -> Case | None:
    flat = [(name, norm) for name, norm in norms_of(subject.model) if isinstance(norm, nn.BatchNorm1d)]
    if not flat or subject.data.train[0].dim() == 3:
        return None
    name, norm = subject.draw.choice(flat)
    put(subject.model, name, nn.GroupNorm(norm.num_features, norm.num_features))
    return case(subject, name)


@tuning("dead-channel")
def _most_channels_dead(subject: Subject) -> Case:
    name, norm = subject.one_norm()
    dead = subject.draw.sample(range(norm.num_features), int(0.75 * norm.num_features))
    norm.weight.data[dead] = 0
    norm.bias.data[dead] = 0
    return case(subject, name)


class _Pair(nn.Module):
    def __init__(self, student: nn.Module, teacher: nn.Module) -> None:
        super().__init__()
        self.student, self.teacher = student, teacher

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.student(x)
        return logits


@tuning("copied-statistics-mismatch", consequences=frozenset({"statistics-at-init"}))
def _a_teacher_that_averages_parameters_only(subject: Subject) -> Case:
    teacher = copy.deepcopy(subject.model)
    for _, norm in norms_of(teacher):
        norm.reset_running_stats()
    train_(subject.model, subject.data, seed=2, epochs=0.1, rate=subject.rate / 20)
    with torch.no_grad():
        for average, now in zip(teacher.parameters(), subject.model.parameters(), strict=True):
            average.lerp_(now, 0.5)
    return Case(model=_Pair(subject.model, teacher).eval(), batches=subject.data.batches())


# Batches.


@tuning("statistics-noise", "values-per-channel", consequences=frozenset({"batch-dependence"}))
def _batches_of_one(subject: Subject) -> Case:
    subject.model.train()
    return Case(model=subject.model, batches=subject.data.batches(2))


@tuning("values-per-channel", consequences=frozenset({"statistics-noise"}))
def _a_last_batch_of_one(subject: Subject) -> Case | None:
    flat = [(name, norm) for name, norm in norms_of(subject.model) if isinstance(norm, nn.BatchNorm1d)]
    if not flat or subject.data.train[0].dim() == 3:
        return None
    inputs, labels = subject.data.validation
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(inputs[:193], labels[:193]), batch_size=64)
    subject.model.train()
    return Case(model=subject.model, batches=loader, layers=frozenset(name for name, _ in flat))  # type: ignore[arg-type]


@tuning("single-class-batch", "order-leak", consequences=frozenset({"batch-mixture", "statistics-noise"}))
def _batches_of_one_class(subject: Subject) -> Case:
    inputs, labels = subject.data.validation
    order = labels.argsort(stable=True)
    groups = [order[labels[order] == label][:64] for label in range(8)]
    subject.model.train()
    return Case(model=subject.model, batches=[(inputs[rows], labels[rows]) for rows in groups])


@tuning("single-class-batch", "order-leak", consequences=frozenset({"batch-mixture", "statistics-noise"}))
def _batches_in_the_order_of_classes(subject: Subject) -> Case:
    inputs, labels = subject.data.validation
    rows = labels[:512].argsort(stable=True)
    subject.model.train()
    return Case(model=subject.model, batches=list(zip(inputs[rows].split(64), labels[rows].split(64), strict=True)))


@tuning("domain-shift", consequences=GAP)
def _other_images_at_deployment(subject: Subject) -> Case:
    clean = subject.data.batches()
    batches = [(0.4 * x - 1.2, labels) for x, labels in clean]
    return Case(model=subject.model, batches=batches, options={"reference": clean})


@tuning("effective-batch", consequences=frozenset({"statistics-noise", "values-per-channel"}))
def _small_batches_accumulated(subject: Subject) -> Case:
    subject.model.train()
    return Case(model=subject.model, batches=subject.data.batches(2), options={"accumulation": 32})
