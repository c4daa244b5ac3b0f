"""Around a network: hooks, wrappers, other networks that follow it, and other workers."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from benchmarks.doctor.faults.registry import BATCH, GAP, case, tuning
from benchmarks.doctor.subject import Case, Norm, Subject, WithTarget, last_linear, norms_of, put
from benchmarks.doctor.training import fit_

# Hooks and modes.


def _run_again(module: nn.Module, inputs: tuple[Tensor, ...], _: Tensor) -> None:
    with torch.no_grad():
        module.forward(*inputs)


@tuning("double-update")
def _a_hook_that_runs_its_layer_again(subject: Subject) -> Case:
    """It takes down what comes out, or how long it takes, by calling ``forward``; in training that counts."""
    name, norm = subject.one_norm()
    norm.register_forward_hook(_run_again)
    subject.model.train()
    return case(subject, name)


@torch.no_grad()
def _adapt(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    assert isinstance(module, Norm) and module.running_mean is not None and module.running_var is not None
    (x,) = inputs
    dims = [dim for dim in range(x.dim()) if dim != 1]
    module.running_mean.lerp_(x.mean(dims), 0.1)
    module.running_var.lerp_(x.var(dims), 0.1)


@tuning("statistics-moved-in-eval", consequences=BATCH | GAP)
def _a_hook_that_adapts_in_evaluation(subject: Subject) -> Case:
    """Left from an experiment with adaptation at test time, on one layer."""
    name, norm = subject.one_norm()
    norm.register_forward_pre_hook(_adapt)
    return case(subject, name)


class _Sampled(nn.Module):
    """Monte Carlo dropout that sets everything to training, where dropout alone was meant."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        self.inner.train()
        logits: Tensor = self.inner(x)
        return logits


@tuning("statistics-moved-in-eval", "batch-dependence", "mixed-modes", consequences=GAP)
def _dropout_at_test_time_by_training_mode(subject: Subject) -> Case:
    name, last = last_linear(subject.model)
    put(subject.model, name, nn.Sequential(nn.Dropout(0.1), last))
    return Case(model=_Sampled(subject.model).eval(), batches=subject.data.batches())


# Other networks that follow it, and other workers.


class _Distilling(nn.Module):
    """A student that is compared with its teacher while it trains; ``train`` reaches both."""

    def __init__(self, student: nn.Module, teacher: nn.Module) -> None:
        super().__init__()
        self.student, self.teacher = student, teacher

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            with torch.no_grad():
                self.wanted = self.teacher(x).detach()
        logits: Tensor = self.student(x)
        return logits


@tuning("frozen-affine-live-statistics")
def _a_frozen_teacher_that_trains_with_its_student(subject: Subject) -> Case:
    """Its weights have no gradient, and its statistics move (gh:facebookresearch/unbiased-teacher/issues/47)."""
    teacher = copy.deepcopy(subject.model).requires_grad_(False)
    model = _Distilling(subject.model, teacher).train()
    names = (f"teacher.{name}" for name, _ in norms_of(teacher))
    return Case(model=model, batches=subject.data.batches(), layers=frozenset(names))


@tuning("copied-statistics-mismatch", consequences=GAP | {"statistics-horizon"})
def _a_target_network_with_the_statistics_of_its_start(subject: Subject) -> Case:
    """Polyak averages of the parameters alone (gh:DLR-RM/stable-baselines3/pull/1004)."""
    target = copy.deepcopy(subject.model)

    @torch.no_grad()
    def follow() -> None:
        for kept, now in zip(target.parameters(), subject.model.parameters(), strict=True):
            kept.lerp_(now, 0.05)

    fit_(subject.model, subject.labelled(64, 120), rate=subject.rate / 2, after=follow)
    return Case(model=WithTarget(subject.model, target).eval(), batches=subject.data.batches())


@tuning("effective-batch", consequences=frozenset({"statistics-noise", "values-per-channel"}))
def _eight_workers_with_four_samples_each(subject: Subject) -> Case:
    """Each normalizes by its own four (gh:open-mmlab/mmdetection/issues/3621)."""
    subject.model.train()
    return Case(model=subject.model, batches=subject.data.batches(4), options={"world_size": 8})


@tuning("rank-divergence", consequences=frozenset({"checkpoint-diff"}))
def _one_rank_that_resumed_without_buffers(subject: Subject) -> Case:
    """The model at hand is the first rank's, which is right; the third one was rebuilt from parameters."""
    states = [{key: value.clone() for key, value in subject.model.state_dict().items()} for _ in range(4)]
    fresh = copy.deepcopy(subject.model)
    for _, norm in norms_of(fresh):
        norm.reset_running_stats()
    states[2] = fresh.state_dict()
    return case(subject, ranks=states)
