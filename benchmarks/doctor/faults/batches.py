"""Batches: what is in them, and what they are run through."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from benchmarks.doctor.faults.registry import GAP, case, tuning
from benchmarks.doctor.subject import Case, Norm, Subject, norms_of, shapes_of
from benchmarks.doctor.training import fit_

Batches = list[tuple[Tensor, Tensor]]


def _trained_on(subject: Subject, batches: Batches, shown: Batches, rate: float = 0.2) -> Case:
    """Fine-tune on batches, and give the model in training, with batches of the same kind."""
    fit_(subject.model, batches, rate=rate * subject.rate)
    return Case(model=subject.model.train(), batches=shown)


@tuning("batch-mixture", consequences=GAP, costs=True)
def _source_and_target_in_one_batch(subject: Subject) -> Case:
    """Half of each batch comes from another domain, and the statistics are of neither."""

    def mixed(batches: Batches) -> Batches:
        return [(torch.cat((x[: len(x) // 2], _target(x[len(x) // 2 :]))), labels) for x, labels in batches]

    return _trained_on(subject, mixed(subject.labelled(64, 80)), mixed(subject.data.batches()))


def _target(x: Tensor) -> Tensor:
    """Give a dark picture of little contrast, or a signal of weak sensors with an offset."""
    return 0.3 * x - 1.5


def _in_pairs_of_classes(inputs: Tensor, labels: Tensor, number: int) -> Batches:
    """Draw as a sampler for pairs does: two classes a batch, 32 samples of the one, then 32 of the other."""
    members = [(labels == label).nonzero().flatten() for label in range(10)]
    rows = [
        torch.cat([members[(first + place) % 10][32 * (place % 2) : 32 * (place % 2) + 32] for first in (0, 3)])
        for place in range(number)
    ]
    return [(inputs[each], labels[each]) for each in rows]


@tuning("single-class-batch", "order-leak", consequences=GAP | {"batch-mixture", "statistics-noise"}, costs=True)
def _two_classes_a_batch(subject: Subject) -> Case:
    """A sampler of metric learning feeds a network that is evaluated on all classes."""
    inputs, labels = subject.data.train
    return _trained_on(
        subject, _in_pairs_of_classes(inputs, labels, 60), _in_pairs_of_classes(*subject.data.validation, 8)
    )


@tuning("order-leak", consequences=GAP | {"batch-mixture", "statistics-noise"}, costs=True)
def _batches_in_the_order_of_their_time(subject: Subject) -> Case:
    """The log is not shuffled, and from its dusk to its dawn all pictures, or all sensors' levels, drift."""

    def drifting(batches: Batches) -> Batches:
        levels = torch.linspace(-1.0, 1.0, len(batches))
        return [((1 + 0.3 * level) * x + level, labels) for level, (x, labels) in zip(levels, batches, strict=True)]

    return _trained_on(subject, drifting(subject.labelled(64, 80)), drifting(subject.data.batches()))


@tuning("padding-in-statistics", consequences=GAP, costs=True)
def _padded_to_the_largest(subject: Subject) -> Case | None:
    """Inputs of all sizes are filled up with zeros, which the norms of maps count."""
    if all(len(shape) == 2 for shape in shapes_of(subject.model, subject.inputs(2, 1)[0]).values()):
        return None

    def padded(batches: Batches) -> Batches:
        return [(torch.stack([_cut(each, subject.draw.uniform(0.25, 0.75)) for each in x]), y) for x, y in batches]

    return _trained_on(subject, padded(subject.labelled(64, 80)), padded(subject.data.batches()))


def _cut(x: Tensor, share: float) -> Tensor:
    kept = torch.zeros_like(x)
    last = int(share * x.shape[-1])
    if x.dim() == 2:
        kept[:, :last] = x[:, :last]
    else:
        kept[:, :last, :last] = x[:, :last, :last]
    return kept


def _blocks(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """List parts of two norms or more that stand behind the first norm."""
    first = norms_of(model)[0][1]
    return [
        (name, part)
        for name, part in model.named_modules()
        if name
        and not isinstance(part, nn.ModuleList)
        and sum(isinstance(each, Norm) for each in part.modules()) >= 2
        and all(each is not first for each in part.modules())
    ]


@tuning("double-update")
def _a_block_that_is_run_again_in_the_backward(subject: Subject) -> Case | None:
    """Checkpointing in its old form, set on a block's forward as libraries do."""
    found = _blocks(subject.model)
    if not found:
        return None
    name, part = subject.draw.choice(found)
    part.forward = partial(checkpoint, part.forward, use_reentrant=True)
    subject.model.train()
    inner = [f"{name}.{each}" for each, _ in norms_of(part)]
    return case(subject, *inner)


@tuning("mixed-modes", "statistics-moved-in-eval", consequences=frozenset({"batch-dependence"}) | GAP)
def _a_part_whose_train_ignores_the_mode(subject: Subject) -> Case | None:
    """``train`` is overridden to set a flag of its own, and calls the parent without the mode: ``eval`` trains."""
    found = _blocks(subject.model)
    if not found:
        return None
    name, part = subject.draw.choice(found)
    part.__class__ = type(type(part).__name__, (type(part),), {"train": lambda self, mode=True: _always(self)})
    subject.model.eval()
    return case(subject, *(f"{name}.{each}" for each, _ in norms_of(part)))


def _always(part: nn.Module) -> nn.Module:
    part.training = True
    for child in part.children():
        child.train()
    return part
