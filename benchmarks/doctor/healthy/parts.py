"""Healthy variants by parts and feeds: other layers, adapters, files, balanced batches, views."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from benchmarks.doctor.healthy.registry import as_it_is, both, in_training, norms_evaluate_
from benchmarks.doctor.subject import Case, Norm, Subject, last_linear, norms_of, put, shapes_of
from benchmarks.doctor.training import fit_, step_
from steadynorm.surgery import recalibrate_

# Parts.


class _Halves(nn.Module):
    """Instance norm on the first half of the channels, batch norm on the second (IBN-Net, Pan et al. 2018)."""

    def __init__(self, norm: Norm, dim: int) -> None:
        super().__init__()
        half = norm.num_features // 2
        rest = norm.num_features - half
        if dim == 3:
            self.instance: nn.Module = nn.InstanceNorm1d(half, affine=True)
            self.batch: nn.Module = nn.BatchNorm1d(rest)
        else:
            self.instance, self.batch = nn.InstanceNorm2d(half, affine=True), nn.BatchNorm2d(rest)
        self.cut = half
        self.instance.load_state_dict({"weight": norm.weight[:half], "bias": norm.bias[:half]})
        self.batch.load_state_dict({"weight": norm.weight[half:], "bias": norm.bias[half:]}, strict=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat((self.instance(x[:, : self.cut]), self.batch(x[:, self.cut :])), 1)


@both
def _half_of_the_channels_by_instance(subject: Subject) -> Case | None:
    """In the first norm of maps, trained further."""
    shapes = shapes_of(subject.model, subject.inputs(2, 1)[0])
    maps = [(name, norm) for name, norm in norms_of(subject.model) if len(shapes.get(name, ())) > 2]
    if not maps:
        return None
    name, norm = maps[0]
    put(subject.model, name, _Halves(norm, len(shapes[name])))
    recalibrate_(subject.model, subject.inputs(64, 20))
    fit_(subject.model, [*subject.labelled(64, 100)], rate=subject.rate / 10)
    fit_(subject.model, [*subject.labelled(64, 40)], rate=subject.rate / 100)
    return as_it_is(subject)


class _Steps(nn.Module):
    """One layer that is called twice, with a norm of its own for each call."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mix = nn.Linear(width, width, bias=False)
        self.norms = nn.ModuleList(nn.BatchNorm1d(width) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        for norm in self.norms:
            x = x + functional.relu(norm(self.mix(x)))
        return x


@both
def _a_recurrent_layer_with_norms_of_its_own_for_each_step(subject: Subject) -> Case:
    """In front of the classifier, as Cooijmans et al. 2017 (arXiv 1603.09025) ask."""
    name, last = last_linear(subject.model)
    put(subject.model, name, nn.Sequential(_Steps(last.in_features), last))
    fit_(subject.model, subject.labelled(64, 100), rate=subject.rate / 10)
    fit_(subject.model, subject.labelled(64, 40), rate=subject.rate / 100)
    return as_it_is(subject)


@both
def _dropout_behind_the_last_norm(subject: Subject) -> Case:
    name, last = last_linear(subject.model)
    put(subject.model, name, nn.Sequential(nn.Dropout(0.3), last))
    fit_(subject.model, subject.labelled(64, 80), rate=subject.rate / 50)
    return in_training(subject)


@both
def _a_norm_of_inputs_without_weight_and_bias(subject: Subject) -> Case:
    """In the place of a mean and deviation that one works out before."""
    first = (nn.BatchNorm1d if subject.data.train[0].dim() == 3 else nn.BatchNorm2d)(3, affine=False)
    model = nn.Sequential(first, subject.model)
    fit_(model, subject.labelled(64, 100), rate=subject.rate / 50)
    return Case(model=model, batches=subject.data.batches())


class _Checkpointed(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = checkpoint(self.inner, x, use_reentrant=False)
        return y


@both
def _a_checkpointed_part_without_norms(subject: Subject) -> Case:
    name, last = last_linear(subject.model)
    put(subject.model, name, _Checkpointed(last))
    return in_training(subject)


class _Adapted(nn.Module):
    """A linear layer that is frozen, and a product of two small matrices that is not (Hu et al. 2021)."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.linear = linear.requires_grad_(False)
        self.down, self.up = nn.Linear(linear.in_features, 4, bias=False), nn.Linear(4, linear.out_features, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.linear(x) + self.up(self.down(x))
        return y


@both
def _an_adapter_on_a_frozen_network_whose_norms_evaluate(subject: Subject) -> Case:
    subject.model.requires_grad_(False)
    name, last = last_linear(subject.model)
    put(subject.model, name, _Adapted(last))
    optimizer = torch.optim.AdamW([each for each in subject.model.parameters() if each.requires_grad], 1e-3)
    for x, labels in subject.labelled(64, 40):
        step_(subject.model, optimizer, x, labels)
    norms_evaluate_(subject)
    return Case(model=subject.model, batches=subject.data.batches(), options={"optimizer": optimizer})


# Numbers.


@both
def _eps_and_momentum_of_a_port_everywhere(subject: Subject) -> Case:
    """0.001 and 0.01, as timm's ports from TensorFlow have them, and trained with."""
    for _, norm in norms_of(subject.model):
        norm.eps, norm.momentum = 1e-3, 0.01
    fit_(subject.model, subject.labelled(64, 150), rate=subject.rate / 100)
    return as_it_is(subject)


@both
def _the_first_step_of_a_warm_up(subject: Subject) -> Case:
    """The schedule begins at a rate of 0, for all parameters alike."""
    plain = [each for each in subject.model.parameters() if each.dim() < 2]
    others = [each for each in subject.model.parameters() if each.dim() >= 2]
    groups = [{"params": others, "weight_decay": 5e-4}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.SGD(groups, subject.rate, momentum=0.9)
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, step / 100))
    subject.model.train()
    return Case(model=subject.model, batches=subject.data.batches(), options={"optimizer": optimizer})


@both
def _a_file_of_a_whole_run(subject: Subject) -> Case:
    """Nested, with a prefix of several devices, and other things beside the weights."""
    state = {f"module.{name}": tensor.clone() for name, tensor in subject.model.state_dict().items()}
    whole = {"epoch": 4, "state_dict": state, "best": 0.7}
    return Case(model=copy.deepcopy(subject.model), batches=subject.data.batches(), options={"checkpoint": whole})


# Batches.


@both
def _as_many_of_each_class_in_every_batch(subject: Subject) -> Case:
    """A balanced sampler: sixty samples, in each of which the classes come by turns."""
    x, labels = subject.data.validation
    members = [(labels == label).nonzero().flatten()[:36] for label in range(10)]
    rows = torch.stack([each[: min(map(len, members))] for each in members], 1).flatten()
    batches = list(zip(x[rows].split(60), labels[rows].split(60), strict=True))
    return Case(model=subject.model.train(), batches=[each for each in batches if len(each[1]) == 60])


@both
def _two_mild_views_of_each_sample(subject: Subject) -> Case:
    """As for a contrastive loss, one view behind the other, drawn alike; it was trained on such."""
    generator = torch.Generator().manual_seed(3)

    def view(x: Tensor) -> Tensor:
        return x.roll(subject.draw.randrange(-3, 4), -1) + 0.1 * torch.randn(x.shape, generator=generator)

    def views(batches: list[tuple[Tensor, Tensor]]) -> list[tuple[Tensor, Tensor]]:
        return [(torch.cat((view(x), view(x))), labels.repeat(2)) for x, labels in batches]

    fit_(subject.model, views(subject.labelled(32, 100)), rate=subject.rate / 50)
    return Case(model=subject.model.train(), batches=views(subject.data.batches(32)))
