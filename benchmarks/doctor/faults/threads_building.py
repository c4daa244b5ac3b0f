"""What public threads tell of norms built by hand, their arguments, flags and axes; each fault with its thread."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.doctor.faults.registry import BATCH, FAR, GAP, case, held_out
from benchmarks.doctor.subject import Case, Norm, Subject, last_linear, norms_of, put
from benchmarks.doctor.training import fit_


def _plain(subject: Subject) -> list[tuple[str, Norm]]:
    return [(name, norm) for name, norm in norms_of(subject.model) if type(norm) in (nn.BatchNorm1d, nn.BatchNorm2d)]


def _exchange(subject: Subject, kinds: tuple[type[nn.BatchNorm1d], type[nn.BatchNorm2d]]) -> int:
    """Put norms of one's own in the place of all plain ones, with their state, and count them."""
    plain = _plain(subject)
    for name, norm in plain:
        new = kinds[isinstance(norm, nn.BatchNorm2d)](norm.num_features, norm.eps, norm.momentum)
        new.load_state_dict(norm.state_dict())
        put(subject.model, name, new.eval())
    return len(plain)


# Norms by hand.


def _with_the_momentum_of_a_decay(norm: Norm, x: Tensor) -> Tensor:
    """Take momentum * running + (1 - momentum) * batch for the new estimate."""
    assert norm.momentum is not None
    arrays = (norm.running_mean, norm.running_var, norm.weight, norm.bias)
    return functional.batch_norm(x, *arrays, norm.training, 1 - norm.momentum, norm.eps)


class _Decay1d(nn.BatchNorm1d):
    def forward(self, input: Tensor) -> Tensor:
        return _with_the_momentum_of_a_decay(self, input)


class _Decay2d(nn.BatchNorm2d):
    def forward(self, input: Tensor) -> Tensor:
        return _with_the_momentum_of_a_decay(self, input)


@held_out(
    "momentum-convention",
    "double-update",
    "statistics-noise",
    *GAP,
    consequences=FAR | {"lossy-subclass"},
)
def _torchs_momentum_kept_for_the_old_value(subject: Subject) -> Case | None:
    """A layer for quantised training keeps a tenth (gh:Jermmy/pytorch-quantization-demo/issues/17); it goes on."""
    if not _exchange(subject, (_Decay1d, _Decay2d)):
        return None
    fit_(subject.model, subject.labelled(64, 80), rate=subject.rate / 20)
    subject.model.train()
    return case(subject)


def _with_a_correction_for_one_value(norm: Norm, x: Tensor) -> Tensor:
    """Normalize by hand; the stored variance is times n / (n - 1), for n = 1 as well."""
    dims, shape = [0, *range(2, x.dim())], (1, -1) + (1,) * (x.dim() - 2)
    assert norm.running_mean is not None and norm.running_var is not None
    mean, var = norm.running_mean, norm.running_var
    if norm.training:
        mean, var = x.mean(dims), x.var(dims, correction=0)
        count = torch.tensor(x.numel() / x.shape[1])
        norm.running_mean.lerp_(mean.detach(), 0.1)
        norm.running_var.lerp_(var.detach() * (count / (count - 1)), 0.1)
    scale = norm.weight * (var + norm.eps).rsqrt()
    return (x - mean.view(shape)) * scale.view(shape) + norm.bias.view(shape)


class _Corrected1d(nn.BatchNorm1d):
    def forward(self, input: Tensor) -> Tensor:
        return _with_a_correction_for_one_value(self, input)


class _Corrected2d(nn.BatchNorm2d):
    def forward(self, input: Tensor) -> Tensor:
        return _with_a_correction_for_one_value(self, input)


@held_out("nonfinite-statistics", consequences=FAR | {"values-per-channel"})
def _a_last_batch_of_one_for_norms_that_divide_by_zero(subject: Subject) -> Case:
    """0 times 1 / 0 in the running variance; found in testing (gh:facebookresearch/SparseConvNet/issues/190).

    The last norm, here in front of the classifier, gets one vector for each sample.
    """
    _exchange(subject, (_Corrected1d, _Corrected2d))
    name, last = last_linear(subject.model)
    put(subject.model, name, nn.Sequential(_Corrected1d(last.in_features), last))
    fit_(subject.model, subject.labelled(64, 80), rate=subject.rate / 20)
    subject.model.train()
    for _, norm in norms_of(subject.model):
        if not isinstance(norm, _Corrected1d | _Corrected2d):
            norm.eval()  # torch's own refuse one value
    with torch.no_grad():
        subject.model(subject.inputs(1, 1)[0])
    subject.model.eval()
    return case(subject)


