"""Faults as people make them, each put into a healthy network by a few lines.

Half of the kinds are for choosing thresholds, half only for the final table. ``causes`` are the checks of which one
must speak; ``consequences`` are others that are right to speak, because the fault causes what they look at.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from benchmarks.doctor.architectures import Half
from benchmarks.doctor.subject import Case, Norm, Subject, norms_of, put
from benchmarks.doctor.training import train_

__all__ = ["FAULTS", "Fault"]

GAP = frozenset({"train-eval-gap", "needs-recalibration"})
"""What measures that statistics do not fit, whatever the reason."""
BATCH = frozenset({"batch-dependence", "statistics-moved-in-eval", "mixed-modes"})
"""What measures that a layer in an evaluating model normalizes by the batch."""


@dataclass(frozen=True, kw_only=True)
class Fault:
    """A kind of fault.

    Args:
        name: in tables.
        half: whether thresholds may be chosen on it.
        inject: changes the subject; None where the network has nothing to put the fault into.
        causes: checks of which one must find it.
        consequences: other checks that may speak.
        repairable: whether a treatment can give the accuracy back, with no more than batches of data.
        damages: whether it changes weights, so that new statistics give back a part only.
    """

    name: str
    half: Half
    inject: Callable[[Subject], Case | None]
    causes: frozenset[str]
    consequences: frozenset[str]
    repairable: bool
    damages: bool


FAULTS: dict[str, Fault] = {}


def _fault(
    half: Half,
    *causes: str,
    consequences: frozenset[str] = frozenset(),
    repairable: bool = False,
    damages: bool = False,
) -> Callable[[Callable[[Subject], Case | None]], Callable[[Subject], Case | None]]:
    def register(inject: Callable[[Subject], Case | None]) -> Callable[[Subject], Case | None]:
        name = inject.__name__.removeprefix("_").replace("_", " ")
        FAULTS[name] = Fault(
            name=name,
            half=half,
            inject=inject,
            causes=frozenset(causes),
            consequences=consequences,
            repairable=repairable,
            damages=damages,
        )
        return inject

    return register


def _case(subject: Subject, *layers: str, **options: object) -> Case:
    return Case(
        model=subject.model,
        batches=subject.data.batches(),
        layers=frozenset(layers) or None,
        options=options,
    )


def _alike(model: nn.Module) -> list[tuple[tuple[str, Norm], tuple[str, Norm]]]:
    """Pair layers of one class and size."""
    pairs = itertools.combinations(norms_of(model), 2)
    return [(a, b) for a, b in pairs if type(a[1]) is type(b[1]) and a[1].num_features == b[1].num_features]


# The state: running estimates that are lost, poisoned, or of something else.


@_fault("tuning", "statistics-at-init", consequences=GAP | {"statistics-horizon"}, repairable=True)
def _statistics_lost(subject: Subject) -> Case:
    for _, norm in norms_of(subject.model):
        norm.reset_running_stats()
    return _case(subject)


@_fault("held out", "statistics-at-init", consequences=GAP, repairable=True)
def _statistics_of_one_layer_lost(subject: Subject) -> Case:
    name, norm = subject.one_norm()
    norm.reset_running_stats()
    return _case(subject, name)


@_fault("tuning", "nonfinite-statistics", consequences=GAP, repairable=True)
def _an_infinite_pixel_in_training(subject: Subject) -> Case:
    (x,) = subject.inputs(32, 1)
    x = x.clone()
    x[0, 0, 3] = float("inf")
    subject.follow_([x, *subject.inputs(32, 20)])
    return _case(subject)


@_fault("held out", "nonfinite-statistics", consequences=GAP, repairable=True)
def _a_variance_that_is_not_a_number(subject: Subject) -> Case:
    name, norm = subject.one_norm()
    assert norm.running_var is not None
    norm.running_var[subject.draw.randrange(norm.num_features)] = float("nan")
    return _case(subject, name)


@_fault("tuning", "negative-variance", consequences=GAP | {"outlier-statistics"}, repairable=True)
def _a_negative_variance(subject: Subject) -> Case:
    name, norm = subject.one_norm()
    assert norm.running_var is not None
    norm.running_var[subject.draw.randrange(norm.num_features)] *= -1
    return _case(subject, name)


@_fault("held out", *GAP, consequences=frozenset({"outlier-statistics"}), repairable=True)
def _standard_deviations_stored_as_variances(subject: Subject) -> Case:
    for _, norm in norms_of(subject.model):
        assert norm.running_var is not None
        norm.running_var.sqrt_()
    return _case(subject)


@_fault("tuning", *GAP, consequences=frozenset({"outlier-statistics"}), repairable=True)
def _statistics_of_two_layers_swapped(subject: Subject) -> Case | None:
    pairs = _alike(subject.model)
    if not pairs:
        return None
    (first, a), (second, b) = subject.draw.choice(pairs)
    for key in ("running_mean", "running_var"):
        one, other = getattr(a, key), getattr(b, key)
        before = one.clone()
        one.copy_(other)
        other.copy_(before)
    return _case(subject, first, second)


@_fault("held out", "outlier-statistics", consequences=GAP, repairable=True)
def _a_mean_far_away(subject: Subject) -> Case:
    name, norm = subject.one_norm()
    assert norm.running_mean is not None
    norm.running_mean[subject.draw.randrange(norm.num_features)] = 1e4
    return _case(subject, name)


@_fault("tuning", "outlier-statistics", *GAP, consequences=frozenset({"near-zero-variance"}), repairable=True)
def _a_variance_far_too_small(subject: Subject) -> Case:
    name, norm = subject.one_norm()
    assert norm.running_var is not None
    norm.running_var[subject.draw.randrange(norm.num_features)] *= 1e-5
    return _case(subject, name)


@_fault("tuning", "statistics-horizon", *GAP, consequences=frozenset({"statistics-at-init"}), repairable=True)
def _few_updates_after_a_reset(subject: Subject) -> Case:
    for _, norm in norms_of(subject.model):
        norm.reset_running_stats()
    subject.follow_(subject.inputs(64, 4))
    return _case(subject)


@_fault("held out", "checkpoint-diff", "statistics-at-init", consequences=GAP, repairable=True)
def _parameters_loaded_without_buffers(subject: Subject) -> Case:
    whole = {name: tensor.clone() for name, tensor in subject.model.state_dict().items()}
    for _, norm in norms_of(subject.model):
        norm.reset_running_stats()
    return _case(subject, checkpoint=whole)


# Data that the statistics followed though they should not, or weights that moved without them.


@_fault("tuning", *GAP, repairable=True)
def _other_images_in_training_mode(subject: Subject) -> Case:
    subject.follow_([1.5 * x + 1 for x in subject.inputs(64, 40)])
    return _case(subject)


@_fault("held out", *GAP, repairable=True)
def _noise_in_training_mode(subject: Subject) -> Case:
    generator = torch.Generator().manual_seed(subject.draw.randrange(2**31))
    shape = subject.data.train[0][:64].shape
    subject.follow_([torch.randn(shape, generator=generator) for _ in range(40)])
    return _case(subject)


@_fault("tuning", *GAP, repairable=True, damages=True)
def _pruned(subject: Subject) -> Case:
    for module in subject.model.modules():
        if isinstance(module, nn.Conv1d | nn.Conv2d):
            weight = module.weight.data
            weight[weight.abs() < weight.abs().flatten().quantile(0.6)] = 0
    return _case(subject)


@_fault("held out", *GAP, repairable=True, damages=True)
def _rounded_to_three_bits(subject: Subject) -> Case:
    for module in subject.model.modules():
        if isinstance(module, nn.Conv1d | nn.Conv2d):
            weight = module.weight.data
            step = weight.abs().max() / 3.5
            weight.copy_((weight / step).round().clamp(-3, 3) * step)
    return _case(subject)


# Modes and flags.


@_fault("held out", "mixed-modes", consequences=BATCH, repairable=True)
def _one_layer_left_in_training(subject: Subject) -> Case:
    name, norm = subject.one_norm()
    norm.train()
    return _case(subject, name)


@_fault("tuning", "batch-dependence", consequences=GAP, repairable=False)
def _no_statistics_in_one_layer(subject: Subject) -> Case:
    name, norm = subject.one_norm()
    norm.running_mean = norm.running_var = norm.num_batches_tracked = None
    norm.track_running_stats = False
    return _case(subject, name)


@_fault("held out", "track-flag-inconsistent", consequences=BATCH, repairable=False)
def _tracking_off_with_statistics_left(subject: Subject) -> Case:
    name, norm = subject.one_norm()
    norm.track_running_stats = False
    subject.model.train()
    return _case(subject, name)


@_fault("tuning", "frozen-affine-live-statistics")
def _frozen_weights_and_live_statistics(subject: Subject) -> Case:
    for parameter in subject.model.parameters():
        parameter.requires_grad_(False)
    last = [module for module in subject.model.modules() if isinstance(module, nn.Linear)][-1]
    last.requires_grad_(True)
    subject.model.train()
    return _case(subject, *(name for name, _ in norms_of(subject.model)))


@_fault("tuning", "momentum-convention", consequences=GAP | {"statistics-noise"}, repairable=True)
def _momentum_of_another_framework(subject: Subject) -> Case:
    for _, norm in norms_of(subject.model):
        norm.momentum = 0.99
    subject.follow_(subject.inputs(16, 30))
    return _case(subject)


@_fault("held out", "momentum-convention", consequences=GAP | {"statistics-at-init"}, repairable=True)
def _momentum_zero(subject: Subject) -> Case:
    for _, norm in norms_of(subject.model):
        norm.reset_running_stats()
        norm.momentum = 0.0
    subject.follow_(subject.inputs(64, 10))
    return _case(subject)


@_fault("tuning", "mixed-eps", consequences=GAP)
def _eps_of_another_framework(subject: Subject) -> Case:
    name, norm = subject.one_norm()
    assert norm.running_var is not None
    norm.eps = float(norm.running_var.mean())
    return _case(subject, name)


@_fault("held out", "low-precision-statistics", consequences=GAP)
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


@_fault("tuning", "double-update")
def _activation_checkpointing(subject: Subject) -> Case:
    name, norm = subject.one_norm()
    put(subject.model, name, _Checkpointed(norm))
    subject.model.train()
    return _case(subject, f"{name}.inner")


@_fault("held out", "sync-with-checkpoint", consequences=frozenset({"double-update"}))
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


@_fault("held out", "statistics-moved-in-eval", consequences=BATCH | {"lossy-subclass"})
def _a_subclass_that_always_trains(subject: Subject) -> Case:
    name, norm = subject.one_norm()
    live = _AlwaysByTheBatch(norm.num_features)
    live.load_state_dict(norm.state_dict())
    put(subject.model, name, live.eval())
    return _case(subject, name)


class _Holder(nn.Module):
    def __init__(self, norm: Norm) -> None:
        super().__init__()
        self.held = [norm]

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.held[0](x)
        return result


@_fault("held out", "hidden-module", consequences=BATCH)
def _a_norm_in_a_plain_list(subject: Subject) -> Case:
    name, norm = subject.one_norm()
    norm.train()
    put(subject.model, name, _Holder(norm))
    return _case(subject)


@_fault("tuning", "reused-norm", *GAP, consequences=frozenset({"outlier-statistics"}))
def _one_norm_in_two_places(subject: Subject) -> Case | None:
    pairs = _alike(subject.model)
    if not pairs:
        return None
    (first, norm), (second, _) = subject.draw.choice(pairs)
    put(subject.model, second, norm)
    return _case(subject, first)


@_fault("tuning", "dropout-before-norm", consequences=GAP)
def _dropout_before_a_norm(subject: Subject) -> Case:
    name, norm = subject.one_norm()
    put(subject.model, name, nn.Sequential(nn.Dropout(0.5), norm))
    train_(subject.model, subject.data, seed=1, epochs=0.3, rate=subject.rate / 5)
    return _case(subject, f"{name}.1")


@_fault("tuning", "degenerate-group-norm")
def _a_group_for_each_channel(subject: Subject) -> Case | None:
    flat = [(name, norm) for name, norm in norms_of(subject.model) if isinstance(norm, nn.BatchNorm1d)]
    if not flat or subject.data.train[0].dim() == 3:
        return None
    name, norm = subject.draw.choice(flat)
    put(subject.model, name, nn.GroupNorm(norm.num_features, norm.num_features))
    return _case(subject, name)


@_fault("held out", "dead-channel")
def _most_channels_dead(subject: Subject) -> Case:
    name, norm = subject.one_norm()
    dead = subject.draw.sample(range(norm.num_features), int(0.75 * norm.num_features))
    norm.weight.data[dead] = 0
    norm.bias.data[dead] = 0
    return _case(subject, name)


class _Pair(nn.Module):
    def __init__(self, student: nn.Module, teacher: nn.Module) -> None:
        super().__init__()
        self.student, self.teacher = student, teacher

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.student(x)
        return logits


@_fault("held out", "copied-statistics-mismatch", consequences=frozenset({"statistics-at-init"}))
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


@_fault("held out", "statistics-noise", "values-per-channel", consequences=frozenset({"batch-dependence"}))
def _batches_of_one(subject: Subject) -> Case:
    subject.model.train()
    return Case(model=subject.model, batches=subject.data.batches(2))


@_fault("tuning", "values-per-channel", consequences=frozenset({"statistics-noise"}))
def _a_last_batch_of_one(subject: Subject) -> Case | None:
    flat = [(name, norm) for name, norm in norms_of(subject.model) if isinstance(norm, nn.BatchNorm1d)]
    if not flat or subject.data.train[0].dim() == 3:
        return None
    inputs, labels = subject.data.validation
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(inputs[:193], labels[:193]), batch_size=64)
    subject.model.train()
    return Case(model=subject.model, batches=loader, layers=frozenset(name for name, _ in flat))  # type: ignore[arg-type]


@_fault("tuning", "single-class-batch", "order-leak", consequences=frozenset({"batch-mixture", "statistics-noise"}))
def _batches_of_one_class(subject: Subject) -> Case:
    inputs, labels = subject.data.validation
    order = labels.argsort(stable=True)
    groups = [order[labels[order] == label][:64] for label in range(8)]
    subject.model.train()
    return Case(model=subject.model, batches=[(inputs[rows], labels[rows]) for rows in groups])


@_fault("held out", "single-class-batch", "order-leak", consequences=frozenset({"batch-mixture", "statistics-noise"}))
def _batches_in_the_order_of_classes(subject: Subject) -> Case:
    inputs, labels = subject.data.validation
    rows = labels[:512].argsort(stable=True)
    subject.model.train()
    return Case(model=subject.model, batches=list(zip(inputs[rows].split(64), labels[rows].split(64), strict=True)))


@_fault("held out", "domain-shift", consequences=GAP)
def _other_images_at_deployment(subject: Subject) -> Case:
    clean = subject.data.batches()
    batches = [(0.4 * x - 1.2, labels) for x, labels in clean]
    return Case(model=subject.model, batches=batches, options={"reference": clean})


@_fault("held out", "effective-batch", consequences=frozenset({"statistics-noise", "values-per-channel"}))
def _small_batches_accumulated(subject: Subject) -> Case:
    subject.model.train()
    return Case(model=subject.model, batches=subject.data.batches(2), options={"accumulation": 32})
