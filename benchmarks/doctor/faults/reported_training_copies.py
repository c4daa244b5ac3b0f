"""What people reported of trainings with several networks or passes: averages, servers, clones, checkpoints, devices.

Each fault does what its thread describes, as in ``reported_training``.
"""

from __future__ import annotations

import copy
from functools import partial

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from benchmarks.doctor.faults.registry import FAR, GAP, case, tuning
from benchmarks.doctor.subject import Case, Norm, Subject, last_linear, norms_of, put
from benchmarks.doctor.training import fit_

# Copies, averages and other networks in one.


class _Averaged(nn.Module):
    """A network that trains, and its moving average, which is evaluated."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.average = model, copy.deepcopy(model).requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = (self.model if self.training else self.average)(x)
        return y

    @torch.no_grad()
    def follow_(self) -> None:
        """Update the average: parameters alone."""
        for kept, now in zip(self.average.parameters(), self.model.parameters(), strict=True):
            kept.lerp_(now, 0.05)


@tuning("copied-statistics-mismatch", "statistics-at-init", consequences=FAR | {"statistics-horizon"})
def _an_average_evaluated_with_the_estimates_of_a_new_network(subject: Subject) -> Case:
    """It was copied before the first step, and estimates take no part (gh:FlyreelAI/sesemi/issues/36)."""
    both = _Averaged(subject.model)
    for _, norm in norms_of(both.average):
        norm.reset_running_stats()
    fit_(both, subject.labelled(64, 120), rate=subject.rate / 5, after=both.follow_)
    return Case(model=both, batches=subject.data.batches())


@tuning(*GAP, consequences=FAR, repairable=True, damages=True, costs=True)
def _a_moving_average_copied_into_its_network(subject: Subject) -> Case:
    """Of parameters, decay 0.995; estimates stay those of the last weights (gh:fadel/pytorch_ema/issues/13)."""
    average = [each.detach().clone() for each in subject.model.parameters()]

    @torch.no_grad()
    def follow() -> None:
        for kept, now in zip(average, subject.model.parameters(), strict=True):
            kept.lerp_(now, 0.005)

    fit_(subject.model, subject.labelled(64, 150), rate=subject.rate, after=follow)
    with torch.no_grad():
        for now, kept in zip(subject.model.parameters(), average, strict=True):
            now.copy_(kept)
    return case(subject)


@tuning("statistics-at-init", consequences=FAR | {"statistics-horizon"}, repairable=True, damages=True)
def _trained_as_a_function_of_copied_buffers(subject: Subject) -> Case:
    """Updates go to the copies, and the evaluation is near chance (gh:facebookresearch/higher/issues/55)."""
    for _, norm in norms_of(subject.model):
        norm.reset_running_stats()
    optimizer = torch.optim.SGD(subject.model.parameters(), subject.rate / 10, momentum=0.9)
    subject.model.train()
    for x, labels in subject.labelled(64, 60):
        copies = {name: value.clone() for name, value in subject.model.named_buffers()}
        optimizer.zero_grad()
        functional.cross_entropy(functional_call(subject.model, copies, (x,)), labels).backward()
        optimizer.step()
    subject.model.eval()
    return case(subject)


@tuning("statistics-at-init", consequences=FAR | {"statistics-horizon"}, repairable=True, damages=True)
def _a_server_that_is_sent_weights_and_biases(subject: Subject) -> Case:
    """Of four clients with two classes each; its own network never runs in training.

    gh:vaseline555/Federated-Learning-in-PyTorch/issues/14
    """
    x, labels = subject.data.train
    clients = []
    for first in range(0, 8, 2):
        client = copy.deepcopy(subject.model)
        shard = ((labels == first) | (labels == first + 1)).nonzero().flatten()
        rows = shard[torch.tensor([subject.draw.randrange(len(shard)) for _ in range(32 * 20)])].split(32)
        fit_(client, [(x[each], labels[each]) for each in rows], rate=subject.rate / 100)
        clients.append(client)
    with torch.no_grad():
        for server, *sent in zip(subject.model.parameters(), *(each.parameters() for each in clients), strict=True):
            server.copy_(torch.stack(sent).mean(0))
    for _, norm in norms_of(subject.model):
        norm.reset_running_stats()
    return case(subject)


@tuning(*GAP, consequences=FAR | {"dead-channel"}, repairable=True, damages=True, costs=True)
def _widths_of_a_supernet_that_share_their_norms(subject: Subject) -> Case:
    """Each step takes a part of all channels; what all of them give was measured with the others.

    gh:mit-han-lab/gan-compression/issues/65
    """
    share = 1.0

    def narrow(norm: nn.Module, _: object, y: Tensor) -> Tensor:
        kept = torch.arange(y.shape[1]) < max(1, int(share * y.shape[1]))
        return y * kept.view(1, -1, *([1] * (y.dim() - 2)))

    def draw_width() -> None:
        nonlocal share
        share = subject.draw.choice((0.25, 0.5, 0.75, 1.0))

    hooks = [norm.register_forward_hook(narrow) for _, norm in norms_of(subject.model)]
    fit_(subject.model, subject.labelled(64, 120), rate=subject.rate / 5, after=draw_width)
    for hook in hooks:
        hook.remove()
    return case(subject)


class _Unrolled(nn.Module):
    """Three steps of one layer, whose norms are clones that share weight and bias; the first one is left in use."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mix = nn.Linear(width, width, bias=False)
        self.norms = nn.ModuleList(nn.BatchNorm1d(width) for _ in range(3))
        for norm in self.norms:
            norm.weight, norm.bias = self.norms[0].weight, self.norms[0].bias

    def forward(self, x: Tensor) -> Tensor:
        for norm in self.norms:
            x = x + functional.relu((norm if self.training else self.norms[0])(self.mix(x)))
        return x


