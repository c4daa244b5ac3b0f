"""Code that was added to a network."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from benchmarks.doctor.faults.registry import GAP, case, tuning
from benchmarks.doctor.subject import Case, Norm, Subject, last_linear, norms_of, put, shapes_of, that_keep_the_shape
from benchmarks.doctor.training import fit_


class _Centred(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(0, keepdim=True)


@tuning("batch-dependence", consequences=GAP)
def _features_centred_by_their_batch(subject: Subject) -> Case:
    """In front of the classifier, as for a contrastive loss, and in use as well."""
    name, last = last_linear(subject.model)
    put(subject.model, name, nn.Sequential(_Centred(), last))
    fit_(subject.model, subject.labelled(64, 30), rate=subject.rate / 20)
    return case(subject)


class _Pooled(nn.Module):
    """A norm's output, and a little of what the whole map says, as the pooling branch of DeepLab's ASPP says it."""

    def __init__(self, norm: Norm, dim: int) -> None:
        super().__init__()
        channels = norm.num_features
        self.norm, self.dims = norm, tuple(range(2, dim))
        if dim == 4:
            self.branch = nn.Sequential(nn.Conv2d(channels, channels, 1, bias=False), nn.BatchNorm2d(channels))
        else:
            self.branch = nn.Sequential(nn.Conv1d(channels, channels, 1, bias=False), nn.BatchNorm1d(channels))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm(x)
        pooled: Tensor = self.branch(y.mean(self.dims, keepdim=True))
        return y + 0.1 * functional.relu(pooled)


@tuning("values-per-channel", "statistics-noise", consequences=GAP)
def _a_pooled_branch_with_batches_of_two(subject: Subject) -> Case | None:
    """Maps have values enough; their means have two (gh:open-mmlab/mmsegmentation/issues/272)."""
    shapes = shapes_of(subject.model, subject.inputs(2, 1)[0])
    if any(len(shape) == 2 for shape in shapes.values()):
        return None  # its own norms of vectors have two as well
    name, norm = subject.one_norm()
    put(subject.model, name, _Pooled(norm, len(shapes[name])))
    fit_(subject.model, subject.labelled(16, 60), rate=subject.rate / 20)
    subject.model.train()
    return Case(model=subject.model, batches=subject.data.batches(2), layers=frozenset({f"{name}.branch.1"}))


class _Rows(nn.Module):
    """``reshape(-1, C)`` of a map (N, C, ...) whose channels were not moved to the end before."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(channels)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm(x.reshape(-1, x.shape[1]))
        return y.view(x.shape)


@tuning("axis-suspect", consequences=GAP)
def _rows_cut_across_channels(subject: Subject) -> Case | None:
    """The sizes fit, and each channel of the norm sees values of all of the map's; training goes on."""
    shapes = shapes_of(subject.model, subject.inputs(2, 1)[0])
    plain = {name for name, norm in norms_of(subject.model) if type(norm) in (nn.BatchNorm1d, nn.BatchNorm2d)}
    found = [(name, shape[1]) for name, shape in shapes.items() if name in plain and len(shape) > 2]
    if not found:
        return None
    name, channels = subject.draw.choice(found)
    put(subject.model, name, _Rows(channels))
    fit_(subject.model, subject.labelled(64, 100), rate=subject.rate / 10)
    return case(subject, f"{name}.norm")


class _Unrolled(nn.Module):
    """A block that is run three times on its own output."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(3):
            x = self.block(x)
        return x


def _parts(model: nn.Module) -> list[str]:
    """Name parts with norms and weights."""
    found: list[str] = []
    for name, part in model.named_modules():
        kinds = {type(each) for each in part.modules()}
        if name and any(issubclass(kind, Norm) for kind in kinds) and len(kinds) > 2:
            found.append(name)
    return found


@tuning("reused-norm", *GAP, consequences=frozenset({"outlier-statistics"}), costs=True)
def _a_block_unrolled_with_one_set_of_norms(subject: Subject) -> Case | None:
    """Each step would need estimates of its own (Cooijmans et al. 2017, arXiv 1603.09025)."""
    found = that_keep_the_shape(subject.model, subject.inputs(2, 1)[0], _parts(subject.model))
    if not found:
        return None
    name = subject.draw.choice(found)
    put(subject.model, name, _Unrolled(subject.model.get_submodule(name)))
    fit_(subject.model, subject.labelled(64, 100), rate=subject.rate / 4)
    return case(subject)
