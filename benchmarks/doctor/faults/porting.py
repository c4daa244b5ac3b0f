"""Running statistics that were ported wrongly, and weights that were changed without them."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights, fuse_linear_bn_weights
from torch.optim.swa_utils import AveragedModel

from benchmarks.doctor.faults.registry import GAP, case, tuning
from benchmarks.doctor.subject import Case, Subject, fed_by, norms_of, put
from benchmarks.doctor.training import fit_

# Estimates that were ported, loaded or saved wrongly.


@tuning("statistics-at-init", *GAP, repairable=True, damages=True, costs=True)
def _norms_renamed_and_loaded_without_strict(subject: Subject) -> Case:
    """The new code calls them otherwise, so that weight, bias and estimates stay a new layer's."""
    names = {name for name, _ in norms_of(subject.model)}
    state = {
        f"{key}_old" if key.rpartition(".")[0] in names else key: tensor.clone()
        for key, tensor in subject.model.state_dict().items()
    }
    for module in subject.model.modules():
        if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.BatchNorm1d | nn.BatchNorm2d):
            module.reset_parameters()
    subject.model.load_state_dict(state, strict=False)
    return case(subject)


@tuning(*GAP, consequences=frozenset({"outlier-statistics"}), repairable=True, costs=True)
def _sums_of_caffe_without_their_factor(subject: Subject) -> Case:
    """Caffe stores sums and, beside them, the factor to divide them by: 999.98 after long training."""
    for _, norm in norms_of(subject.model):
        assert norm.running_mean is not None and norm.running_var is not None
        norm.running_mean *= 999.98
        norm.running_var *= 999.98
    return case(subject)


@tuning("negative-variance", consequences=GAP | {"outlier-statistics", "near-zero-variance"}, repairable=True)
def _mean_and_variance_in_each_others_place(subject: Subject) -> Case:
    """A port that takes a list of arrays in another order; some means are below zero."""
    for _, norm in norms_of(subject.model):
        norm.running_mean, norm.running_var = norm.running_var, norm.running_mean
    return case(subject)


