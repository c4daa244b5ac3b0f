"""What people reported of their trainings: modes, numbers, precision, batches.

Each fault does what its thread tells, in that thread's sizes; only the number of steps is scaled to the networks here.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.doctor.faults.registry import BATCH, FAR, GAP, Batches, case, trained_on, tuning
from benchmarks.doctor.subject import Case, Subject, last_linear, norms_of, shapes_of
from benchmarks.doctor.training import fit_, step_

# Modes and flags.


@tuning(*GAP, consequences=FAR | {"statistics-horizon"}, repairable=True, damages=True, costs=True)
def _trained_in_evaluation_behind_a_validation(subject: Subject) -> Case:
    """A validation comes within the epoch, and no ``train()`` before the next one.

    gh:fartashf/vsepp/issues/4; here 8 of 75 steps are in training mode, twice.
    """
    optimizer = torch.optim.SGD(subject.model.parameters(), subject.rate / 5, momentum=0.9)
    for _ in range(2):
        for step, (x, labels) in enumerate(subject.labelled(64, 75)):
            subject.model.train(step < 8)
            step_(subject.model, optimizer, x, labels)
    subject.model.eval()
    return case(subject)


@tuning(*GAP, consequences=FAR | {"domain-shift"}, repairable=True, costs=True)
def _a_summary_printed_before_the_evaluation(subject: Subject) -> Case:
    """It forwards two samples of uniform noise in training mode (gh:sksq96/pytorch-summary/issues/67)."""
    generator = torch.Generator().manual_seed(subject.draw.randrange(2**31))
    subject.follow_([torch.rand(2, *subject.data.train[0].shape[1:], generator=generator)])
    return case(subject)


@tuning(*GAP, "outlier-statistics", consequences=frozenset({"domain-shift"}), repairable=True, costs=True)
def _a_teacher_in_training_mode_that_is_shown_gaussian_noise(subject: Subject) -> Case:
    """For a distillation without data; that its estimates follow is a side effect.

    gh:Piyush-555/GaussianDistillation/issues/2
    """
    generator = torch.Generator().manual_seed(subject.draw.randrange(2**31))
    subject.follow_([torch.randn(x.shape, generator=generator) for x in subject.inputs(64, 60)])
    return case(subject)


@tuning(*GAP, consequences=FAR | {"statistics-noise"}, repairable=True, damages=True, costs=True)
def _actions_chosen_in_training_mode(subject: Subject) -> Case | None:
    """Before each step on a batch the policy sees one state, and its norms count that.

    gh:pytorch/tutorials/pull/2030; a norm of vectors would stop with an error.
    """
    shapes = shapes_of(subject.model, subject.inputs(2, 1)[0])
    if any(shape[2:].numel() == 1 for shape in shapes.values()):
        return None
    optimizer = torch.optim.SGD(subject.model.parameters(), subject.rate / 10, momentum=0.9)
    subject.model.train()
    for state, (x, labels) in zip(subject.inputs(1, 80), subject.labelled(128, 80), strict=True):
        with torch.no_grad():
            subject.model(state)
        step_(subject.model, optimizer, x, labels)
    subject.model.eval()
    return case(subject)


@tuning(*BATCH, consequences=FAR | {"statistics-noise", "values-per-channel"})
def _no_estimates_for_few_shots(subject: Subject) -> Case:
    """``track_running_stats=False`` in all layers; here for tasks of 25 (gh:tristandeleu/pytorch-maml/issues/8).

    In use, larger batches give better results (gh:tristandeleu/pytorch-maml/pull/7).
    """
    for _, norm in norms_of(subject.model):
        norm.track_running_stats = False
        norm.running_mean = norm.running_var = norm.num_batches_tracked = None
    return Case(model=subject.model, batches=subject.data.batches(25, 16))


@tuning("track-flag-inconsistent", consequences=FAR | {"statistics-horizon"})
def _tracking_switched_off_by_a_callback_that_freezes(subject: Subject) -> Case:
    """Of all that is frozen, here all but the classifier (gh:speediedan/finetuning-scheduler/issues/13)."""
    head = set(last_linear(subject.model)[1].parameters())
    for each in subject.model.parameters():
        each.requires_grad_(each in head)
    for _, norm in norms_of(subject.model):
        norm.track_running_stats = False
    optimizer = torch.optim.SGD(list(head), subject.rate / 10, momentum=0.9)
    fit_(subject.model, subject.labelled(64, 60), rate=subject.rate / 10, optimizer=optimizer)
    subject.model.train()
    return case(subject)


@tuning("frozen-affine-live-statistics", consequences=FAR)
def _the_first_layers_frozen_by_their_gradients(subject: Subject) -> Case:
    """Nothing else is done to them, and estimates go on (gh:ultralytics/ultralytics/pull/8753)."""
    norms = norms_of(subject.model)
    names = [name for name, _ in norms[: max(1, len(norms) // 2)]]
    for name, each in subject.model.named_parameters():
        each.requires_grad_(False)
        if name == f"{names[-1]}.bias":
            break
    trained = [each for each in subject.model.parameters() if each.requires_grad]
    optimizer = torch.optim.SGD(trained, subject.rate / 10, momentum=0.9)
    fit_(subject.model, subject.labelled(64, 60), rate=subject.rate / 10, optimizer=optimizer)
    subject.model.train()
    return case(subject, *names)


# Numbers.


@tuning("momentum-convention", consequences=FAR | {"statistics-noise", "statistics-horizon"}, repairable=True)
def _a_momentum_of_nine_tenths_in_darknet(subject: Subject) -> Case:
    """``momentum=0.9`` in all layers (gh:eriklindernoren/PyTorch-YOLOv3/issues/230)."""
    for _, norm in norms_of(subject.model):
        norm.momentum = 0.9
    fit_(subject.model, subject.labelled(8, 100), rate=subject.rate / 100)
    return case(subject)


@tuning("statistics-horizon", *GAP, consequences=FAR | {"statistics-at-init"}, repairable=True, damages=True)
def _a_thousandth_for_a_training_of_few_steps(subject: Subject) -> Case:
    """The momentum of a synchronised norm's own default, in all layers, from the start of a short training.

    gh:vacancy/Synchronized-BatchNorm-PyTorch/issues/5
    """
    for _, norm in norms_of(subject.model):
        norm.reset_running_stats()
        norm.momentum = 0.001
    fit_(subject.model, subject.labelled(64, 150), rate=subject.rate / 20)
    return case(subject)


@tuning("nonfinite-statistics", consequences=FAR, repairable=True)
def _one_infinite_activation_under_autocast(subject: Subject) -> Case:
    """One sample's, in one channel (gh:pytorch/pytorch/issues/90342); the loss recovers, and estimates do not."""
    _, norm = subject.one_norm()
    channel = subject.draw.randrange(norm.num_features)

    def overflow(_: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor:
        x = inputs[0].clone()
        x[0, channel] = torch.inf
        return x

    hook = norm.register_forward_pre_hook(overflow)
    subject.follow_(subject.inputs(64, 1))
    hook.remove()
    subject.follow_(subject.inputs(64, 50))
    lost = [name for name, each in norms_of(subject.model) if not _is_finite(each)]
    return case(subject, *lost)


def _is_finite(norm: nn.Module) -> bool:
    return all(bool(value.isfinite().all()) for value in norm.buffers())


@tuning("low-precision-statistics", consequences=FAR | {"statistics-horizon"})
def _half_without_an_exception_for_norms(subject: Subject) -> Case:
    """``module.half()`` in the place of ``batchnorm_to_fp32(module.half())`` (gh:fastai/fastai/issues/507)."""
    subject.model.half().train()
    batches = [(x.half(), labels) for x, labels in subject.data.batches()]
    return Case(model=subject.model, batches=batches, layers=frozenset(name for name, _ in norms_of(subject.model)))


# Batches.


@tuning("statistics-noise", "values-per-channel", consequences=FAR, damages=True)
def _trained_in_pairs(subject: Subject) -> Case:
    """A batch size of 2, at which accuracy falls to a tenth (gh:charlesq34/pointnet/issues/37)."""
    return trained_on(subject, subject.labelled(2, 150), subject.data.batches(2, 32), rate=0.02)


@tuning("effective-batch", consequences=FAR | {"statistics-noise", "values-per-channel"})
def _pairs_accumulated_to_four(subject: Subject) -> Case:
    """Because four do not fit; norms see two (gh:ErenBalatkan/Bts-PyTorch/issues/2)."""
    subject.model.train()
    return Case(model=subject.model, batches=subject.data.batches(2, 32), options={"accumulation": 2})


@tuning("single-class-batch", "order-leak", consequences=FAR | {"statistics-noise", "values-per-channel"})
def _a_test_in_training_mode_folder_by_folder(subject: Subject) -> Case:
    """Batches of eight, a category's folder at a time: 85 %, and shuffled 40 % (gh:ArdhenduBehera/cap/issues/8)."""
    x, labels = subject.data.validation
    rows = labels.argsort(stable=True)[::2]
    batches = list(zip(x[rows].split(8), labels[rows].split(8), strict=True))
    return Case(model=subject.model.train(), batches=batches)


def _windows(x: Tensor, count: int = 64) -> Tensor:
    """Give windows that move by one place each, of one sample (1, C, ...)."""
    return torch.cat([x.roll(place, -1) for place in range(count)])


@tuning("order-leak", "single-class-batch", "statistics-noise", consequences=FAR, damages=True)
def _sliding_windows_of_one_recording_as_a_batch(subject: Subject) -> Case:
    """The windows of a batch all come from one series, moved by one step each (gh:pytorch/pytorch/issues/4741)."""

    def windows(batches: Batches) -> Batches:
        return [(_windows(x), labels.repeat(64)) for x, labels in batches]

    return trained_on(subject, windows(subject.labelled(1, 80)), windows(subject.data.batches(1)), rate=0.1)


@tuning("single-class-batch", consequences=FAR | {"order-leak", "statistics-noise"}, damages=True)
def _the_aligned_first_and_the_misaligned_behind_it(subject: Subject) -> Case:
    """Pairs to compare, each half in a forward of its own and always in one order: batch statistics tell which it is.

    The training loss falls, and the validation's is random (gh:warpem/miss-alignment/issues/6). Misaligned is here a
    sample of which one channel is moved.
    """

    def pairs(batches: Batches) -> Batches:
        return [each for x, _ in batches for each in ((x, _filled(x, 0)), (_misaligned(x), _filled(x, 1)))]

    return trained_on(subject, pairs(subject.labelled(16, 50)), pairs(subject.data.batches(16)), rate=0.1)


def _filled(x: Tensor, label: int) -> Tensor:
    return torch.full((len(x),), label)


def _misaligned(x: Tensor) -> Tensor:
    moved = x.clone()
    moved[:, 1] = x[:, 1].roll(3, -1)
    return moved


def _generated(x: Tensor, generator: torch.Generator) -> Tensor:
    """Give what a generator makes at the start of its training: smooth noise in -1...1."""
    coarse = torch.randn(*x.shape[:2], *([4] * (x.dim() - 2)), generator=generator)
    mode = "bilinear" if x.dim() == 4 else "linear"
    return torch.tanh(functional.interpolate(coarse, x.shape[2:], mode=mode))


@tuning("batch-mixture", consequences=FAR | {"domain-shift"}, damages=True)
def _real_and_generated_samples_shuffled_together(subject: Subject) -> Case:
    """One batch for the discriminator (gh:eriklindernoren/PyTorch-GAN/issues/135); labels of what is made are drawn."""
    generator = torch.Generator().manual_seed(subject.draw.randrange(2**31))

    def joined(batches: Batches) -> Batches:
        made = []
        for x, labels in batches:
            rows = torch.randperm(2 * len(x), generator=generator)
            drawn = torch.randint(0, 10, labels.shape, generator=generator)
            made.append((torch.cat((x, _generated(x, generator)))[rows], torch.cat((labels, drawn))[rows]))
        return made

    return trained_on(subject, joined(subject.labelled(64, 80)), joined(subject.data.batches()))


def _is_of_vectors(model: nn.Module, x: Tensor) -> bool:
    return all(len(shape) == 2 for shape in shapes_of(model, x).values())


@tuning("padding-in-statistics", consequences=FAR, damages=True)
def _utterances_filled_up_with_zeros(subject: Subject) -> Case | None:
    """To the longest of the batch, at the end of time, or of rows (gh:SeanNaren/deepspeech.pytorch/issues/312)."""
    if _is_of_vectors(subject.model, subject.inputs(2, 1)[0]):
        return None

    def padded(batches: Batches) -> Batches:
        for x, _ in batches:
            for each in x[1:]:
                each[..., int(each.shape[-1] * subject.draw.uniform(0.1, 1)) :] = 0
        return batches

    shown = [(x.clone(), labels) for x, labels in subject.data.batches()]
    return trained_on(subject, padded(subject.labelled(64, 80)), padded(shown))


def _of_the_target(x: Tensor) -> Tensor:
    """Give a grey negative, or weak sensors with an offset."""
    return 0.5 - x.mean(1, keepdim=True).expand_as(x) if x.dim() == 4 else 0.4 * x + 1


@tuning(*GAP, consequences=FAR | {"domain-shift"}, repairable=True, damages=True, costs=True)
def _an_extractor_called_on_source_and_then_on_target(subject: Subject) -> Case:
    """Each batch has its own statistics, and the estimates are of both (gh:scikit-adaptation/skada/issues/252)."""
    optimizer = torch.optim.SGD(subject.model.parameters(), subject.rate / 10, momentum=0.9)
    subject.model.train()
    for (x, labels), other in zip(subject.labelled(64, 100), subject.inputs(64, 100), strict=True):
        optimizer.zero_grad()
        functional.cross_entropy(subject.model(x), labels).backward()
        with torch.no_grad():
            subject.model(_of_the_target(other))
        optimizer.step()
    subject.model.eval()
    return case(subject)
