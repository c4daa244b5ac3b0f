"""Healthy variants of both halves' networks: recipes of training, and ways of use."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrize

from benchmarks.doctor.healthy.registry import as_it_is, both, in_training, norms_evaluate_
from benchmarks.doctor.subject import Case, Norm, Subject, WithTarget, fed_by, last_linear, norms_of, put, shapes_of
from benchmarks.doctor.training import fit_, step_
from steadynorm.surgery import freeze_, recalibrate_

# Training.


@both
def _a_head_fine_tuned_on_a_network_that_evaluates(subject: Subject) -> Case:
    """A linear probe done right: all but the classifier has no gradient, and its norms evaluate while it trains."""
    subject.model.requires_grad_(False)
    _, last = last_linear(subject.model)
    last.requires_grad_(True)
    optimizer = torch.optim.SGD(last.parameters(), subject.rate / 10, momentum=0.9)
    subject.model.eval()
    for x, labels in subject.labelled(64, 40):
        step_(subject.model, optimizer, x, labels)
    norms_evaluate_(subject)
    return as_it_is(subject)


class _Standardized(nn.Module):
    """Weight standardization (Qiao et al. 2019, arXiv 1903.10520)."""

    def forward(self, weight: Tensor) -> Tensor:
        dims = tuple(range(1, weight.dim()))
        centred = weight - weight.mean(dims, keepdim=True)
        return centred / (centred.square().sum(dims, keepdim=True) + 1e-5).sqrt()


@both
def _convolutions_with_standardized_weights(subject: Subject) -> Case | None:
    """Those in front of a norm, trained further at the network's own rate."""
    names = [name for name in dict(fed_by(subject.model, subject.inputs(8, 1)[0])) if name]
    layers = [subject.model.get_submodule(name) for name in names]
    wide = [each for each in layers if isinstance(each, nn.Conv1d | nn.Conv2d) and each.groups == 1]
    for layer in wide:
        parametrize.register_parametrization(layer, "weight", _Standardized())
    if not wide:
        return None
    recalibrate_(subject.model, subject.inputs(64, 20))
    fit_(subject.model, subject.labelled(64, 90), rate=subject.rate / 5)
    return as_it_is(subject)


@both
def _half_of_the_norms_by_groups(subject: Subject) -> Case:
    """Every second norm of maps becomes a group norm of four groups, and training goes on."""
    shapes = shapes_of(subject.model, subject.inputs(2, 1)[0])
    plain = [
        (name, norm)
        for name, norm in norms_of(subject.model)
        if type(norm) in (nn.BatchNorm1d, nn.BatchNorm2d) and len(shapes[name]) > 2 and norm.num_features % 4 == 0
    ]
    for name, norm in plain[::2]:
        new = nn.GroupNorm(4, norm.num_features)
        new.load_state_dict({"weight": norm.weight, "bias": norm.bias})
        put(subject.model, name, new)
    fit_(subject.model, subject.labelled(64, 120), rate=subject.rate / 4)
    return as_it_is(subject)


@both
def _trained_on_labels_of_which_a_third_is_wrong(subject: Subject) -> Case:
    """At two rates, the second one small, so that statistics are those of the last weights."""
    batches = []
    for x, labels in subject.labelled(64, 120):
        wrong = torch.tensor([subject.draw.random() < 1 / 3 for _ in labels])
        batches.append((x, torch.where(wrong, labels.roll(1), labels)))
    fit_(subject.model, batches[:60], rate=subject.rate / 50)
    fit_(subject.model, batches[60:], rate=subject.rate / 1000)
    return in_training(subject)


@both
def _gradients_clipped_at_a_large_rate(subject: Subject) -> Case:
    optimizer = torch.optim.SGD(subject.model.parameters(), subject.rate, momentum=0.9, weight_decay=5e-4)
    parameters = list(subject.model.parameters())

    def clip(*_: object) -> None:
        nn.utils.clip_grad_norm_(parameters, 0.5)

    optimizer.register_step_pre_hook(clip)
    fit_(subject.model, subject.labelled(64, 60), rate=subject.rate, optimizer=optimizer)
    for group in optimizer.param_groups:
        group["lr"] = subject.rate / 50
    fit_(subject.model, subject.labelled(64, 60), rate=subject.rate / 50, optimizer=optimizer)
    return as_it_is(subject)


@both
def _samples_mixed_in_pairs(subject: Subject) -> Case:
    """Mixup (Zhang et al. 2018, arXiv 1710.09412) in a fine-tuning, then as many steps without it, as YOLOX ends."""
    mixed = []
    for x, labels in subject.labelled(64, 50):
        share = subject.draw.betavariate(0.4, 0.4)
        mixed.append((share * x + (1 - share) * x.flip(0), labels if share > 0.5 else labels.flip(0)))
    fit_(subject.model, [*mixed, *subject.labelled(64, 50)], rate=subject.rate / 20)
    return as_it_is(subject)


