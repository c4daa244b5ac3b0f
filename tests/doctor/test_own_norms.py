"""Norms that people write themselves: right ones are left alone, an evaluation that is not their training is found."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from steadynorm.doctor import Severity, diagnose, observe
from tests.support.doctor import batches
from tests.support.foreign import FROZEN, BatchNormAct2d


class Own(nn.Module):
    """Batch norm from its formula, as tutorials write it."""

    def __init__(self, channels: int, like: Any) -> None:
        super().__init__()
        self.gamma = nn.Parameter(like.weight.detach().clone().view(1, channels, 1, 1))
        self.beta = nn.Parameter(like.bias.detach().clone().view(1, channels, 1, 1))
        self.register_buffer("running_mean", like.running_mean.clone().view(1, channels, 1, 1))
        self.register_buffer("running_var", like.running_var.clone().view(1, channels, 1, 1))
        self.eps = like.eps

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            mean, var = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), keepdim=True, unbiased=False)
            with torch.no_grad():
                self.running_mean.lerp_(mean, 0.1)
                self.running_var.lerp_(var, 0.1)
        else:
            mean, var = self.running_mean, self.running_var
        return self.normalized(x, mean, var)

    def normalized(self, x: Tensor, mean: Tensor, var: Tensor) -> Tensor:
        return (x - mean) / (var + self.eps).sqrt() * self.gamma + self.beta


class Unbiased(Own):
    """Another variance and another eps: no fault."""

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            return self.normalized(x, x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), keepdim=True) + 1e-5)
        return self.normalized(x, self.running_mean, self.running_var)


class WithoutRoot(Own):
    """In evaluation alone."""

    def normalized(self, x: Tensor, mean: Tensor, var: Tensor) -> Tensor:
        return super().normalized(x, mean, var if self.training else var.square())


class WithoutShift(Own):
    """In evaluation alone."""

    def normalized(self, x: Tensor, mean: Tensor, var: Tensor) -> Tensor:
        return super().normalized(x, mean, var) - (0 if self.training else self.beta)


class PerSample(Own):
    """Another norm, whose running statistics mean something else."""

    def normalized(self, x: Tensor, mean: Tensor, var: Tensor) -> Tensor:
        return super().normalized(x, x.mean((2, 3), keepdim=True), x.var((2, 3), keepdim=True))


class Raises(WithoutRoot):
    """In training."""

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.running_mean.zero_()
            raise RuntimeError("no training")
        return super().forward(x)


class Subclass(nn.BatchNorm2d):
    """Overrides evaluation."""

    def forward(self, input: Tensor) -> Tensor:
        if self.training:
            return super().forward(input)
        return nn.functional.batch_norm(input, self.running_mean, self.running_var, eps=self.eps)


def with_own(model: Any, cls: type[Any]) -> Any:
    """Put it in the place of the second norm."""
    if issubclass(cls, nn.BatchNorm2d):
        own: Any = cls(8)
        own.load_state_dict(model[4].state_dict())
    else:
        own = cls(8, model[4])
    model[4] = own
    return model.eval()


class Activated(nn.BatchNorm2d):
    """Does more than batch norm, and in evaluation something else."""

    def forward(self, input: Tensor) -> Tensor:
        y = super().forward(input).sigmoid() * (1 + self.weight.view(-1, 1, 1))
        return y if self.training else y.clamp(max=1)


class Zero(nn.BatchNorm2d):
    """A weight that is kept about 0, in both modes."""

    def forward(self, input: Tensor) -> Tensor:
        statistics = (None, None) if self.training else (self.running_mean, self.running_var)
        return nn.functional.batch_norm(input, *statistics, self.weight - 1, self.bias, self.training).tanh()


class Ghost(nn.BatchNorm2d):
    """Normalizes parts of a batch."""

    def forward(self, input: Tensor) -> Tensor:
        parts = input.chunk(4) if self.training else [input]
        return 2 * torch.cat([super(Ghost, self).forward(part) for part in parts])


class Noisy(nn.BatchNorm2d):
    """Draws in training."""

    def forward(self, input: Tensor) -> Tensor:
        y = 2 * super().forward(input)
        return y * (1 + 0.5 * torch.rand_like(y)) if self.training else y


class Renorm(Own):
    """Trains by running statistics as well."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return 2 * self.normalized(x, self.running_mean, self.running_var)
        mean, var = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), keepdim=True, unbiased=False)
        ratio = ((var + self.eps) / (self.running_var + self.eps)).sqrt().clamp(0.5, 2)
        shift = ((mean - self.running_mean) / (self.running_var + self.eps).sqrt()).clamp(-1, 1)
        return 2 * (((x - mean) / (var + self.eps).sqrt() * ratio + shift) * self.gamma + self.beta)


