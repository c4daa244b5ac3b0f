"""Networks that were combined from others, or whose weights were changed, without regard to the estimates."""

from __future__ import annotations

import copy

import torch
from torch import nn
from torch.nn.utils import parametrizations

from benchmarks.doctor.faults.registry import GAP, case, tuning
from benchmarks.doctor.subject import Case, Subject, fed_by, norms_of
from benchmarks.doctor.training import fit_


@tuning(*GAP, consequences=frozenset({"outlier-statistics"}), repairable=True, damages=True, costs=True)
def _federated_averages_with_the_last_clients_buffers(subject: Subject) -> Case:
    """The server averages parameters; buffers are those of the last client (gh:TsingZ0/PFLlib/issues/260).

    Each of five clients has two classes.
    """
    x, labels = subject.data.train
    clients = []
    for shard in labels.argsort(stable=True).chunk(5):
        rows = shard[torch.tensor([subject.draw.randrange(len(shard)) for _ in range(64 * 20)])]
        batches = zip(x[rows].split(64), labels[rows].split(64), strict=True)
        clients.append(fit_(copy.deepcopy(subject.model), batches, rate=subject.rate / 50))
    with torch.no_grad():
        for kept, *others in zip(subject.model.parameters(), *(each.parameters() for each in clients), strict=True):
            kept.copy_(torch.stack(others).mean(0))
        for kept_buffer, last in zip(subject.model.buffers(), clients[-1].buffers(), strict=True):
            kept_buffer.copy_(last)
    return case(subject)


@tuning(*GAP, repairable=True, damages=True, costs=True)
def _two_trainings_averaged_with_their_buffers(subject: Subject) -> Case:
    """Variances collapse between two networks (Jordan et al. 2022, arXiv 2211.08403), and estimates do not."""
    both = [
        fit_(copy.deepcopy(subject.model), subject.labelled(64, 100), rate=2 * subject.rate).state_dict()
        for _ in range(2)
    ]
    subject.model.load_state_dict(
        {key: (value + both[1][key]) / 2 if value.is_floating_point() else value for key, value in both[0].items()}
    )
    return case(subject)


@tuning("negative-variance", consequences=GAP | {"outlier-statistics"}, repairable=True, damages=True)
def _a_task_vector_subtracted_with_its_buffers(subject: Subject) -> Case | None:
    """Negation of a task (Ilharco et al. 2023, arXiv 2212.04089) on all that the file has, variances included."""
    task = copy.deepcopy(subject.model)
    fit_(task, [(1.8 * x, labels) for x, labels in subject.labelled(64, 40)], rate=subject.rate / 50)
    tuned = task.state_dict()
    subject.model.load_state_dict(
        {
            key: 2 * value - tuned[key] if value.is_floating_point() else value
            for key, value in subject.model.state_dict().items()
        }
    )
    below = [bool((norm.running_var < 0).any()) for _, norm in norms_of(subject.model) if norm.running_var is not None]
    return case(subject) if any(below) else None


@tuning("nonfinite-statistics", consequences=GAP, repairable=True)
def _clients_weighted_by_counters_that_are_zero(subject: Subject) -> Case:
    """Estimates are averaged by batches seen, and a port that has no counters left them at 0: 0 / 0."""
    for _, norm in norms_of(subject.model):
        assert norm.num_batches_tracked is not None
        norm.num_batches_tracked.zero_()
        counters = torch.zeros(3)
        shares = (counters / counters.sum()).unsqueeze(1)
        for estimate in (norm.running_mean, norm.running_var):
            assert estimate is not None
            estimate.copy_((shares * estimate.expand(3, -1)).sum(0))
    return case(subject)


@tuning(*GAP, repairable=True, damages=True, costs=True)
def _filters_of_low_rank(subject: Subject) -> Case | None:
    """Filters are replaced by what two fifths of their singular values give, as a factorisation for speed does."""
    kinds = (nn.Conv1d, nn.Conv2d)
    layers = [module for module in subject.model.modules() if isinstance(module, kinds) and module.groups == 1]
    for module in layers:
        flat = module.weight.detach().flatten(1)
        u, s, v = torch.linalg.svd(flat, full_matrices=False)
        s[max(1, int(0.4 * len(s))) :] = 0
        module.weight.data.copy_(((u * s) @ v).view_as(module.weight))
    return case(subject) if layers else None


@tuning(*GAP, consequences=frozenset({"outlier-statistics"}), repairable=True, damages=True, costs=True)
def _spectral_norm_put_on_after_training(subject: Subject) -> Case | None:
    """It divides filters by their largest singular value; what a norm makes of its inputs' scale is no change."""
    names = dict(fed_by(subject.model, subject.inputs(8, 1)[0]))
    for name in names:
        parametrizations.spectral_norm(subject.model.get_submodule(name))
    subject.model.eval()
    return case(subject) if names else None


# Files that lack a part.


@tuning("checkpoint-diff", consequences=GAP, repairable=True, damages=True, costs=True)
def _a_file_of_trained_parameters_over_another_networks_buffers(subject: Subject) -> Case:
    """An adapter's file keeps what has a gradient (gh:huggingface/peft/issues/1732)."""
    tuned = copy.deepcopy(subject.model)
    fit_(tuned, subject.labelled(64, 120), rate=subject.rate)
    whole = {name: tensor.clone() for name, tensor in tuned.state_dict().items()}
    subject.model.load_state_dict(dict(tuned.named_parameters()), strict=False)
    return case(subject, checkpoint=whole)


@tuning("checkpoint-diff", "statistics-at-init", consequences=GAP | {"outlier-statistics"}, repairable=True)
def _a_layer_and_its_norm_left_out_by_a_filter(subject: Subject) -> Case | None:
    """The loader skips what does not fit by name or size, and says so in a log (gh:pytorch/pytorch/issues/8430)."""
    pairs = fed_by(subject.model, subject.inputs(8, 1)[0])
    if not pairs:
        return None
    whole = {name: tensor.clone() for name, tensor in subject.model.state_dict().items()}
    layer, norm = subject.draw.choice(pairs)
    for name in (layer, norm):
        subject.model.get_submodule(name).reset_parameters()  # type: ignore[operator]
    return case(subject, norm, checkpoint=whole)
