"""What tests of the doctor's benchmark put faults into: small data, and networks that are not as they were built."""

from __future__ import annotations

import random
from collections.abc import Callable

import torch
from torch import nn

from benchmarks.doctor.architectures.registry import block
from benchmarks.doctor.faults import FAULTS
from benchmarks.doctor.healthy import HEALTHY
from benchmarks.doctor.subject import Case, Subject, norms_of
from benchmarks.doctor.training import Data
from steadynorm.doctor import CHECKS

NOTES = {name for name, check in CHECKS.items() if check.only_notes}
"""Checks that can find no fault of the benchmark."""


class Short(Subject):
    """Trains for a few steps where the benchmark takes a hundred."""

    steps = 3

    def inputs(self, size, number):
        return super().inputs(min(size, 32), min(number, self.steps))

    def labelled(self, size, number):
        return super().labelled(min(size, 32), min(number, self.steps))


def random_data(kind: str, side: int = 32) -> Data:
    generator = torch.Generator().manual_seed(0)
    shape = (3, side, side) if kind == "images" else (3, 64)
    x, labels = torch.randn(512, *shape, generator=generator), torch.randint(0, 10, (512,), generator=generator)
    return Data(train=(x, labels), validation=(x, labels), test=(x[:64], labels[:64]))


def subject_of(model: nn.Module, data: Data, name: str, kind: type[Subject] = Short) -> Subject:
    """Give a network whose statistics are those of data, and whose weights and biases are not as they were built."""
    torch.manual_seed(1)
    for _, norm in norms_of(model):
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.uniform_(norm.bias, -0.5, 0.5)
        norm.momentum = None  # a mean of six batches
    with torch.no_grad():
        for _ in range(6):
            model.train()(data.train[0][:64])
    for _, norm in norms_of(model):
        norm.momentum = 0.1
    return kind(model=model.eval(), data=data, draw=random.Random(name), rate=0.05)


def nested_network(middle: int = 8) -> nn.Module:
    """Give norms of images, of 8 channels or ``middle``: two by themselves, and parts with one and with two."""
    torch.manual_seed(0)
    part = nn.Sequential(*block(8, middle), *block(middle, 8, stride=2))
    return nn.Sequential(
        *block(3, 8, stride=2),
        nn.Sequential(*block(8, 8)),
        part,
        *block(8, 8, stride=2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 10),
    )


def case_in(
    name: str, kind: type[Subject] = Short, network: Callable[[], nn.Module] = nested_network, side: int = 16
) -> tuple[Subject, Case]:
    """Put a fault into a small network of images, or make a healthy variant of it; give the subject as well."""
    subject = subject_of(network(), random_data("images", side), name, kind)
    case = (FAULTS[name].inject if name in FAULTS else HEALTHY[name].make)(subject)
    assert case is not None
    return subject, case


def right_of(subject: Subject, network: Callable[[], nn.Module] = nested_network) -> nn.Module:
    """Give the network as it was before the fault."""
    return subject_of(network(), subject.data, "").model


def counts_of(model: nn.Module) -> set[int]:
    """Give the numbers of batches that norms have counted."""
    return {int(norm.num_batches_tracked) for _, norm in norms_of(model)}


def is_new(model: nn.Module) -> bool:
    """Tell whether all estimates are those that a norm is built with."""
    return all(norm.running_mean.eq(0).all() and norm.running_var.eq(1).all() for _, norm in norms_of(model))


def is_changed(case: Case, before: nn.Module, batches: list) -> bool:
    """Tell whether the doctor is given anything but the network and the batches as they were."""
    states = [one.state_dict() for one in (case.model, before)]
    same = states[0].keys() == states[1].keys() and all(
        torch.equal(states[0][key], states[1][key]) for key in states[0]
    )
    alike = case.batches is not None and all(
        torch.equal(one[0], other[0]) for one, other in zip(case.batches, batches, strict=False)
    )
    flags = [[_flags(each) for each in one.modules()] for one in (case.model, before)]
    return not same or not alike or flags[0] != flags[1] or bool(case.options)


def _flags(module: nn.Module) -> tuple:
    hooks = (len(module._forward_hooks), len(module._forward_pre_hooks))
    return (type(module), module.training, vars(module).get("momentum"), vars(module).get("eps"), *hooks)