@both
def _a_student_of_soft_labels(subject: Subject) -> Case:
    """Distilled from its former self; the teacher is gone."""
    teacher = copy.deepcopy(subject.model).eval()
    optimizer = torch.optim.SGD(subject.model.parameters(), subject.rate / 20, momentum=0.9)
    subject.model.train()
    for x in subject.inputs(64, 80):
        with torch.no_grad():
            wanted = (teacher(x) / 2).softmax(1)
        optimizer.zero_grad()
        functional.cross_entropy(subject.model(x) / 2, wanted).backward()
        optimizer.step()
    subject.model.eval()
    return as_it_is(subject)


@both
def _trained_on_a_long_tail_that_is_shuffled(subject: Subject) -> Case:
    """Class 0 is ten times as frequent as class 9 in every batch, in training and in evaluation."""

    def tailed(x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        kept = torch.tensor([subject.draw.random() < 10 ** (-int(label) / 9) for label in labels])
        return x[kept], labels[kept]

    x, labels = tailed(*(torch.cat(each) for each in zip(*subject.labelled(64, 120), strict=True)))
    whole = len(x) // 64 * 64  # a last batch of one sample could not be trained on
    fit_(subject.model, zip(x[:whole].split(64), labels[:whole].split(64), strict=True), rate=subject.rate / 20)
    x, labels = tailed(*subject.data.validation)
    return Case(model=subject.model.train(), batches=list(zip(x.split(64), labels.split(64), strict=True))[:4])


@both
def _tiny_batches_accumulated_with_frozen_norms(subject: Subject) -> Case:
    freeze_(subject.model)
    fit_(subject.model, subject.labelled(2, 60), rate=subject.rate / 500)
    subject.model.train()
    return Case(model=subject.model, batches=subject.data.batches(2), options={"accumulation": 32})


@both
def _two_workers_with_64_samples_each(subject: Subject) -> Case:
    subject.model.train()
    return Case(model=subject.model, batches=subject.data.batches(), options={"world_size": 2})


# Use.


@both
def _four_views_of_each_sample_in_a_batch(subject: Subject) -> Case:
    """Augmentation at test time: as it is, moved by a little to both sides, and with a little noise."""
    generator = torch.Generator().manual_seed(3)
    batches = []
    for x, labels in subject.data.batches(16):
        noisy = x + 0.05 * torch.randn(x.shape, generator=generator)
        batches.append((torch.cat((x, x.roll(1, -1), x.roll(-1, -1), noisy)), labels.repeat(4)))
    return Case(model=subject.model, batches=batches)


@both
def _served_one_by_one(subject: Subject) -> Case:
    return as_it_is(subject, 1)


@both
def _recalibrated_for_larger_inputs(subject: Subject) -> Case | None:
    """As Touvron et al. 2019 (arXiv 1906.06423) end; a quarter larger on each side."""

    def larger(x: Tensor) -> Tensor:
        return functional.interpolate(x, scale_factor=1.25, mode="bilinear" if x.dim() == 4 else "linear")

    try:
        recalibrate_(subject.model, [larger(x) for x in subject.inputs(64, 20)])
    except (RuntimeError, ValueError):  # a head or positions of fixed size
        return None
    batches = [(larger(x), labels) for x, labels in subject.data.batches()]
    return Case(model=subject.model, batches=batches, feed=larger)


@both
def _recalibrated_for_a_darker_camera(subject: Subject) -> Case:
    def dark(x: Tensor) -> Tensor:
        return 0.6 * x - 0.7

    recalibrate_(subject.model, [dark(x) for x in subject.inputs(64, 40)])
    return Case(model=subject.model, batches=[(dark(x), labels) for x, labels in subject.data.batches()], feed=dark)


@both
def _a_target_network_with_averaged_buffers(subject: Subject) -> Case:
    """Polyak averages of parameters and estimates alike, both networks in one model."""
    target = copy.deepcopy(subject.model)

    @torch.no_grad()
    def follow() -> None:
        now = subject.model.state_dict()
        for key, kept in target.state_dict().items():
            if kept.is_floating_point():
                kept.lerp_(now[key], 0.1)
            else:
                kept.copy_(now[key])

    fit_(subject.model, subject.labelled(64, 80), rate=subject.rate / 20, after=follow)
    return Case(model=WithTarget(subject.model, target).eval(), batches=subject.data.batches())


class _ByDomain(nn.Module):
    """A norm for each domain, registered; one is in use."""

    def __init__(self, norm: Norm) -> None:
        super().__init__()
        self.norms = nn.ModuleDict({"source": norm, "target": copy.deepcopy(norm)})

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norms["source"](x)
        return y


@both
def _norms_of_two_domains_in_a_module_dict(subject: Subject) -> Case:
    for name, norm in norms_of(subject.model):
        put(subject.model, name, _ByDomain(norm))
    return as_it_is(subject)


@both
def _hooks_that_only_look(subject: Subject) -> Case:
    for _, norm in norms_of(subject.model):
        norm.register_forward_hook(_look)
    return in_training(subject)


@torch.no_grad()
def _look(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    module.seen = (float(inputs[0].mean()), float(output.std()))  # type: ignore[assignment]


@both
def _ranks_that_are_alike(subject: Subject) -> Case:
    states = [{key: value.clone() for key, value in subject.model.state_dict().items()} for _ in range(4)]
    return Case(model=subject.model, batches=subject.data.batches(), options={"ranks": states})
