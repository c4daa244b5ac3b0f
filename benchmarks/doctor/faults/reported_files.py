"""What people reported of files, ports, pruning, averages, freezes and deployment; each with its thread."""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor, nn

from benchmarks.doctor.faults.registry import FAR, GAP, case, fed, tuning
from benchmarks.doctor.faults.use import MEAN, STD
from benchmarks.doctor.subject import Case, Subject, fed_by, last_linear, norms_of, put
from benchmarks.doctor.training import fit_


def _file_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


# Files that are read, or not.


@tuning("statistics-at-init", consequences=FAR | {"statistics-horizon"}, repairable=True)
def _buffers_initialised_again_behind_the_loading(subject: Subject) -> Case:
    """``_init_weights`` follows timm's loading and resets estimates alone (gh:huggingface/transformers/pull/43520)."""
    for _, norm in norms_of(subject.model):
        norm.reset_running_stats()
    return case(subject)


@tuning("checkpoint-diff", consequences=FAR | {"statistics-at-init", "near-zero-variance"})
def _an_initialisation_called_behind_the_loading(subject: Subject) -> Case:
    """ShuffleNet's: new filters, γ 1, β 0.0001, means 0, and variances stay (gh:open-mmlab/mmpretrain/pull/318)."""
    file = _file_of(subject.model)
    filters = [each for each in subject.model.modules() if isinstance(each, nn.Conv1d | nn.Conv2d)]
    for at, each in enumerate(filters):
        nn.init.normal_(each.weight, std=0.01 if at == 0 else 1 / each.weight.shape[1])
    for _, norm in norms_of(subject.model):
        assert norm.running_mean is not None
        nn.init.constant_(norm.weight, 1)
        nn.init.constant_(norm.bias, 0.0001)
        nn.init.zeros_(norm.running_mean)
    return case(subject, checkpoint=file)


@tuning("checkpoint-diff", "statistics-at-init", consequences=FAR | {"statistics-horizon"})
def _a_prefix_that_lets_nothing_load(subject: Subject) -> Case:
    """Lightning's names begin with ``model.``, and ``strict=False`` is silent (gh:pytorch/examples/issues/1029)."""
    file = {f"model.{name}": tensor for name, tensor in _file_of(subject.model).items()}
    for module in subject.model.modules():
        reset = getattr(module, "reset_parameters", None)
        if callable(reset):
            reset()
    return case(subject, checkpoint=file)


@tuning("statistics-at-init", *GAP, consequences=FAR, repairable=True, damages=True)
def _the_first_array_of_each_layer_copied(subject: Subject) -> Case:
    """Into a smaller network: means without variances, γ without β (gh:slothkong/DNN-Pruning/issues/8)."""
    for _, norm in norms_of(subject.model):
        assert norm.running_var is not None and norm.num_batches_tracked is not None
        nn.init.ones_(norm.running_var)
        nn.init.zeros_(norm.bias)
        norm.num_batches_tracked.zero_()
    return case(subject)


# Ports.


@tuning(*GAP, consequences=FAR, repairable=True, damages=True, costs=True)
def _a_fixed_gamma_that_decayed_in_the_file(subject: Subject) -> Case:
    """``fix_gamma`` takes 1, and decay moves what is stored: 0.4956 throughout (gh:apache/mxnet/issues/9624, 3424)."""
    with torch.no_grad():
        for _, norm in norms_of(subject.model):
            norm.weight.mul_(0.4956)
    return case(subject)


@tuning("checkpoint-diff", consequences=frozenset({"degenerate-group-norm"}))
def _group_norms_with_the_weights_of_batch_norms(subject: Subject) -> Case | None:
    """Eight groups, because batches are to be of one sample (gh:Res2Net/Res2Net-PretrainedModels/issues/74)."""
    file = _file_of(subject.model)
    plain = [each for each in norms_of(subject.model) if type(each[1]) in (nn.BatchNorm1d, nn.BatchNorm2d)]
    for name, norm in plain:
        new = nn.GroupNorm(math.gcd(8, norm.num_features), norm.num_features)
        new.load_state_dict({"weight": norm.weight, "bias": norm.bias})
        put(subject.model, name, new.eval())
    return case(subject, checkpoint=file) if plain else None


# Pruning, averages, numbers.


@tuning(*GAP, consequences=FAR, repairable=True, damages=True, costs=True)
def _zeroed_filters_whose_norms_still_shift(subject: Subject) -> Case | None:
    """Of each layer two fifths; a norm makes constants of zeros (gh:he-y/filter-pruning-geometric-median/issues/27)."""
    names = dict.fromkeys(name for name, _ in fed_by(subject.model, subject.inputs(2, 1)[0]))
    with torch.no_grad():
        for name in names:
            layer = subject.model.get_submodule(name)
            assert isinstance(layer.weight, Tensor)
            sizes = layer.weight.flatten(1).norm(dim=1)
            gone = sizes.argsort()[: int(0.4 * len(sizes))]
            layer.weight[gone] = 0
            if isinstance(layer.bias, Tensor):
                layer.bias[gone] = 0
    return case(subject) if names else None


@tuning("dead-channel", consequences=FAR | {"near-zero-variance"})
def _one_threshold_for_the_gammas_of_all_layers(subject: Subject) -> Case:
    """Half of all channels, of some layers nearly all (gh:Eric-mingjie/rethinking-network-pruning/issues/18)."""
    norms = [norm for _, norm in norms_of(subject.model)]
    with torch.no_grad():
        threshold = torch.cat([norm.weight.abs() for norm in norms]).median()
        for norm in norms:
            kept = norm.weight.abs() > threshold
            norm.weight.mul_(kept)
            norm.bias.mul_(kept)
    return case(subject)