@pytest.mark.parametrize("cls", [WithoutRoot, WithoutShift, Subclass, Activated])
def test_an_evaluation_that_is_not_the_training_is_found(model: Any, cls: type[Any]) -> None:
    (finding,) = diagnose(with_own(model, cls), batches()).of("backend-parity")
    assert (finding.layer, finding.severity) == ("4", Severity.WARNING)
    assert finding.problem.startswith("In evaluation its computation differs from that in training")
    assert "running_var + eps" in finding.remedy.advice


@pytest.mark.parametrize("cls", [Own, Unbiased, PerSample, Raises, Zero, Ghost, Noisy, Renorm])
def test_what_is_right_or_another_norm_is_left_alone(model: Any, cls: type[Any]) -> None:
    diagnosis = diagnose(with_own(model, cls), batches())
    assert diagnosis.of("backend-parity") == ()
    assert diagnosis.is_healthy or cls not in (Own, Unbiased)


@pytest.mark.parametrize("cls", [WithoutRoot, Raises])
def test_the_call_in_training_leaves_no_trace(model: Any, cls: type[Any]) -> None:
    with_own(model, cls)
    before = {name: each.clone() for name, each in model.state_dict().items()}
    diagnosis = diagnose(model, batches())
    assert all(torch.equal(before[name], each) for name, each in model.state_dict().items())
    assert not model[4].training
    assert diagnosis.of("statistics-moved-in-eval") == ()


@pytest.mark.parametrize(
    ("change", "found"),
    [(lambda y: 1.3 * y, True), (lambda y: y.clamp(max=0.5), True), (torch.relu, False), (lambda y: y + 1e-3, False)],
    ids=["scaled", "clamped", "activation", "small"],
)
@pytest.mark.parametrize("by", ["hook", "forward"])
def test_what_is_put_behind_a_norm_is_found_unless_it_is_an_activation(
    model: Any, change: Any, found: bool, by: str
) -> None:
    norm = model.eval()[4]
    if by == "hook":
        norm.register_forward_hook(lambda module, given, y: change(y))
    else:
        norm.forward = lambda x: change(type(norm).forward(norm, x))
    layers = [each.layer for each in diagnose(model, batches()).of("backend-parity")]
    assert layers == ["4"] * found


class Book(nn.Module):
    """As a textbook writes it: averages are plain tensors, which no state dict has."""

    def __init__(self, like: Any) -> None:
        super().__init__()
        shape = (1, -1, 1, 1)
        self.gamma = nn.Parameter(like.weight.detach().clone().view(shape))
        self.beta = nn.Parameter(like.bias.detach().clone().view(shape))
        self.moving_mean, self.moving_var = like.running_mean.view(shape), like.running_var.view(shape)

    def forward(self, x: Tensor) -> Tensor:
        mean, var = self.moving_mean, self.moving_var
        if torch.is_grad_enabled():
            mean, var = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), keepdim=True, unbiased=False)
            self.moving_mean = (0.9 * self.moving_mean + 0.1 * mean).detach()
            self.moving_var = (0.9 * self.moving_var + 0.1 * var).detach()
        return self.gamma * (x - mean) / (var + 1e-5).sqrt() + self.beta


def test_averages_that_no_file_has_are_found_by_gammas_that_are_trained(model: Any) -> None:
    model[1], model[4] = Book(model[1]), Book(model[4])
    assert diagnose(model, batches()).of("statistics-at-init") == ()
    for each in (model[1], model[4]):
        each.moving_mean, each.moving_var = torch.zeros(1, 8, 1, 1), torch.ones(1, 8, 1, 1)
    for found in (diagnose(model), diagnose(model, batches())):
        named = [(each.layer, each.severity) for each in found.of("statistics-at-init")]
        assert named == [("1", Severity.ERROR), ("4", Severity.ERROR)]


