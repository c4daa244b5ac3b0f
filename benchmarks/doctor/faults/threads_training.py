"""What people reported of their trainings, once more: modes, numbers, batches, copies, devices, heads.

Each fault does what its thread tells, in that thread's sizes; only the number of steps is scaled to the networks here.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from benchmarks.doctor.faults.registry import BATCH, FAR, GAP, Batches, case, fed, held_out, trained_on
from benchmarks.doctor.subject import Case, Norm, Subject, WithTarget, last_linear, norms_of, put, shapes_of
from benchmarks.doctor.training import fit_, step_

SMALL = frozenset({"statistics-noise", "values-per-channel"})


def _fewest_places(subject: Subject) -> int:
    shapes = shapes_of(subject.model, subject.inputs(2, 1)[0])
    return min(shape[2:].numel() for shape in shapes.values())


# Modes.


@held_out(*GAP, consequences=FAR | {"statistics-horizon"}, repairable=True, damages=True, costs=True)
def _a_first_rank_that_stays_in_evaluation(subject: Subject) -> Case:
    """Only the main process evaluates the policy, and its mode is not restored (gh:huggingface/lerobot/issues/3668).

    Gradients of four ranks are averaged, three of them in training. Buffers are those of the first.
    """
    model = subject.model
    optimizer = torch.optim.SGD(model.parameters(), subject.rate / 2, momentum=0.9)
    buffers = [each.clone() for each in model.buffers()]
    for x, labels in subject.labelled(64, 40):
        optimizer.zero_grad()
        for rank, (own, asked) in enumerate(zip(x.chunk(4), labels.chunk(4), strict=True)):
            model.train(rank > 0)
            (functional.cross_entropy(model(own), asked) / 4).backward()
            with torch.no_grad():
                for each, kept in zip(model.buffers(), buffers, strict=True):
                    each.copy_(kept)
        optimizer.step()
    model.eval()
    return case(subject)


@held_out("statistics-at-init", consequences=FAR | {"statistics-horizon"}, damages=True)
def _norms_of_a_head_that_evaluate_from_the_first_step(subject: Subject) -> Case:
    """All norms are set to evaluation for small batches; those that no file gave are without effect.

    gh:multimodallearning/pytorch-mask-rcnn/issues/76; here the last two.
    """
    chosen = norms_of(subject.model)[-2:]
    for _, norm in chosen:
        norm.reset_parameters()
    subject.model.train()
    for _, norm in norms_of(subject.model):
        norm.eval()
    optimizer = torch.optim.SGD(subject.model.parameters(), subject.rate / 50, momentum=0.9)
    for x, labels in subject.labelled(16, 120):
        functional.cross_entropy(subject.model(x), labels).backward()
        nn.utils.clip_grad_norm_(subject.model.parameters(), 5.0)
        optimizer.step()
        optimizer.zero_grad()
    subject.model.eval()
    return case(subject, *(name for name, _ in chosen))


@held_out("frozen-affine-live-statistics", consequences=FAR)
def _weights_frozen_where_statistics_were_meant(subject: Subject) -> Case:
    """Partial batch norm for video: of all norms but the first (gh:shuangshuangguo/tsn-tensorflow/issues/3)."""
    names = [name for name, _ in norms_of(subject.model)[1:]]
    for name in names:
        subject.model.get_submodule(name).requires_grad_(False)
    trained = [each for each in subject.model.parameters() if each.requires_grad]
    optimizer = torch.optim.SGD(trained, subject.rate / 20, momentum=0.9)
    fit_(subject.model, subject.labelled(32, 80), rate=subject.rate / 20, optimizer=optimizer)
    subject.model.train()
    return case(subject, *names, optimizer=optimizer)


class _OfTheBatch(nn.Module):
    """Mean and deviation of what comes, in every mode."""

    def __init__(self, norm: Norm) -> None:
        super().__init__()
        self.weight, self.bias, self.eps = norm.weight, norm.bias, norm.eps
        self.activation = getattr(norm, "act", nn.Identity())

    def forward(self, x: Tensor) -> Tensor:
        dims, shape = [0, *range(2, x.dim())], (1, -1) + (1,) * (x.dim() - 2)
        mean, deviation = x.mean(dims, keepdim=True), x.std(dims, keepdim=True, unbiased=False)
        y: Tensor = self.activation(
            (x - mean) / (deviation + self.eps) * self.weight.view(shape) + self.bias.view(shape)
        )
        return y


@held_out(*BATCH, consequences=FAR)
def _predictions_that_depend_on_the_rest_of_the_file(subject: Subject) -> Case:
    """A norm of the project's own has no estimates; a molecule alone gets another value than one of two.

    gh:HIPS/neural-fingerprint/issues/7
    """
    for name, norm in norms_of(subject.model):
        put(subject.model, name, _OfTheBatch(norm))
    fit_(subject.model, subject.labelled(64, 40), rate=subject.rate / 50)
    return case(subject)


# Numbers.


@held_out("momentum-convention", consequences=FAR | SMALL | {"statistics-horizon"}, repairable=True)
def _a_momentum_of_999_thousandths_against_small_batches(subject: Subject) -> Case:
    """It was to steady the estimates; torch takes 0.001 for that (gh:kazuto1011/deeplab-pytorch/issues/79)."""
    for _, norm in norms_of(subject.model):
        norm.momentum = 0.999
    fit_(subject.model, subject.labelled(5, 100), rate=subject.rate / 100)
    return case(subject)


@held_out(*GAP, "statistics-horizon", consequences=FAR, repairable=True, damages=True, costs=True)
def _an_average_with_too_much_history(subject: Subject) -> Case:
    """Keras' momentum 0.99: weights have drifted far from most of what it holds (gh:keras-team/keras/issues/3949).

    The training's accuracy is far above the prediction's on the same data.
    """
    for _, norm in norms_of(subject.model):
        norm.momentum = 0.01
    fit_(subject.model, subject.labelled(64, 100), rate=subject.rate)
    return case(subject)


# Batches.


@held_out(*GAP, *SMALL, consequences=FAR, damages=True)
def _one_volume_at_a_time(subject: Subject) -> Case | None:
    """A batch size of 1: predictions make no sense, but in training mode (gh:wolny/pytorch-3dunet/issues/53)."""
    if _fewest_places(subject) == 1:
        return None
    fit_(subject.model, subject.labelled(1, 150), rate=subject.rate / 20)
    return Case(model=subject.model, batches=subject.data.batches(1, 64))


@held_out("effective-batch", consequences=FAR | SMALL)
def _sixteen_accumulated_to_32(subject: Subject) -> Case:
    """0.39 where 32 at once give 0.41 (gh:pytorch/xla/issues/958)."""
    subject.model.train()
    return Case(model=subject.model, batches=subject.data.batches(16, 16), options={"accumulation": 2})


@held_out("single-class-batch", "order-leak", consequences=FAR)
def _a_tests_list_in_its_own_order_by_batch_statistics(subject: Subject) -> Case:
    """Without ``use_global_stats`` a list that is shuffled gives 0.9 where this one gives 0.05.

    gh:facebookarchive/C3D/issues/277; a list of videos goes from class to class.
    """
    x, labels = subject.data.validation
    rows = labels.argsort(stable=True)
    batches = list(zip(x[rows].split(64), labels[rows].split(64), strict=True))
    return Case(model=subject.model.train(), batches=batches)


@held_out("padding-in-statistics", "batch-mixture", consequences=FAR | {"domain-shift"}, damages=True)
def _lists_filled_up_with_empty_documents(subject: Subject) -> Case:
    """A ranking's lists are padded to one size, and all their rows are normalized (gh:tensorflow/ranking/issues/42).

    A batch is eight lists of up to eight documents; the loss leaves out the rest.
    """

    def lists(batches: Batches, *, label: int | None) -> Batches:
        made = []
        for x, labels in batches:
            x, labels = x.clone(), labels.clone()
            for first in range(0, len(x), 8):
                empty = slice(first + subject.draw.randint(1, 8), first + 8)
                x[empty] = 0
                labels[empty] = labels[empty] if label is None else label
            made.append((x, labels))
        return made

    shown = lists(subject.data.batches(), label=None)
    return trained_on(subject, lists(subject.labelled(64, 80), label=-100), shown)


@held_out("padding-in-statistics", consequences=FAR | {"domain-shift"}, damages=True)
def _one_long_text_among_short_ones(subject: Subject) -> Case | None:
    """Lengths differ so much that the variance shrinks, and the norm blows values up.

    gh:Tomiinek/Multilingual_Text_to_Speech/issues/81; of sixteen one is whole, the others end after a tenth to a third.
    """
    if max(len(shape) for shape in shapes_of(subject.model, subject.inputs(2, 1)[0]).values()) == 2:
        return None

    def filled(batches: Batches) -> Batches:
        made = [(x.clone(), labels) for x, labels in batches]
        for x, _ in made:
            for each in x[1:]:
                each[..., int(each.shape[-1] * subject.draw.uniform(0.1, 0.33)) :] = 0
        return made

    return trained_on(subject, filled(subject.labelled(16, 100)), filled(subject.data.batches(16, 32)), rate=0.05)


def _attacked(model: nn.Module, x: Tensor, labels: Tensor) -> Tensor:
    """Search five steps for what raises the loss, within 4 / 255 of pixels whose deviation is a quarter."""
    bound = 0.063 * float(x.std())
    parameters = [each for each in model.parameters() if each.requires_grad]
    model.eval().requires_grad_(False)
    y = x.clone()
    for _ in range(5):
        y.requires_grad_()
        (slope,) = torch.autograd.grad(functional.cross_entropy(model(y), labels), y)
        y = x + (y.detach() + bound / 4 * slope.sign() - x).clamp(-bound, bound)
    for each in parameters:
        each.requires_grad_()
    model.train()
    return y


@held_out("batch-mixture", *GAP, consequences=FAR | {"domain-shift"}, damages=True, costs=True)
def _clean_and_attacked_samples_through_one_set_of_norms(subject: Subject) -> Case:
    """Without ``mixbn`` both halves are joined (gh:tingxueronghua/pytorch-classification-advprop/issues/8)."""
    optimizer = torch.optim.SGD(subject.model.parameters(), subject.rate / 10, momentum=0.9)

    def joined(x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        return torch.cat((x, _attacked(subject.model, x, labels))), labels.repeat(2)

    for x, labels in subject.labelled(32, 30):
        step_(subject.model, optimizer, *joined(x, labels))
    return Case(model=subject.model, batches=[joined(x, labels) for x, labels in subject.data.batches(32, 8)])


def _at_night(x: Tensor) -> Tensor:
    """Give a dark picture, or weak sensors with an offset."""
    return 0.4 * x - (0.8 if x.dim() == 4 else 1.2)


@held_out(
    *GAP,
    consequences=FAR | {"domain-shift", "frozen-affine-live-statistics"},
    repairable=True,
    damages=True,
    costs=True,
)
def _the_day_tested_behind_a_last_step_at_night(subject: Subject) -> Case | None:
    """Each step sees one image of the source, then one of the darker target; γ and β are frozen, estimates are not.

    The source's result in evaluation is super bad (gh:wasidennis/AdaptSegNet/issues/79).
    """
    if _fewest_places(subject) == 1:
        return None
    for _, norm in norms_of(subject.model):
        norm.requires_grad_(False)
    trained = [each for each in subject.model.parameters() if each.requires_grad]
    optimizer = torch.optim.SGD(trained, subject.rate / 100, momentum=0.9)
    subject.model.train()
    for (x, labels), other in zip(subject.labelled(1, 100), subject.inputs(1, 100), strict=True):
        step_(subject.model, optimizer, x, labels)
        with torch.no_grad():
            subject.model(_at_night(other))
    subject.model.eval()
    return case(subject)


@held_out("domain-shift", consequences=FAR, costs=True)
def _a_division_by_255_left_out_of_the_prediction(subject: Subject) -> Case:
    """Masks were wrong until inputs were scaled (gh:ayushdabra/dubai-satellite-imagery-segmentation/issues/3)."""
    return fed(subject, lambda x: 255 * x)


# Copies and devices.


@held_out("copied-statistics-mismatch", consequences=FAR | {"statistics-horizon"})
def _a_teacher_that_evaluates_behind_its_first_validation(subject: Subject) -> Case:
    """``train()`` is not called again: weights go on as averages, estimates do not (gh:YonghaoXu/SEANet/issues/1).

    500 steps there, here 15 of 120.
    """
    teacher = copy.deepcopy(subject.model).train().requires_grad_(False)
    seen = iter(subject.inputs(64, 15))

    @torch.no_grad()
    def follow() -> None:
        for kept, now in zip(teacher.parameters(), subject.model.parameters(), strict=True):
            kept.lerp_(now, 0.05)
        x = next(seen, None)
        if x is not None:
            teacher(x)

    fit_(subject.model, subject.labelled(64, 120), rate=subject.rate / 2, after=follow)
    return Case(model=WithTarget(subject.model, teacher).eval(), batches=subject.data.batches())


@held_out("rank-divergence", consequences=FAR | {"checkpoint-diff", "statistics-noise"}, repairable=True)
def _three_devices_that_answer_differently(subject: Subject) -> Case:
    """Which of them a sample is given to changes its result (gh:facebookarchive/fbcunn/issues/104).

    Weights are one, and estimates have not been averaged in training.
    """
    models = [copy.deepcopy(subject.model) for _ in range(3)]
    for model in models:
        model.train()
        with torch.no_grad():
            for x in subject.inputs(32, 40):
                model(x)
        model.eval()
    ranks = [each.state_dict() for each in models]
    return Case(model=models[0], batches=subject.data.batches(), options={"ranks": ranks})


class _Recomputed(nn.Module):
    """A network whose loss looks at it once before, and that is run again in the backward."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            y: Tensor = self.inner(x)
            return y
        with torch.no_grad():
            self.inner(x)
        z: Tensor = checkpoint(self.inner, x, use_reentrant=False)
        return z


@held_out("double-update", consequences=FAR | SMALL | {"reused-norm"})
def _three_updates_for_a_batch_of_four(subject: Subject) -> Case:
    """Checkpointed blocks, and a forward of the loss's own in training mode (gh:m2lines/Samudra/issues/572)."""
    model = _Recomputed(subject.model).train()
    layers = frozenset(name for name, _ in norms_of(model))
    return Case(model=model, batches=subject.data.batches(4, 32), layers=layers)


# Heads.


@held_out("dropout-before-norm", consequences=FAR, damages=True)
def _a_feed_forward_with_its_norm_behind_dropout(subject: Subject) -> Case:
    """Linear, activation, dropout, norm, twice (gh:luigibonati/mlcolvar/issues/267); a half is dropped here."""
    name, last = last_linear(subject.model)
    width = last.in_features
    layers = [
        each for _ in range(2) for each in (nn.Linear(width, width), nn.ReLU(), nn.Dropout(0.5), nn.BatchNorm1d(width))
    ]
    put(subject.model, name, nn.Sequential(*layers, last))
    fit_(subject.model, subject.labelled(64, 150), rate=subject.rate / 10)
    return case(subject, f"{name}.3", f"{name}.7")
