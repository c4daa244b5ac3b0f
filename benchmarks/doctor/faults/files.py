"""Files and ports: what is read, written, rounded or left out without a thought of the estimates."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from benchmarks.doctor.faults.registry import FAR, GAP, case, tuning
from benchmarks.doctor.subject import Case, Norm, Subject, norms_of, put, that_keep_the_shape
from benchmarks.doctor.training import fit_


@tuning("negative-variance", consequences=FAR | {"near-zero-variance"}, repairable=True, damages=True)
def _noise_for_privacy_on_all_of_the_file(subject: Subject) -> Case | None:
    """A client adds Gaussian noise to what it sends, and sends its buffers too; a third of each tensor's own scale."""
    generator = torch.Generator().manual_seed(subject.draw.randrange(2**31))
    for value in subject.model.state_dict().values():
        if value.is_floating_point():
            scale = value.square().mean().sqrt() / 3
            value += scale * torch.randn(value.shape, generator=generator)
    below = [bool((norm.running_var < 0).any()) for _, norm in norms_of(subject.model) if norm.running_var is not None]
    return case(subject) if any(below) else None


class _Split(nn.Module):
    """Norms for clean and for adversarial samples, as AdvProp has them (Xie et al. 2020, arXiv 1911.09665)."""

    def __init__(self, norm: Norm) -> None:
        super().__init__()
        self.main, self.auxiliary = norm, copy.deepcopy(norm)
        self.auxiliary.reset_running_stats()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.auxiliary(x)
        return y


@tuning(
    "statistics-at-init",
    consequences=FAR | {"statistics-horizon", "copied-statistics-mismatch"},
    repairable=True,
)
def _auxiliary_norms_in_use_that_saw_nothing(subject: Subject) -> Case:
    """Weights and biases were given to both sets of norms; a flag's default selects the one that never ran."""
    for name, norm in norms_of(subject.model):
        put(subject.model, name, _Split(norm))
    return case(subject)


@tuning("checkpoint-diff", consequences=FAR | {"dead-channel"}, repairable=True)
def _beta_and_gamma_in_each_others_place(subject: Subject) -> Case:
    """TensorFlow's names, sorted: beta comes before gamma, and the port takes them in torch's order."""
    whole = {name: tensor.clone() for name, tensor in subject.model.state_dict().items()}
    for _, norm in norms_of(subject.model):
        norm.weight, norm.bias = norm.bias, norm.weight
    return case(subject, checkpoint=whole)


@tuning(*GAP, consequences=frozenset({"outlier-statistics"}), repairable=True, damages=True, costs=True)
def _filters_with_height_and_width_exchanged(subject: Subject) -> Case | None:
    """A port's permutation ends in 1, 0 where it must end in 0, 1; of signals, filters run backwards."""
    wide = [
        each
        for each in subject.model.modules()
        if isinstance(each, nn.Conv1d | nn.Conv2d) and each.weight[0, 0].numel() > 1
    ]
    with torch.no_grad():
        for each in wide:
            if each.weight.dim() == 3:
                each.weight.copy_(each.weight.flip(2))
            elif each.kernel_size[0] == each.kernel_size[1]:
                each.weight.copy_(each.weight.transpose(2, 3).clone())
    return case(subject) if wide else None


@tuning("near-zero-variance", "outlier-statistics", *GAP, repairable=True, damages=True, costs=True)
def _estimates_rounded_like_weights(subject: Subject) -> Case:
    """Five bits and one step for each tensor, buffers included (gh:openvinotoolkit/nncf/pull/41): small ones are 0."""
    for value in subject.model.state_dict().values():
        if value.is_floating_point():
            step = value.abs().max().clamp_min(1e-12) / 15
            value.copy_((value / step).round() * step)
    return case(subject)


@tuning("mixed-eps", consequences=FAR, repairable=True, costs=True)
def _a_momentum_in_the_place_of_eps(subject: Subject) -> Case:
    """``BatchNorm2d(channels, 0.8)``, as PyTorch-GAN has it: the second argument is eps; in the last third."""
    norms = norms_of(subject.model)
    chosen = norms[-max(1, len(norms) // 3) :]
    for _, norm in chosen:
        norm.eps = 0.8
    return case(subject, *(name for name, _ in chosen))


@tuning("momentum-convention", consequences=FAR | {"statistics-noise", "statistics-horizon"}, repairable=True)
def _a_block_pasted_from_keras(subject: Subject) -> Case:
    """Its two norms keep Keras' 0.99 and 0.001, between others that are torch's; the epoch ends with a batch of 8."""
    first = subject.draw.randrange(len(norms_of(subject.model)) - 1)
    chosen = norms_of(subject.model)[first : first + 2]
    for _, norm in chosen:
        norm.momentum, norm.eps = 0.99, 1e-3
    subject.follow_([*subject.inputs(64, 10), *subject.inputs(8, 1)])
    return case(subject, *(name for name, _ in chosen))


@tuning("dead-channel", consequences=FAR | {"near-zero-variance"})
def _zeroed_by_an_initialisation_after_loading(subject: Subject) -> Case:
    """``zero_init_residual`` sets a block's last weight to 0, here when the file has been read already."""
    name, norm = subject.one_norm()
    nn.init.zeros_(norm.weight)
    return case(subject, name)


# Parts that are new, or gone.


@tuning(
    "statistics-horizon", *GAP, consequences=frozenset({"outlier-statistics", "statistics-at-init"}), repairable=True
)
def _two_norms_put_in_anew_with_a_slow_momentum(subject: Subject) -> Case:  # codespell:ignore anew
    """0.001, and a fine-tuning of 200 steps: four fifths of the start are left."""
    chosen = subject.draw.sample(norms_of(subject.model), 2)
    for _, norm in chosen:
        norm.reset_running_stats()
        norm.momentum = 0.001
    fit_(subject.model, subject.labelled(64, 200), rate=subject.rate / 50)
    return case(subject, *(name for name, _ in chosen))


def _behind_the_first(model: nn.Module) -> list[str]:
    """Name parts with norms that do not hold the first norm, and are none themselves."""
    first = norms_of(model)[0][1]
    return [
        name
        for name, part in model.named_modules()
        if name and norms_of(part) and first not in set(part.modules()) and not isinstance(part, Norm)
    ]


@tuning(*GAP, consequences=frozenset({"outlier-statistics"}), repairable=True, damages=True, costs=True)
def _a_block_left_out_for_speed(subject: Subject) -> Case | None:
    """Pruning by layers: the block becomes the identity, and the norms behind it get other inputs."""
    found = that_keep_the_shape(subject.model, subject.inputs(2, 1)[0], _behind_the_first(subject.model))
    if not found:
        return None
    put(subject.model, subject.draw.choice(found), nn.Identity())
    return case(subject)