@tuning("reused-norm", *GAP, consequences=FAR | {"backend-parity"}, damages=True)
def _all_steps_evaluated_with_the_first_steps_estimates(subject: Subject) -> Case:
    """Clones of a step share parameters and no estimates (gh:Element-Research/rnn/issues/252)."""
    name, last = last_linear(subject.model)
    put(subject.model, name, nn.Sequential(_Unrolled(last.in_features), last))
    fit_(subject.model, subject.labelled(64, 120), rate=subject.rate / 10)
    return case(subject, f"{name}.0.norms.0")


# Checkpointing and devices.


def _parts(model: nn.Module) -> list[nn.Module]:
    """List the largest parts of the model that have norms and are none themselves."""
    found: list[nn.Module] = []
    inner: set[nn.Module] = set()
    for part in model.modules():
        children = set(part.modules()) - {part}
        if part is not model and part not in inner and not isinstance(part, nn.ModuleList) and norms_of(part):
            if children:
                found.append(part)
            inner |= children
    return found


@tuning("double-update", consequences=FAR)
def _every_block_checkpointed_with_its_old_momentum(subject: Subject) -> Case:
    """Each block's forward runs again in the backward (gh:deepinsight/insightface/issues/2053)."""
    parts = _parts(subject.model)
    twice = {norm for part in parts for _, norm in norms_of(part)}
    for part in parts:
        part.forward = partial(checkpoint, part.forward, use_reentrant=False)
    subject.model.train()
    return case(subject, *(name for name, norm in norms_of(subject.model) if norm in twice))


def _stop_counting(norm: nn.Module, _: object) -> None:
    assert isinstance(norm, Norm)
    norm.track_running_stats = torch.is_grad_enabled()


def _count_again(norm: nn.Module, _: object, __: object) -> None:
    assert isinstance(norm, Norm)
    norm.track_running_stats = True


@tuning("statistics-at-init", consequences=FAR | {"statistics-horizon", "track-flag-inconsistent"}, repairable=True)
def _measured_anew_where_forwards_without_gradient_do_not_count(subject: Subject) -> Case:  # codespell:ignore anew
    """A wrapper for checkpointing counts only with gradients (gh:facebookresearch/fairscale/issues/1035).

    So averaged weights, whose estimates are set back and measured without gradient, keep those of a new network.
    """
    for _, norm in norms_of(subject.model):
        norm.register_forward_pre_hook(_stop_counting)
        norm.register_forward_hook(_count_again)
        norm.reset_running_stats()
    subject.follow_(subject.inputs(64, 20))
    return case(subject)


@tuning(
    "rank-divergence", consequences=FAR | {"checkpoint-diff", "statistics-noise", "statistics-horizon"}, repairable=True
)
def _eight_devices_of_which_the_first_is_evaluated(subject: Subject) -> Case:
    """Gradients are averaged, and estimates are each device's own (gh:mlcommons/training/issues/289)."""
    models = [copy.deepcopy(subject.model).train() for _ in range(8)]
    shards = torch.arange(len(subject.data.train[0])).chunk(8)
    with torch.no_grad():
        for model, shard in zip(models, shards, strict=True):
            for _ in range(30):
                rows = torch.tensor([subject.draw.randrange(len(shard)) for _ in range(4)])
                model(subject.data.train[0][shard[rows]])
            model.eval()
    return Case(
        model=models[0], batches=subject.data.batches(), options={"ranks": [each.state_dict() for each in models]}
    )