@tuning(*GAP, consequences=FAR, repairable=True, damages=True, costs=True)
def _a_soup_of_two_fine_tunings(subject: Subject) -> Case:
    """Of one start, at other rates, estimates averaged as well (gh:mlfoundations/model-soups/issues/13)."""
    ingredients = [copy.deepcopy(subject.model) for _ in range(2)]
    for model, share in zip(ingredients, (1, 0.3), strict=True):
        fit_(model, subject.labelled(64, 75), rate=share * subject.rate)
    states = [model.state_dict() for model in ingredients]
    for name, value in subject.model.state_dict().items():
        if value.is_floating_point():
            value.copy_((states[0][name] + states[1][name]) / 2)
    return case(subject)


@tuning(*GAP, consequences=FAR, repairable=True, damages=True, costs=True)
def _a_server_whose_optimizer_has_no_buffers(subject: Subject) -> Case:
    """FedOpt steps along what clients changed of ``named_parameters`` (gh:NVIDIA/NVFlare/issues/1718)."""
    server = subject.model
    optimizer = torch.optim.SGD(server.parameters(), 1.0, momentum=0.6)
    for _ in range(3):
        clients = [copy.deepcopy(server) for _ in range(4)]
        for client in clients:
            fit_(client, subject.labelled(64, 10), rate=subject.rate / 2)
        for kept, *others in zip(server.parameters(), *(each.parameters() for each in clients), strict=True):
            kept.grad = kept.detach() - torch.stack([each.detach() for each in others]).mean(0)
        optimizer.step()
    return case(subject)


@tuning("low-precision-statistics", consequences=GAP)
def _all_of_a_training_in_half_precision(subject: Subject) -> Case:
    """``module.half()`` in the place of ``batchnorm_to_fp32(module.half())`` (gh:fastai/fastai/issues/507)."""
    return Case(model=subject.model.half().train(), batches=None)


@tuning(*GAP, consequences=FAR | {"statistics-horizon"}, repairable=True, damages=True, costs=True)
def _buffers_cut_off_by_fake_quantisation(subject: Subject) -> Case:
    """Batches normalize in training, and what evaluation reads is as before (gh:pytorch/executorch/pull/21056)."""
    counters = [norm.num_batches_tracked for _, norm in norms_of(subject.model)]
    before = [counter.clone() for counter in counters if counter is not None]
    for _, norm in norms_of(subject.model):
        norm.momentum = 0.0
    fit_(subject.model, subject.labelled(64, 120), rate=subject.rate / 2)
    for _, norm in norms_of(subject.model):
        norm.momentum = 0.1
    for counter, kept in zip(counters, before, strict=True):
        if counter is not None:
            counter.copy_(kept)
    return case(subject)


# Freezes and fine-tuning.


def _train_head(subject: Subject, steps: int) -> None:
    """Train the classifier alone, with the network in training mode."""
    subject.model.requires_grad_(False)
    _, last = last_linear(subject.model)
    last.requires_grad_(True)
    optimizer = torch.optim.SGD(last.parameters(), subject.rate / 10, momentum=0.9)
    fit_(subject.model, subject.labelled(64, steps), rate=subject.rate / 10, optimizer=optimizer)
    subject.model.train()


@tuning("frozen-affine-live-statistics", consequences=FAR)
def _a_linear_evaluation_in_training_mode(subject: Subject) -> Case:
    """All but the last layer is frozen, and ``train()`` lets its estimates follow (gh:kdexd/virtex/issues/16)."""
    _train_head(subject, 60)
    return case(subject)


@tuning("track-flag-inconsistent", consequences=FAR)
def _a_freeze_that_takes_tracking_away(subject: Subject) -> Case:
    """Lightning's, of all but the head; batches normalize (gh:speediedan/finetuning-scheduler/issues/13)."""
    for _, norm in norms_of(subject.model):
        norm.track_running_stats = False
    _train_head(subject, 60)
    return case(subject)


@tuning("frozen-affine-live-statistics", consequences=FAR)
def _frozen_norms_in_a_network_that_trains(subject: Subject) -> Case:
    """γ and β have no gradient, filters have (gh:speedinghzl/Pytorch-Deeplab/issues/17)."""
    for _, norm in norms_of(subject.model):
        norm.requires_grad_(False)
    fit_(subject.model, subject.labelled(64, 60), rate=subject.rate / 20)
    subject.model.train()
    return case(subject)


@tuning("momentum-convention", consequences=FAR | {"statistics-noise", "statistics-horizon"}, damages=True)
def _a_momentum_of_nine_tenths_with_batches_of_eight(subject: Subject) -> Case:
    """``BatchNorm2d(filters, momentum=0.9)``, everywhere (gh:eriklindernoren/PyTorch-YOLOv3/issues/230)."""
    for _, norm in norms_of(subject.model):
        norm.momentum = 0.9
    fit_(subject.model, subject.labelled(8, 100), rate=subject.rate / 20)
    return Case(model=subject.model.train(), batches=subject.data.batches(8, 32))


@tuning(*GAP, consequences=FAR, repairable=True, costs=True)
def _a_summary_before_the_evaluation(subject: Subject) -> Case:
    """It sends two samples of ``rand`` through a network that trains (gh:sksq96/pytorch-summary/issues/67)."""
    generator = torch.Generator().manual_seed(subject.draw.randrange(2**31))
    subject.follow_([torch.rand(2, *subject.data.train[0].shape[1:], generator=generator)])
    return case(subject)


# Deployment.


@tuning("domain-shift", consequences=FAR, costs=True)
def _to_tensor_without_normalize(subject: Subject) -> Case:
    """Inputs in [0, 1]; the loader of training subtracted and divided (gh:sha2nkt/deco/issues/22)."""
    return fed(subject, lambda x: x * STD + MEAN)
