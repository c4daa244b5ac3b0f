"""Loops of training, and what is built for them: modes, second forwards, groups of parameters, copies."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.nn import functional

from benchmarks.doctor.faults.registry import FAR, GAP, case, tuning
from benchmarks.doctor.subject import Case, Norm, Subject, WithTarget, last_linear, norms_of, put, shapes_of
from benchmarks.doctor.training import fit_

# Forwards that count.


@tuning("nonfinite-statistics", consequences=FAR, repairable=True)
def _a_step_that_was_skipped_after_its_forward(subject: Subject) -> Case:
    """Weights burst, the loss scaler finds infinite gradients and goes back; the forward has moved the estimates."""
    before = [each.detach().clone() for each in subject.model.parameters()]
    with torch.no_grad():
        for each in subject.model.parameters():
            each.mul_(1e25)
        subject.follow_(subject.inputs(64, 1))
        for each, kept in zip(subject.model.parameters(), before, strict=True):
            each.copy_(kept)
    subject.follow_(subject.inputs(64, 5))
    return case(subject)


@tuning(*GAP, consequences=frozenset({"outlier-statistics"}), repairable=True, damages=True, costs=True)
def _second_forwards_of_sharpness_aware_steps(subject: Subject) -> Case:
    """At weights that are a step uphill; momentum 0.1 makes most of the estimates theirs (gh:davda54/sam/issues/17)."""
    model, radius = subject.model, 1.0
    parameters = list(model.parameters())
    optimizer = torch.optim.SGD(parameters, subject.rate / 50, momentum=0.9)
    model.train()
    for x, labels in subject.labelled(64, 60):
        functional.cross_entropy(model(x), labels).backward()
        with torch.no_grad():
            slopes = [each.grad for each in parameters if each.grad is not None]
            norm = torch.stack([slope.norm() for slope in slopes]).norm()
            steps = [None if each.grad is None else radius / norm * each.grad for each in parameters]
        _add(parameters, steps, 1)
        optimizer.zero_grad()
        functional.cross_entropy(model(x), labels).backward()
        _add(parameters, steps, -1)
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
    model.eval()
    return case(subject)


@torch.no_grad()
def _add(parameters: list[nn.Parameter], steps: list[Tensor | None], sign: int) -> None:
    for each, step in zip(parameters, steps, strict=True):
        if step is not None:
            each.add_(step, alpha=sign)


# Modes and flags.


@tuning("track-flag-inconsistent", consequences=FAR | {"statistics-horizon"})
def _tracking_switched_off_for_a_warm_up(subject: Subject) -> Case:
    """``track_running_stats = False`` for the first steps (gh:pytorch/pytorch/issues/40147), and never True again."""
    for _, norm in norms_of(subject.model):
        norm.track_running_stats = False
    fit_(subject.model, subject.labelled(64, 120), rate=subject.rate / 2)
    return case(subject)


@tuning("mixed-modes", consequences=FAR | {"statistics-horizon"})
def _a_norm_left_in_evaluation(subject: Subject) -> Case:
    """A callback looked at one layer and did not put it back; it goes on training, and its estimates stay."""
    name, norm = subject.one_norm()
    vars(norm)["train"] = lambda mode=True: norm
    fit_(subject.model, subject.labelled(64, 100), rate=subject.rate / 4)
    del vars(norm)["train"]
    subject.model.train()
    norm.eval()
    return case(subject, name)


class _Attended(nn.Module):
    """Looks at its part's output first, without gradient and in evaluation, and sets it to training behind that."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        self.norm.eval()
        with torch.no_grad():
            attention = self.norm(x).abs().mean(1, keepdim=True)
        self.attention = attention
        self.norm.train()
        y: Tensor = self.norm(x)
        return y


@tuning("statistics-moved-in-eval", "mixed-modes", "batch-dependence", consequences=FAR)
def _a_helper_that_puts_back_the_wrong_mode(subject: Subject) -> Case:
    """``eval()``, a look, ``train()``: the mode that was there before is not kept."""
    name, norm = subject.one_norm()
    put(subject.model, name, _Attended(norm))
    return case(subject, f"{name}.norm")


@tuning("frozen-affine-live-statistics")
def _a_backbone_with_a_rate_of_zero(subject: Subject) -> Case:
    """Groups of parameters for each depth, of which the backbone's has the rate 0; statistics know no rate."""
    last = set(last_linear(subject.model)[1].parameters())
    groups = [
        {"params": [each for each in subject.model.parameters() if each not in last], "lr": 0.0},
        {"params": list(last), "lr": subject.rate},
    ]
    optimizer = torch.optim.SGD(groups, subject.rate, momentum=0.9)
    subject.model.train()
    return case(subject, *(name for name, _ in norms_of(subject.model)), optimizer=optimizer)


@tuning("decayed-affine", consequences=FAR | {"dead-channel", "near-zero-variance"}, costs=True)
def _the_decay_of_lions_recipe(subject: Subject) -> Case:
    """1.0 is for a rate ten times smaller (Chen et al. 2023, arXiv 2302.06675); AdamW has it, on γ and β too."""
    optimizer = torch.optim.AdamW(subject.model.parameters(), 1e-2, weight_decay=1.0)
    fit_(subject.model, subject.labelled(64, 150), rate=1e-2, optimizer=optimizer)
    subject.model.train()
    return case(subject, optimizer=optimizer)


