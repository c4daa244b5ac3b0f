"""Structure: custom norms, modules after a norm, and modules that mix samples without one.

The doctor missed these among 100 kinds that were written from the table of checks alone, in a dense network on signals
and a transformer with batch norm.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from benchmarks.doctor.faults.registry import BATCH, GAP, case, tuning
from benchmarks.doctor.subject import Case, Subject, norms_of, put, shapes_of
from benchmarks.doctor.training import fit_


@tuning("backend-parity", consequences=GAP)
def _a_hook_that_was_for_an_experiment(subject: Subject) -> Case:
    name, norm = subject.one_norm()
    norm.register_forward_hook(lambda module, given, y: 1.5 * y)
    return case(subject, name)


class _Textbook(nn.Module):
    """Batch norm from its formula, its estimates in plain tensors; evaluation forgets the shift."""

    def __init__(self, norm: nn.BatchNorm1d | nn.BatchNorm2d, dimensions: int) -> None:
        super().__init__()
        shape = (1, norm.num_features, *[1] * (dimensions - 2))
        self.gamma, self.beta = (nn.Parameter(each.detach().view(shape).clone()) for each in (norm.weight, norm.bias))
        assert norm.running_mean is not None and norm.running_var is not None
        self.moving_mean, self.moving_var = (each.view(shape).clone() for each in (norm.running_mean, norm.running_var))

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return self.gamma * (x - self.moving_mean) / (self.moving_var + 1e-5).sqrt()
        over = [0, *range(2, x.dim())]
        mean, var = x.mean(over, keepdim=True), x.var(over, keepdim=True, unbiased=False)
        self.moving_mean = (0.9 * self.moving_mean + 0.1 * mean).detach()
        self.moving_var = (0.9 * self.moving_var + 0.1 * var).detach()
        return self.gamma * (x - mean) / (var + 1e-5).sqrt() + self.beta


@tuning("backend-parity", "train-eval-gap", consequences=frozenset({"needs-recalibration"}))
def _a_textbooks_norm_without_its_shift_in_evaluation(subject: Subject) -> Case:
    shapes = shapes_of(subject.model, subject.inputs(2, 1)[0])
    name, norm = subject.draw.choice([each for each in norms_of(subject.model) if each[0] in shapes])
    put(subject.model, name, _Textbook(norm, len(shapes[name])).eval())
    return case(subject, name)


class _ByHand(nn.Module):
    """Standardises each channel over the batch, without running statistics."""

    def __init__(self, norm: nn.BatchNorm1d | nn.BatchNorm2d) -> None:
        super().__init__()
        self.weight, self.bias = norm.weight, norm.bias

    def forward(self, x: Tensor) -> Tensor:
        over, shape = [0, *range(2, x.dim())], (1, -1, *[1] * (x.dim() - 2))
        y = (x - x.mean(over, keepdim=True)) / (x.std(over, keepdim=True) + 1e-5)
        return y * self.weight.view(shape) + self.bias.view(shape)


@tuning("batch-dependence", consequences=BATCH)
def _a_norm_by_hand_that_evaluates_by_the_batch(subject: Subject) -> Case:
    name, norm = subject.one_norm()
    put(subject.model, name, _ByHand(norm))
    return case(subject, name)


class _Attention(nn.Module):
    """A norm, and an attention over the places of its map."""

    def __init__(self, norm: nn.Module, channels: int) -> None:
        super().__init__()
        self.norm, self.attention = norm, nn.MultiheadAttention(channels, 1)  # batch_first is forgotten

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm(x)
        places = y.flatten(2).transpose(1, 2)
        mixed: Tensor = self.attention(places, places, places)[0]
        return y + mixed.transpose(1, 2).reshape(y.shape)


@tuning("batch-dependence", consequences=BATCH | GAP)
def _an_attention_that_takes_the_batch_for_the_sequence(subject: Subject) -> Case | None:
    shapes = {
        name: shape for name, shape in shapes_of(subject.model, subject.inputs(2, 1)[0]).items() if len(shape) > 2
    }
    if not shapes:
        return None
    name = list(shapes)[-1]
    put(subject.model, name, _Attention(subject.model.get_submodule(name), shapes[name][1]))
    fit_(subject.model, subject.labelled(64, 20), rate=subject.rate / 20)
    return case(subject, f"{name}.attention")


@tuning("frozen-affine-live-statistics")
def _a_backbone_that_the_optimizer_leaves_out(subject: Subject) -> Case:
    """Nothing has ``requires_grad=False``: only the head's parameters are given to the optimizer."""
    last = [module for module in subject.model.modules() if isinstance(module, nn.Linear)][-1]
    subject.model.train()
    names = (name for name, _ in norms_of(subject.model))
    return case(subject, *names, optimizer=torch.optim.SGD(last.parameters(), subject.rate))
