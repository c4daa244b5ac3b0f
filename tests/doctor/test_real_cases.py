"""Faults from public threads, rebuilt small: the cause is named, and the right number comes back."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from steadynorm.doctor import diagnose, treat_
from tests.support.doctor import batches, images


def accuracy(output: Tensor, batch: tuple[Tensor, Tensor]) -> Tensor:
    return (output.argmax(1) == batch[1]).double().mean()


def accuracy_of(model: nn.Module, scale: float = 1.0) -> float:
    """On images that no treatment has seen, in evaluation."""
    x, y = images(256, seed=9)
    with torch.no_grad():
        return float(accuracy(copy.deepcopy(model).eval()(scale * x), (x, y)))


def scaled(number: int, scale: float, seed: int = 1) -> list[tuple[Tensor, Tensor]]:
    return [(scale * x, y) for x, y in batches(number, seed=seed)]


def repaired(model: nn.Module, check: str, layer: str | None = None, scale: float = 1.0) -> None:
    """Diagnose, find the cause among what is named, treat, and find it no more."""
    diagnosis = diagnose(model, scaled(8, scale))
    found = diagnosis.of(check)
    assert found, str(diagnosis)
    assert layer is None or layer in {each.layer for each in found}
    treat_(model, diagnosis, scaled(16, scale))
    assert diagnose(model, scaled(8, scale)).of(check) == ()


@pytest.fixture
def right(healthy: nn.Sequential) -> float:
    """What the healthy network reaches."""
    number = accuracy_of(healthy)
    assert number > 0.95
    return number


def train(model: nn.Module, given: list[tuple[Tensor, Tensor]], rate: float) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    model.train()
    for x, y in given:
        optimizer.zero_grad()
        functional.cross_entropy(model(x), y).backward()
        optimizer.step()


def test_evaluation_far_worse_than_training_after_a_short_training(right: float) -> None:
    """https://github.com/pytorch/pytorch/issues/4741: good in train mode, near chance after eval()."""
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Conv2d(1, 8, 3, bias=False), nn.BatchNorm2d(8, momentum=0.001), nn.ReLU()),
        *(nn.Conv2d(8, 8, 3, bias=False), nn.BatchNorm2d(8, momentum=0.001), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2)),
    )
    train(model, scaled(60, 0.05), 0.3)
    assert accuracy_of(model, 0.05) < 0.6
    repaired(model.eval(), "train-eval-gap", scale=0.05)
    assert accuracy_of(model, 0.05) == pytest.approx(right, abs=0.03)


def test_one_batch_with_an_overflow_makes_every_evaluation_nan(model: Any, right: float) -> None:
    """https://github.com/pytorch/pytorch/issues/90342: the loss recovers, evaluation stays NaN."""
    x, _ = batches(1)[0]
    broken = x.clone()
    broken[0, 0, 3, 3] = torch.inf
    model.train()
    with torch.no_grad():
        model(broken)
    train(model, batches(10), 1e-3)
    assert accuracy_of(model) < 0.6
    repaired(model.eval(), "nonfinite-statistics", "1")
    assert accuracy_of(model) == pytest.approx(right, abs=0.03)


def test_an_adapter_that_was_saved_by_its_parameters_has_lost_its_statistics(model: Any, right: float) -> None:
    """https://github.com/huggingface/peft/issues/1732: running_mean and running_var were not in what was saved."""
    saved = dict(model.named_parameters())
    loaded = copy.deepcopy(model)
    for norm in (loaded[1], loaded[4]):
        norm.reset_running_stats()
    loaded.load_state_dict(saved, strict=False)
    assert accuracy_of(loaded) < 0.9 * right
    repaired(loaded, "statistics-at-init", "4")
    assert accuracy_of(loaded) == pytest.approx(right, abs=0.03)


def test_an_average_of_parameters_alone_has_the_statistics_of_its_first_day(right: float) -> None:
    """https://github.com/pytorch/ignite/issues/2590: the average of the weights is far worse than the raw ones."""
    torch.manual_seed(0)
    online = nn.Sequential(
        *(nn.Conv2d(1, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, bias=False)),
        *(nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2)),
    )
    average = copy.deepcopy(online).requires_grad_(False).eval()
    for given in scaled(80, 0.05):
        train(online, [given], 0.3)
        for mean, each in zip(average.parameters(), online.parameters(), strict=True):
            mean.lerp_(each.detach(), 0.1)
    both = nn.ModuleDict({"online": online, "average": average})
    stale = diagnose(both).of("copied-statistics-mismatch")
    assert {each.layer for each in stale} == {"average.1", "average.4"}
    assert accuracy_of(online, 0.05) == pytest.approx(right, abs=0.03)
    assert accuracy_of(average, 0.05) < 0.6
    repaired(average, "statistics-at-init", scale=0.05)
    assert accuracy_of(average, 0.05) == pytest.approx(right, abs=0.03)


def test_quantised_weights_want_statistics_of_their_own(model: Any, right: float) -> None:
    """https://github.com/openvinotoolkit/nncf/pull/41: 4-bit weights, 14.0 % -> 65.2 % by adaptation."""
    with torch.no_grad():
        for conv in (model[0], model[3]):
            step = conv.weight.abs().max() / 0.8
            conv.weight.copy_((conv.weight / step).round() * step)
    assert accuracy_of(model) < 0.6
    repaired(model, "needs-recalibration")
    assert accuracy_of(model) == pytest.approx(right, abs=0.03)