class _Counts(nn.Module):
    """A network that takes a scanner's 16-bit counts; the data here are of about one, and are scaled first."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.inner(15_000 * x)
        return logits


@tuning("nonfinite-statistics", "fp16-unsafe-variance", consequences=GAP | {"near-zero-variance"}, repairable=True)
def _of_raw_counts_and_saved_in_half_precision(subject: Subject) -> Case:
    """Variances of counts overflow in the file; loaded into a float32 model they are infinite."""
    model = _Counts(subject.model)
    momenta = [norm.momentum for _, norm in norms_of(model)]
    for _, norm in norms_of(model):
        norm.reset_running_stats()
        norm.momentum = None
    model.train()
    with torch.no_grad():
        for x in subject.inputs(64, 60):
            model(x)
    for momentum, (_, norm) in zip(momenta, norms_of(model), strict=True):
        norm.momentum = momentum
    saved = {key: value.half() if value.is_floating_point() else value for key, value in model.state_dict().items()}
    model.load_state_dict(saved)
    return Case(model=model.eval(), batches=subject.data.batches())


@tuning(*GAP, consequences=frozenset({"outlier-statistics"}), repairable=True, damages=True, costs=True)
def _folded_weights_under_norms_that_are_left(subject: Subject) -> Case:
    """An export folds the norms into weights and biases, and these are loaded into the model of training."""
    model = subject.model
    for name, of_norm in dict(fed_by(model, subject.inputs(8, 1)[0])).items():
        layer, norm = model.get_submodule(name), model.get_submodule(of_norm)
        assert isinstance(layer, nn.Linear | nn.Conv1d | nn.Conv2d)
        assert isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d)
        fuse = fuse_linear_bn_weights if isinstance(layer, nn.Linear) else fuse_conv_bn_weights
        assert norm.running_mean is not None and norm.running_var is not None
        layer.weight, layer.bias = fuse(
            layer.weight, layer.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
        )
    return case(subject)


@tuning("near-zero-variance", "outlier-statistics", consequences=GAP, repairable=True, costs=True)
def _an_input_that_was_stuck_in_training(subject: Subject) -> Case:
    """A norm of the inputs that saw one sensor dead: its variance is 0, and alive again it is blown up by 1 / √eps."""
    flat = subject.data.train[0].dim() == 3
    first = nn.BatchNorm1d(3) if flat else nn.BatchNorm2d(3)
    model = nn.Sequential(first, subject.model).train()
    with torch.no_grad():
        for x in subject.inputs(32, 150):
            model(x.index_fill(1, torch.tensor([2]), 0.4))
    return Case(model=model.eval(), batches=subject.data.batches(), layers=frozenset({"0"}))


# Weights that were changed, and statistics left as they were.


@tuning(*GAP, repairable=True, damages=True, costs=True)
def _weights_averaged_along_training(subject: Subject) -> Case:
    """Stochastic weight averaging without ``update_bn``: the statistics are those of the last weights."""
    average = AveragedModel(subject.model)
    for _ in range(5):
        fit_(subject.model, subject.labelled(64, 30), rate=subject.rate)
        average.update_parameters(subject.model)
    return Case(model=average.module.eval(), batches=subject.data.batches())


@tuning(*GAP, repairable=True, damages=True, costs=True)
def _a_moving_average_with_the_buffers_of_its_start(subject: Subject) -> Case:
    """Parameters are averaged by hand, and the buffers are forgotten."""
    average = copy.deepcopy(subject.model)

    @torch.no_grad()
    def follow() -> None:
        for kept, now in zip(average.parameters(), subject.model.parameters(), strict=True):
            kept.lerp_(now, 0.05)

    fit_(subject.model, subject.labelled(64, 120), rate=subject.rate, after=follow)
    return Case(model=average.eval(), batches=subject.data.batches())


@tuning(*GAP, consequences=frozenset({"dead-channel"}), repairable=True, damages=True, costs=True)
def _channels_slimmed_away(subject: Subject) -> Case:
    """Network slimming without fine-tuning: of each norm the smallest weights are cut, its bias with them."""
    for _, norm in norms_of(subject.model):
        cut = norm.weight.detach().abs().argsort()[: int(0.3 * norm.num_features)]
        norm.weight.data[cut] = 0
        norm.bias.data[cut] = 0
    return case(subject)


@tuning(*GAP, repairable=True, damages=True, costs=True)
def _another_activation(subject: Subject) -> Case | None:
    """A port takes the one that its target has."""
    found = [name for name, module in subject.model.named_modules() if isinstance(module, nn.ReLU | nn.SiLU)]
    for name in found:
        put(subject.model, name, nn.LeakyReLU(0.2))
    return case(subject) if found else None


class _FourChannels(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.inner(torch.cat((x, x.mean(1, keepdim=True)), 1))
        return logits


@tuning(*GAP, repairable=True, damages=True, costs=True)
def _a_fourth_input_with_copied_filters(subject: Subject) -> Case | None:
    """A network of three channels gets one more, whose filters are copies of the first channel's."""
    named = subject.model.named_modules()
    firsts = [name for name, each in named if isinstance(each, nn.Conv1d | nn.Conv2d) and each.in_channels == 3]
    for name in firsts:
        old = subject.model.get_submodule(name)
        assert isinstance(old, nn.Conv1d | nn.Conv2d)
        old.weight = nn.Parameter(torch.cat((old.weight, old.weight[:, :1]), 1))
        old.in_channels = 4
    if not firsts:
        return None
    for module in subject.model.modules():
        if getattr(module, "num_channels", None) == 3:  # transformers compares inputs with it
            module.num_channels = 4  # type: ignore[assignment]
    return Case(model=_FourChannels(subject.model).eval(), batches=subject.data.batches())