# What is built for it.


@tuning("copied-statistics-mismatch", consequences=FAR | {"statistics-horizon"})
def _a_target_that_copies_parameters_now_and_then(subject: Subject) -> Case:
    """Every forty steps, as a deep Q-network does, and no buffers; the weights of both are the same in the end."""
    target, steps = copy.deepcopy(subject.model), 0

    @torch.no_grad()
    def follow() -> None:
        nonlocal steps
        steps += 1
        if steps % 40 == 0:
            for kept, now in zip(target.parameters(), subject.model.parameters(), strict=True):
                kept.copy_(now)

    fit_(subject.model, subject.labelled(64, 120), rate=subject.rate / 2, after=follow)
    return Case(model=WithTarget(subject.model, target).eval(), batches=subject.data.batches())


class _Dropped(nn.Module):
    def __init__(self, norm: Norm) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm(functional.dropout(x, 0.5, training=self.training))
        return y


@tuning("dropout-before-norm", *GAP, consequences=frozenset({"outlier-statistics"}), costs=True)
def _dropout_called_as_a_function(subject: Subject) -> Case:
    """Half of what two norms get is 0 in training, and none in evaluation (Li et al. 2019, arXiv 1801.05134)."""
    chosen = subject.draw.sample(norms_of(subject.model), 2)
    for name, norm in chosen:
        put(subject.model, name, _Dropped(norm))
    fit_(subject.model, subject.labelled(64, 120), rate=subject.rate / 10)
    return case(subject, *(f"{name}.norm" for name, _ in chosen))


@tuning("sync-with-checkpoint", consequences=frozenset({"double-update"}))
def _synchronised_norms_in_torchs_wrapper(subject: Subject) -> Case | None:
    """``checkpoint_wrapper``, as recipes for sharded training put it around each block; here around two layers."""
    plain = [(n, norm) for n, norm in norms_of(subject.model) if type(norm) in (nn.BatchNorm1d, nn.BatchNorm2d)]
    if len(plain) < 2:
        return None
    chosen = subject.draw.sample(plain, 2)
    for name, norm in chosen:
        put(subject.model, name, checkpoint_wrapper(nn.SyncBatchNorm.convert_sync_batchnorm(norm)))
    inner = {name for name, each in subject.model.named_modules() if isinstance(each, nn.SyncBatchNorm)}
    return Case(model=subject.model.train(), batches=None, layers=frozenset(inner))


class _Branch(nn.Module):
    """A norm's output and a little of what the whole map says, normalized by groups of one channel with one value."""

    def __init__(self, norm: Norm, dim: int) -> None:
        super().__init__()
        channels = norm.num_features
        mix = nn.Conv2d(channels, channels, 1) if dim == 4 else nn.Conv1d(channels, channels, 1)
        self.norm, self.branch, self.dims = norm, nn.Sequential(mix, nn.GroupNorm(channels, channels)), range(2, dim)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm(x)
        kept = y if self.dims else y.unsqueeze(2)
        pooled: Tensor = self.branch(kept.mean(tuple(self.dims) or 2, keepdim=True))
        return y + 0.3 * functional.relu(pooled if self.dims else pooled.squeeze(2))


@tuning("degenerate-group-norm", consequences=FAR)
def _a_group_for_each_channel_of_a_pooled_branch(subject: Subject) -> Case:
    """``GroupNorm(min(32, C), C)`` was meant to be safe in small batches; its output is β for any input."""
    shapes = shapes_of(subject.model, subject.inputs(2, 1)[0])
    name, norm = subject.draw.choice([each for each in norms_of(subject.model) if each[0] in shapes])
    put(subject.model, name, _Branch(norm, len(shapes[name])))
    fit_(subject.model, subject.labelled(64, 60), rate=subject.rate / 20)
    return case(subject, f"{name}.branch.1")


class _Virtual(nn.Module):
    """Ghost batches (Hoffer et al. 2017, arXiv 1705.08741), as TabNet has them: a norm, called piece by piece."""

    def __init__(self, norm: Norm, size: int) -> None:
        super().__init__()
        self.norm, self.size = norm, size

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            y: Tensor = self.norm(x)
            return y
        return torch.cat([self.norm(each) for each in x.split(self.size)])


@tuning(
    "statistics-noise",
    "values-per-channel",
    consequences=FAR | {"reused-norm", "double-update", "effective-batch"},
)
def _virtual_batches_of_two(subject: Subject) -> Case:
    """The size is a default of 128 that a search brought down to 2 (gh:dreamquark-ai/tabnet/issues/243); it trains."""
    name, norm = subject.one_norm()
    put(subject.model, name, _Virtual(norm, 2))
    fit_(subject.model, subject.labelled(64, 60), rate=subject.rate / 20)
    subject.model.train()
    return case(subject, f"{name}.norm")