def test_a_frozen_backbone_changes_while_the_head_is_trained(model: Any, right: float) -> None:
    """https://github.com/tianweiy/CenterPoint/issues/168: freeze() leaves the statistics of the layers moving."""

    def fine_tuned(frozen: nn.Module) -> float:
        tuned = copy.deepcopy(frozen)
        train(tuned, [(8 * x + 3, y) for x, y in batches(30, seed=5)], 0.0)
        return accuracy_of(tuned)

    for each in (*model[0].parameters(), *model[1].parameters(), *model[3].parameters(), *model[4].parameters()):
        each.requires_grad_(False)
    model.train()
    assert fine_tuned(model) < right - 0.1
    repaired(model, "frozen-affine-live-statistics", "1")
    assert fine_tuned(model) == right


def test_a_decay_of_another_framework_follows_the_last_batch_alone(model: Any, right: float) -> None:
    """https://github.com/Cadene/pretrained-models.pytorch/issues/5: TensorFlow's 0.99 as torch's momentum."""
    for norm in (model[1], model[4]):
        norm.momentum = 0.99
    train(model, [(torch.cat((x[y == 0], x[y == 0])), y) for x, y in batches(3)], 0.0)
    assert accuracy_of(model) < right - 0.02
    repaired(model, "momentum-convention", "4")
    assert model[1].momentum == pytest.approx(0.01)
    train(model, batches(3), 0.0)
    assert accuracy_of(model) == pytest.approx(right, abs=0.03)


def test_a_teacher_left_in_training_depends_on_its_batch(model: Any) -> None:
    """https://github.com/facebookresearch/unbiased-teacher/issues/47: a teacher's statistics move with each batch."""
    x = images(64, seed=9)[0]
    with torch.no_grad():
        alone = torch.cat([model(each) for each in x.split(1)])
        model[4].train()
        before = model[4].running_mean.clone()
        repaired(model, "mixed-modes", "4")
        torch.testing.assert_close(model(x), alone, rtol=1e-4, atol=1e-4)
        assert torch.equal(model[4].running_mean, before)


def test_buffers_in_bfloat16_stand_still() -> None:
    """https://github.com/pytorch/pytorch/issues/75478: buffers are cast with the parameters; small steps are lost."""
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4, momentum=0.001), nn.ReLU(), nn.Linear(4, 2))
    model[1].bfloat16()
    assert [each.layer for each in diagnose(model).of("low-precision-statistics")] == ["1"]

    def follow(norm: Any) -> float:
        norm = copy.deepcopy(norm).train()
        norm.running_mean.zero_()
        values = torch.linspace(-0.1, 0.1, 16, dtype=torch.bfloat16).unsqueeze(1).expand(16, 4) + 1
        for _ in range(4000):
            norm(values)
        return float(norm.running_mean[0])

    assert follow(model[1]) < 0.6
    treat_(model, diagnose(model))
    assert follow(model[1]) == pytest.approx(1 - 0.999**4000, abs=0.01)


def test_another_camera_moves_the_inputs(model: Any, right: float) -> None:
    """https://github.com/heyufan1995/self-domain-adapted-network/issues/5: a new scanner drops the accuracy."""

    def dimmed(number: int, seed: int) -> list[tuple[Tensor, Tensor]]:
        return [(0.2 * x + 1, y) for x, y in batches(number, seed=seed)]

    diagnosis = diagnose(model, dimmed(8, 3), reference=batches())
    (found,) = diagnosis.of("domain-shift")
    assert found.cost is not None
    treat_(model, diagnosis, dimmed(16, 4))
    x, y = images(256, seed=9)
    with torch.no_grad():
        assert float(accuracy(model(0.2 * x + 1), (x, y))) == pytest.approx(right, abs=0.03)


class Block(nn.Module):
    """Convolution and batch norm whose forward runs again in the backward."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Any:
        return checkpoint(self.inner, x, use_reentrant=False)


class Pyramid(nn.Module):
    """One head with one batch norm over levels of unlike scale."""

    def __init__(self, norms: Callable[[], list[nn.Module]]) -> None:
        super().__init__()
        self.conv, self.norms = nn.Conv2d(1, 8, 1), nn.ModuleList(norms())

    def forward(self, x: Tensor) -> Tensor:
        levels = [x, 8 * functional.avg_pool2d(x, 2)]
        heads = [norm(self.conv(level)).mean((2, 3)) for norm, level in zip(self.norms, levels, strict=True)]
        return sum(heads[1:], heads[0])


def test_checkpointing_moves_statistics_twice(model: Any) -> None:
    """https://github.com/pytorch/pytorch/issues/96136: the same loss and gradients, other statistics."""
    model[3], model[4] = Block(nn.Sequential(model[3], model[4])), nn.Identity()
    assert [each.layer for each in diagnose(model, batches(2)).of("double-update")] == ["3.inner.1"]


def test_one_norm_for_all_levels_of_a_pyramid() -> None:
    """https://github.com/open-mmlab/mmdetection/issues/6515: one batch norm per level repairs the shared head."""
    torch.manual_seed(0)
    one = nn.BatchNorm2d(8)
    assert [each.layer for each in diagnose(Pyramid(lambda: [one, one]), batches(4)).of("reused-norm")] == ["norms.0"]
    own = Pyramid(lambda: [nn.BatchNorm2d(8), nn.BatchNorm2d(8)])
    assert diagnose(own, batches(4)).of("reused-norm") == ()
