"""A model that differs from its checkpoint.

Looks at: the names, shapes and values of a checkpoint compared with those of the model. Wrappers' prefixes and nested
mappings are understood. A missing ``num_batches_tracked`` is not a fault: torch fills it in.

Harm: ``load_state_dict(strict=False)`` skips entries that do not fit. If those are running statistics, the layer
evaluates with those of a new layer, and accuracy is near chance although every weight is right. Loaders that copy
``parameters()`` do the same.

Remedy: rename the keys or build the checkpoint's model, and load again; ``load_statistics_`` loads the statistics
alone, and names what it refuses. ``treat_`` with the checkpoint does so, and loads weights only if that improves the
score. Safe: you asked for this checkpoint.

Threshold: none for names, shapes and statistics that are missing. Values count as equal if they are equal in the
coarser dtype of the two. A norm whose statistics, weight or bias differ is named if most of the model's weight matrices
are the checkpoint's: later training would have moved them all. A weight matrix that is almost as far from the
checkpoint's as an independent draw (0.9 of its size; independent draws are √2 apart) was not loaded. Smaller
differences in most tensors come from training, and are a note.

Source: pytorch issue 8430; ultralytics/yolov3 issue 20; huggingface/peft issue 1732.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from steadynorm.doctor.evidence import CheckpointState, Evidence
from steadynorm.doctor.finding import Finding, Remedy, Severity, at, of_model

NEEDS = ("checkpoint",)
STATISTICS = ("running_mean", "running_var")
_LISTED = 3
FAR = 0.9
"""Relative distance from the checkpoint's weights above which weights were not loaded; independent draws have √2."""
_MISSING = Remedy(
    advice="Load a checkpoint that has its statistics, or measure them on training images (recalibrate_).",
    treatment="recalibrate",
)
_LOAD = Remedy(
    advice="Load the checkpoint's statistics (load_statistics_), if they were not changed on purpose.",
    treatment="load",
)
_RELOAD = Remedy(advice="Load the checkpoint, if the model is meant to match it.", treatment="load")
_BUILD = Remedy(advice="Rename the checkpoint's keys, or build the model that it was saved from, and load it again.")


def run(evidence: Evidence) -> Iterator[Finding]:
    """Find them."""
    checkpoint = evidence.checkpoint
    assert checkpoint is not None
    without = {_owner(name) for name in (*checkpoint.missing, *checkpoint.misshapen) if _is_statistic(name)}
    loaded = 2 * len(checkpoint.apart) <= checkpoint.matrices
    others = {_owner(name) for name in checkpoint.different}
    for norm in evidence.norms:
        if norm.name in without:
            problem = "The checkpoint has no running statistics for it, so its own come from elsewhere."
            yield at(norm, Severity.WARNING, problem, _MISSING)
        elif norm.name in checkpoint.moved and loaded:
            distance = checkpoint.moved[norm.name]
            problem = (
                f"Its running statistics are {distance:.2g} standard deviations from the checkpoint's, though "
                f"{'most of ' if checkpoint.different else ''}the model's weights are the checkpoint's."
            )
            yield at(norm, Severity.WARNING, problem, _LOAD, distance=distance)
        elif norm.name in others and loaded:
            problem = "Its weight or bias is not the checkpoint's, though most of the model's weights are."
            yield at(norm, Severity.WARNING, problem, _RELOAD)
    yield from _names(checkpoint)
    yield from _not_loaded(evidence, checkpoint)
    if checkpoint.different:
        problem = (
            f"{len(checkpoint.different)} of {checkpoint.compared} weights are not the checkpoint's: "
            f"{_some(checkpoint.different)}. It was not loaded, or the model was trained since."
        )
        yield of_model(Severity.NOTE, problem, _RELOAD)


def _not_loaded(evidence: Evidence, checkpoint: CheckpointState) -> Iterator[Finding]:
    """Find weights that are as far from the checkpoint's as independent draws."""
    names = [name for name, distance in checkpoint.apart.items() if distance > FAR]
    modules = [evidence.by_name[owner] for owner in map(_owner, names) if owner in evidence.by_name]
    if len(names) > _LISTED or len(modules) < len(names):
        problem = (
            f"{len(names)} weights have nothing in common with the checkpoint's: {_some(names)}. They were not loaded."
        )
        yield of_model(Severity.WARNING, problem, _RELOAD, names=len(names))
        return
    for module, name in zip(modules, names, strict=True):
        problem = f"{name} has nothing in common with the checkpoint's, so it was not loaded."
        yield at(module, Severity.WARNING, problem, _RELOAD, distance=checkpoint.apart[name])


def _names(checkpoint: CheckpointState) -> Iterator[Finding]:
    weights = [name for name in checkpoint.missing if not _is_statistic(name)]
    if weights:
        problem = f"The checkpoint has no {_some(weights)}, so the model keeps its own values there."
        yield of_model(Severity.WARNING, problem, _BUILD, names=len(weights))
    lost = [name for name in checkpoint.unknown if _is_statistic(name)]
    if lost:
        problem = f"The checkpoint has running statistics that no layer of the model takes: {_some(lost)}."
        yield of_model(Severity.WARNING, problem, _BUILD, names=len(lost))
    others = [name for name in checkpoint.unknown if not _is_statistic(name) and not name.endswith("batches_tracked")]
    if others:
        problem = f"The checkpoint has names that the model does not have: {_some(others)}."
        yield of_model(Severity.NOTE, problem, _BUILD, names=len(others))
    shapes = {name: text for name, text in checkpoint.misshapen.items() if not _is_statistic(name)}
    if shapes:
        name, text = next(iter(shapes.items()))
        problem = f"{len(shapes)} of the checkpoint's shapes are not the model's: {name} is {text}."
        yield of_model(Severity.WARNING, problem, _BUILD, names=len(shapes))


def _is_statistic(name: str) -> bool:
    return name.rpartition(".")[2] in STATISTICS


def _owner(name: str) -> str:
    return name.rpartition(".")[0]


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_LISTED]) + (f" and {len(names) - _LISTED} more" if len(names) > _LISTED else "")