class OfAll(nn.Module):
    """Normalizes all values alike, as values and returns are in reinforcement learning."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("running_mean", torch.tensor(0.01))
        self.register_buffer("running_var", torch.tensor(1.01))

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.running_mean) / (self.running_var + 1e-5).sqrt()


def test_running_estimates_may_be_single_numbers(model: Any) -> None:
    model = nn.Sequential(OfAll(), *model)
    diagnosis = diagnose(model, batches(), checkpoint=model.state_dict(), reference=batches(seed=2))
    assert [(each.check, each.layer) for each in diagnosis if each.severity >= Severity.WARNING] == []
    assert [each.layer for each in diagnosis.of("lossy-subclass")] == ["0"]


def trained_by_sample(tracks: bool) -> tuple[nn.Sequential, list[tuple[Tensor, Tensor]]]:
    """Train an instance norm on images of any contrast, with running statistics or without."""
    torch.manual_seed(0)
    norm = nn.InstanceNorm2d(8, affine=True, track_running_stats=tracks)
    model = nn.Sequential(nn.Conv2d(1, 8, 3), norm, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2))
    optimizer = torch.optim.SGD(model.parameters(), 0.3, momentum=0.9)
    contrast = torch.logspace(-1, 1, 32).view(-1, 1, 1, 1)
    given = [(x * contrast, y) for x, y in batches(60)]
    for x, y in given:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    return model.eval(), given[:8]


def test_an_instance_norm_that_evaluates_by_averages_is_named_with_its_cost() -> None:
    model, given = trained_by_sample(tracks=True)
    assert diagnose(model, given).of("train-eval-gap") == ()  # its averages cost nothing here
    with torch.no_grad():
        model[1].running_var.mul_(100)
        averaged = sum(float(nn.functional.cross_entropy(model(x), y)) for x, y in given) / 8
        other = copy.deepcopy(model)
        other[1].train()
        alone = sum(float(nn.functional.cross_entropy(other(x), y)) for x, y in given) / 8
    (found,) = diagnose(model, given).of("train-eval-gap")
    assert (found.layer, found.severity) == ("1", Severity.WARNING) and "instance norms" in found.problem
    assert found.cost is not None and found.cost.value == pytest.approx(averaged - alone, rel=1e-3)
    assert diagnose(*trained_by_sample(tracks=False)).of("train-eval-gap") == ()


class Styled(nn.InstanceNorm1d):
    """As style transfer has it: with a scale that comes from elsewhere."""

    def forward(self, x: Tensor, scale: Any = None) -> Tensor:
        return super().forward(x) * (1 if scale is None else scale)


class Doubled(nn.InstanceNorm1d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 2


class Calling(nn.Module):
    def __init__(self, norm: nn.Module, call: Any) -> None:
        super().__init__()
        self.norm, self.call = norm, call

    def forward(self, x: Tensor) -> Tensor:
        return self.call(self.norm, x)  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("kind", "call"),
    [
        (nn.InstanceNorm1d, lambda norm, x: norm(input=x)),
        (nn.InstanceNorm1d, lambda norm, x: torch.stack([norm(each) for each in x])),
        (Styled, lambda norm, x: norm(x, 2.0)),
    ],
    ids=["by keyword", "sample by sample", "own forward"],
)
def test_an_instance_norm_is_tried_as_it_is_called(kind: Any, call: Any) -> None:
    norm = kind(4, affine=True, track_running_stats=True)
    with torch.no_grad():
        norm.running_var.fill_(100.0)
    x = torch.randn(8, 16, 4, 9, generator=torch.Generator().manual_seed(0))
    model = Calling(norm, call).eval()
    evidence = observe(model, list(x), loss=lambda y, _: y.square().mean())
    assert evidence.batches is not None
    with torch.no_grad():
        right = [float(call(copy.deepcopy(norm).train(), each).square().mean()) for each in x]
    assert evidence.batches.by_sample == pytest.approx(right)
    assert bool((norm.running_var == 100).all()) and not norm.training


def test_an_instance_norm_need_not_evaluate_as_it_trains() -> None:
    model = nn.Sequential(nn.Conv1d(3, 4, 1), Doubled(4, track_running_stats=True)).eval()
    assert diagnose(model, [torch.randn(16, 3, 9)]).of("backend-parity") == ()


def test_an_instance_norm_of_single_values_is_scored_as_it_is() -> None:
    model = nn.Sequential(nn.Conv1d(3, 4, 9), nn.InstanceNorm1d(4, track_running_stats=True), nn.Flatten())
    given = [(x, torch.arange(16) % 4) for x in torch.randn(4, 16, 3, 9)]
    evidence = observe(model.eval(), given)
    assert evidence.batches is not None and len(evidence.batches.evaluation) == 4
    assert all(math.isnan(each) for each in evidence.batches.by_sample)


def test_a_frozen_norm_that_widens_its_input_is_tried_so(model: Any) -> None:
    frozen: Any = FROZEN["torchvision"](8)
    frozen.weight.uniform_(0.5, 2)
    mixed = nn.Sequential(model[0].half(), frozen, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2))
    evidence = observe(mixed.eval(), [(x.half(), y) for x, y in batches()])
    assert evidence.batches is not None and len(evidence.batches.of_constants) == 8


class Folded(nn.Module):
    """As maskrcnn-benchmark's, without an eps; or called as torchvision's, with another argument."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.linspace(0.5, 2, channels))
        self.register_buffer("bias", torch.linspace(-1, 1, channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Tensor, times: float = 1.0) -> Tensor:
        w, b, mean, var = (
            getattr(self, name).view(1, -1, 1, 1) for name in ("weight", "bias", "running_mean", "running_var")
        )
        return ((x - mean) * var.rsqrt() * w + b) * times


def test_a_frozen_norm_is_tried_as_it_is_called() -> None:
    norm, conv = Folded(4), nn.Conv2d(1, 4, 3)
    model = nn.Sequential(conv, Calling(norm, lambda norm, x: norm(x) + norm(x=x, times=2.0) + norm(x, 3.0)))
    given = batches()
    evidence = observe(model.eval(), given, loss=lambda y, _: y.square().mean())
    assert evidence.batches is not None
    with torch.no_grad():
        own = [functional.batch_norm(conv(x), None, None, norm.weight, norm.bias, training=True) for x, _ in given]
    assert evidence.batches.of_constants == pytest.approx([float((6 * y).square().mean()) for y in own], rel=1e-4)


@pytest.mark.parametrize("kind", [FROZEN["torchvision"], BatchNormAct2d])
def test_the_argument_of_a_norm_may_have_any_name(model: Any, kind: Any) -> None:
    model[1] = Calling(kind(8), lambda norm, x: norm(x=x))
    evidence = observe(model.eval(), batches())
    assert evidence.batches is not None and len(evidence.batches.sightings["1.norm"]) == 8
    assert len(evidence.batches.by_batch) == 8


@pytest.mark.parametrize("eps", [1e-5, 0.0])
@pytest.mark.parametrize(("folded", "severity"), [(True, Severity.NOTE), (False, Severity.ERROR)])
def test_statistics_may_be_in_the_weights_of_all_frozen_norms(
    model: Any, folded: bool, severity: Severity, eps: float
) -> None:
    """As in detectron's files; where they are lost instead, batches with labels say so."""
    for at in (1, 4):
        scale = model[at].weight.detach() * (model[at].running_var + model[at].eps).rsqrt()
        shift = model[at].bias.detach() - model[at].running_mean * scale
        frozen: Any = FROZEN["torchvision"](8)
        frozen.eps = eps
        frozen.weight.copy_(scale * (1 + frozen.eps) ** 0.5 if folded else model[at].weight.detach())
        frozen.bias.copy_(shift if folded else model[at].bias.detach())
        model[at] = frozen
    for given, expected in ((None, Severity.WARNING), (batches(), severity)):
        found = diagnose(model, given).of("statistics-at-init")
        assert [(each.layer, each.severity) for each in found] == [("1", expected), ("4", expected)]