class _LastAxis(nn.Module):
    """Keras' default of -1, behind a convolution whose channels come first."""

    def __init__(self, size: int, dim: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(size) if dim == 3 else nn.BatchNorm2d(size)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm(x.transpose(1, -1))
        return y.transpose(1, -1)


def _shapes_of_maps(subject: Subject) -> dict[str, torch.Size]:
    """Give what plain norms of maps get, but for those that get several sizes."""
    seen: dict[str, set[torch.Size]] = {name: set() for name, _ in _plain(subject)}
    hooks = [
        norm.register_forward_pre_hook(lambda _, inputs, name=name: seen[name].add(inputs[0].shape))
        for name, norm in _plain(subject)
    ]
    with torch.no_grad():
        subject.model(subject.inputs(2, 1)[0])
    for hook in hooks:
        hook.remove()
    return {name: shape for name, shapes in seen.items() if len(shapes) == 1 for shape in shapes if len(shape) > 2}


@held_out(
    "axis-suspect", consequences=FAR | {"batch-dependence", "statistics-noise", "values-per-channel"}, damages=True
)
def _keras_default_axis_behind_every_convolution(subject: Subject) -> Case | None:
    """All norms of maps take the frequencies for channels (gh:sharathadavanne/seld-dcase2021/issues/8)."""
    shapes = _shapes_of_maps(subject)
    for name, shape in shapes.items():
        put(subject.model, name, _LastAxis(shape[-1], len(shape)))
    fit_(subject.model, subject.labelled(64, 150), rate=subject.rate / 10)
    return case(subject) if shapes else None


@held_out("reused-norm", *GAP, consequences=FAR | {"double-update"}, damages=True)
def _norms_shared_with_the_layers_of_all_steps(subject: Subject) -> Case | None:
    """Copies were dropped, so that steps share layers, and norms with them (gh:dreamquark-ai/tabnet/pull/76).

    Here all norms of one size, of which there are most, are one.
    """
    sizes: dict[tuple[type[Norm], int], list[str]] = {}
    for name, norm in _plain(subject):
        sizes.setdefault((type(norm), norm.num_features), []).append(name)
    first, *others = max(sizes.values(), key=len, default=[""])
    if not others:
        return None
    for name in others:
        put(subject.model, name, subject.model.get_submodule(first))
    fit_(subject.model, subject.labelled(64, 120), rate=subject.rate / 10)
    return case(subject, first)


# Arguments and flags.


@held_out("mixed-eps", consequences=FAR | {"near-zero-variance"}, damages=True)
def _the_number_of_channels_in_the_place_of_eps(subject: Subject) -> Case:
    """``BatchNorm2d(n5x5, n5x5)``, in one norm of the block (gh:weiaicunzai/pytorch-cifar100/issues/96)."""
    name, norm = subject.one_norm()
    norm.eps = float(norm.num_features)
    fit_(subject.model, subject.labelled(64, 120), rate=subject.rate / 5)
    return case(subject, name)


def _update_norms(model: nn.Module, kept: dict[str, float | None], *, update: bool) -> None:
    """Switch updates of estimates by their momentum; the second call in one state loses what the first one kept."""
    for name, norm in norms_of(model):
        if update:
            norm.momentum = kept.get(name, norm.momentum)
        else:
            kept[name], norm.momentum = norm.momentum, 0.0


@held_out("momentum-convention", "statistics-horizon", *GAP, consequences=FAR, damages=True)
def _a_momentum_whose_backup_was_overwritten(subject: Subject) -> Case:
    """Switched off twice and on once, it is 0 from there on (gh:mlcommons/algorithmic-efficiency/pull/783)."""
    kept: dict[str, float | None] = {}
    fit_(subject.model, subject.labelled(64, 20), rate=subject.rate / 2)
    _update_norms(subject.model, kept, update=False)
    _update_norms(subject.model, kept, update=False)
    _update_norms(subject.model, kept, update=True)
    fit_(subject.model, subject.labelled(64, 120), rate=subject.rate / 2)
    subject.model.train()
    return case(subject)


@held_out(*BATCH, consequences=FAR)
def _a_backbone_that_does_not_track(subject: Subject) -> Case:
    """``track_running_stats=False`` in the backbone, by mistake (gh:TengdaHan/DPC/issues/21); the head has none."""
    for _, norm in norms_of(subject.model):
        norm.track_running_stats = False
        norm.running_mean = norm.running_var = norm.num_batches_tracked = None
    fit_(subject.model, subject.labelled(64, 60), rate=subject.rate / 20)
    return case(subject)


# Data.


@held_out("outlier-statistics", *GAP, repairable=True, damages=True, costs=True)
def _one_sample_that_was_not_standardized(subject: Subject) -> Case:
    """Its deviation was 52 in a batch of 32, and norms were severely disrupted (gh:keras-team/keras/issues/12400)."""
    batches = subject.labelled(32, 40)
    x, _ = batches[-min(8, len(batches))]
    x[0] *= 52
    fit_(subject.model, batches, rate=subject.rate / 50)
    return case(subject)
