"""Training: what is done between two steps, or around the network, while it trains."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from benchmarks.doctor.faults.registry import GAP, case, tuning
from benchmarks.doctor.subject import Case, Subject, fed_by, norms_of, put
from benchmarks.doctor.training import fit_, train_


@tuning("statistics-horizon", *GAP, repairable=True, damages=True, costs=True)
def _a_short_training_with_a_tiny_momentum(subject: Subject) -> Case:
    """0.001, for a recipe of many steps, in a fine-tuning of 150."""
    for _, norm in norms_of(subject.model):
        norm.momentum = 0.001
    fit_(subject.model, subject.labelled(64, 150), rate=subject.rate / 2)
    return case(subject)


@tuning("statistics-horizon", *GAP, repairable=True, damages=True, costs=True)
def _an_average_over_the_whole_training(subject: Subject) -> Case:
    """``momentum=None`` from the first step on: half of the average is of weights that are long gone."""
    for module in subject.model.modules():
        if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.BatchNorm1d | nn.BatchNorm2d):
            module.reset_parameters()
    for _, norm in norms_of(subject.model):
        norm.momentum = None
    train_(subject.model, subject.data, seed=5, epochs=1, rate=subject.rate)
    return case(subject)


@tuning(*GAP, repairable=True, damages=True, costs=True)
def _attacks_made_in_training_mode(subject: Subject) -> Case:
    """Each step looks for an adversarial input with the network in training mode, so that its forwards are counted."""
    model = subject.model
    for x, labels in subject.labelled(64, 60):
        fit_(model, [(x, labels)], rate=subject.rate / 50)
        model.train()
        attacked = x.clone().requires_grad_()
        for _ in range(2):
            (slope,) = torch.autograd.grad(nn.functional.cross_entropy(model(attacked), labels), attacked)
            attacked = (attacked + 0.3 * slope.sign()).detach().requires_grad_()
        model.zero_grad()
        with torch.no_grad():
            model(attacked)
    model.eval()
    return case(subject)


@tuning("frozen-affine-live-statistics", consequences=frozenset({"mixed-modes"}))
def _a_freeze_that_forgets_the_norms_of_vectors(subject: Subject) -> Case | None:
    """``isinstance(module, nn.BatchNorm2d)`` is asked, and the head's norm is another class."""
    flat = [name for name, norm in norms_of(subject.model) if isinstance(norm, nn.BatchNorm1d)]
    if not flat or len(flat) == len(norms_of(subject.model)):
        return None
    for parameter in subject.model.parameters():
        parameter.requires_grad_(False)
    [module for module in subject.model.modules() if isinstance(module, nn.Linear)][-1].requires_grad_(True)
    subject.model.train()
    for module in subject.model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    return case(subject, *flat)


@tuning(*GAP, repairable=True, costs=True)
def _statistics_of_the_last_task(subject: Subject) -> Case:
    """Weights are frozen for the old tasks' sake, and the new one, two of the classes, moves the statistics."""
    x, labels = subject.data.train
    rows = (labels < 2).nonzero().flatten()[: 64 * 40]
    subject.follow_(list(x[rows].split(64)))
    return case(subject)


@tuning("decayed-affine", consequences=GAP | {"dead-channel"}, costs=True)
def _the_decay_of_a_transformers_recipe(subject: Subject) -> Case:
    """0.05 belongs to AdamW, which scales it by a rate a hundred times smaller; here SGD decays γ and β by it too."""
    optimizer = torch.optim.SGD(subject.model.parameters(), subject.rate, momentum=0.9, weight_decay=0.05)
    fit_(subject.model, subject.labelled(64, 100), rate=subject.rate, optimizer=optimizer)
    subject.model.train()
    return case(subject, optimizer=optimizer)


@tuning("dropout-before-norm", *GAP, repairable=True, damages=True, costs=True)
def _dropout_before_the_convolution_of_a_norm(subject: Subject) -> Case | None:
    """The convolution passes on that the variance is larger in training (Li et al. 2019, arXiv 1801.05134)."""
    pairs = fed_by(subject.model, subject.inputs(8, 1)[0])
    pairs = [(layer, norm) for layer, norm in pairs if not _is_first(subject.model, layer)]
    if not pairs:
        return None
    name, norm = subject.draw.choice(pairs)
    put(subject.model, name, nn.Sequential(nn.Dropout(0.5), subject.model.get_submodule(name)))
    fit_(subject.model, subject.labelled(64, 90), rate=subject.rate / 10)
    return case(subject, norm)


def _is_first(model: nn.Module, name: str) -> bool:
    weight = model.get_submodule(name).weight
    return isinstance(weight, Tensor) and weight.shape[1] == 3


class _TwoKinds(nn.Module):
    """One backbone for a colour and an infrared picture of the same thing; their logits are averaged."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, x: Tensor) -> Tensor:
        infrared = (2 - 1.5 * x.mean(1, keepdim=True)).expand_as(x)
        logits: Tensor = (self.backbone(x) + self.backbone(infrared)) / 2
        return logits


@tuning("reused-norm", *GAP, consequences=frozenset({"outlier-statistics"}), costs=True)
def _one_backbone_for_two_kinds_of_input(subject: Subject) -> Case:
    """Each call is normalized by its own batch in training, and by a mean of both in evaluation."""
    model = _TwoKinds(subject.model)
    fit_(model, subject.labelled(64, 60), rate=subject.rate / 10)
    return Case(model=model, batches=subject.data.batches())


class _Neck(nn.Sequential):
    """A batch norm of vectors in front of the classifier."""


@tuning(
    "values-per-channel",
    "statistics-noise",
    consequences=GAP | {"dropout-before-norm", "reused-norm", "batch-dependence", "mixed-modes"},
)
def _a_neck_of_vectors_with_batches_of_four(subject: Subject) -> Case:
    """A network that trains well in small batches, thanks to its maps, gets a norm that has four values a channel."""
    name, last = [each for each in subject.model.named_modules() if isinstance(each[1], nn.Linear)][-1]
    assert isinstance(last, nn.Linear)
    put(subject.model, name, _Neck(nn.BatchNorm1d(last.in_features), last))
    fit_(subject.model, subject.labelled(4, 200), rate=subject.rate / 100)
    subject.model.train()
    return Case(model=subject.model, batches=subject.data.batches(4), layers=frozenset({f"{name}.0"}))


@tuning("rank-divergence", consequences=GAP | {"checkpoint-diff"}, repairable=True)
def _ranks_with_shards_of_their_own(subject: Subject) -> Case:
    """Without the broadcast of buffers each rank keeps what its shard, sorted by class, gave; rank 0 is saved."""
    x, labels = subject.data.train
    shards = labels.argsort(stable=True).chunk(4)
    models = [copy.deepcopy(subject.model) for _ in shards]
    for model, shard in zip(models, shards, strict=True):
        model.train()
        with torch.no_grad():
            for _ in range(30):
                model(x[shard[torch.tensor([subject.draw.randrange(len(shard)) for _ in range(32)])]])
        model.eval()
    states = [model.state_dict() for model in models]
    return Case(model=models[0], batches=subject.data.batches(), options={"ranks": states})
