import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from steadynorm.lab.optimization import (
    learning_rate,
    make_optimizer,
    optimizer_tensors,
    restore_optimizer_,
    training_loss,
)
from tests.support.experiments import TINY_SETTINGS

EPOCHS, STEPS = 5, 4


def rates(**changes: object) -> list[float]:
    settings = replace(TINY_SETTINGS, **changes)
    return [learning_rate(0.4, settings, done=done, steps=STEPS, epochs=EPOCHS) for done in range(EPOCHS * STEPS)]


def test_cosine_is_torchs_at_every_step() -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS * STEPS)
    expected = []
    for _ in range(EPOCHS * STEPS):
        expected += schedule.get_last_lr()
        optimizer.step()
        schedule.step()
    assert rates(schedule="cosine") == pytest.approx(expected)


def test_cosine_falls_behind_the_warm_up_alone() -> None:
    found = rates(schedule="cosine", warm_up=2, warm_up_from=0.1)
    assert found[:8] == pytest.approx([0.1 + 0.3 * number / 8 for number in range(1, 9)])
    assert found[8] == 0.4
    assert found[14] == pytest.approx(0.2)  # half of the 12 steps behind it
    assert found[8:] == sorted(found[8:], reverse=True)


def test_one_cycle_rises_over_three_tenths_and_falls_along_half_a_cosine() -> None:
    found = rates(schedule="one-cycle")
    assert found[0] == pytest.approx(0.4 / 25)
    assert found[3] == pytest.approx((0.4 / 25 + 0.4) / 2)  # half of the rise
    assert (found[6], max(found)) == (pytest.approx(0.4), found[6])
    assert found[13] == pytest.approx(0.2)
    assert found[-1] == pytest.approx(0.2 * (1 + math.cos(math.pi * 13 / 14)))


def test_milestones_are_of_the_step_schedule() -> None:
    assert rates()[8:13] == pytest.approx([0.04] * 4 + [0.004])
    assert rates(schedule="cosine", milestones=()) == rates(schedule="cosine", milestones=(2, 3))


def test_smoothed_labels_spread_a_share_over_all_classes() -> None:
    logits, labels = torch.randn(6, 10, generator=torch.Generator().manual_seed(0)), torch.arange(6)
    target = 0.8 * F.one_hot(labels, 10) + 0.2 / 10
    expected = -(target * logits.log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(training_loss(logits, labels, replace(TINY_SETTINGS, label_smoothing=0.2)), expected)
    assert torch.equal(training_loss(logits, labels, TINY_SETTINGS), F.cross_entropy(logits, labels))


def test_adamws_decay_is_beside_its_step() -> None:
    """The first step is lr · sign(gradient) whatever the decay, which shrinks the weight by itself."""
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, 2.0)
    settings = replace(TINY_SETTINGS, optimizer="adamw", weight_decay=0.5)
    optimizer = make_optimizer(model, settings, lr=0.1)
    model.weight.grad = torch.full((1, 1), 3.0)
    optimizer.step()
    assert model.weight.item() == pytest.approx(2.0 * (1 - 0.1 * 0.5) - 0.1)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_what_an_optimizer_remembers_goes_on_bit_for_bit(optimizer: str) -> None:
    settings = replace(TINY_SETTINGS, optimizer=optimizer)

    def step_of(model: nn.Module, seed: int) -> Callable[[], float]:
        def loss() -> float:
            x = torch.randn(4, 3, generator=torch.Generator().manual_seed(seed))
            model.zero_grad()
            model(x).square().mean().backward()
            return 0.0

        return loss

    first = nn.Linear(3, 2)
    one = make_optimizer(first, settings, lr=0.01)
    for seed in range(3):
        one.step(step_of(first, seed))
    second = nn.Linear(3, 2)
    second.load_state_dict(first.state_dict())
    other = make_optimizer(second, settings, lr=0.01)
    kept = {name: tensor.clone() for name, tensor in optimizer_tensors(first, one).items()}
    assert len(kept) == {"sgd": 2, "adamw": 6}[optimizer]
    restore_optimizer_(second, other, kept)
    for model, each in ((first, one), (second, other)):
        each.step(step_of(model, 3))
    assert all(torch.equal(first.state_dict()[name], tensor) for name, tensor in second.state_dict().items())


def test_norms_and_biases_can_be_spared_adamws_decay() -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    optimizer = make_optimizer(model, replace(TINY_SETTINGS, optimizer="adamw", spare_norms=True), lr=0.1)
    assert [(len(group["params"]), group["weight_decay"]) for group in optimizer.param_groups] == [(1, 5e-4), (3, 0.0)]
