"""``steadynorm doctor``: what it can be told, and the diagnosis of a model from files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from difflib import get_close_matches
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro
from torch import Tensor, nn

from steadynorm.checkup.data import Sample, Wanted, load_sample
from steadynorm.checkup.treatment import check_target, reloaded, treat
from steadynorm.deploy.source import load_source
from steadynorm.doctor import CHECKS, Diagnosis, accuracy, judge, observe
from steadynorm.doctor.evidence import Evidence
from steadynorm.doctor.score import logits_of
from steadynorm.lab.configuration import check_at_least
from steadynorm.lab.machine import choose_device
from steadynorm.reporting.diagnosis import Examination, Treated
from steadynorm.reporting.environment import describe_machine, describe_versions
from steadynorm.reporting.failure import UserError, check_known, one_line
from steadynorm.reporting.flags import as_config, command_of
from steadynorm.reporting.progress import Display
from steadynorm.surgery.batches import evaluating, feed
from steadynorm.surgery.flow.trial import run

__all__ = ["DoctorConfig", "explain", "run_doctor"]

STATISTICS = ("running_mean", "running_var")
MOST = 32
"""Batches that a treatment takes at most."""


@dataclass(frozen=True, kw_only=True)
class DoctorConfig:
    """Find faults of normalization in a model, say what they cost and what to do, and repair them.

    The exit status is 0 where nothing worse than a note is found, 1 where something is, 2 where it cannot be done.
    """

    source: Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="CHECKPOINT|PACKAGE.MODULE:FUNCTION")] = (
        None
    )
    """A checkpoint of an experiment, or a function that builds a model; in training mode it is looked at as one that is
    trained."""
    weights: Path | None = None
    """Weights for a built model: .safetensors, or what torch.save wrote (a state dict, or a checkpoint that holds one);
    no pickled code is run. Default: as it is built."""
    weights_key: str | None = None
    """Where in that file they are, such as ema; default: found by the model's names."""
    data: Annotated[str | None, tyro.conf.arg(metavar="cifar10|DIR|FILE.npz")] = None
    """Training images of cifar10, shapes, digits or mnist; a directory with a folder of images for each class; or an
    .npz file with x and, for accuracy, y. Default: none; the checks of modules and their state alone run."""
    data_dir: Path | None = None
    """Where CIFAR-10 or MNIST lies, as for an experiment."""
    mean: tuple[float, ...] | None = None
    """Subtracted from pixels in [0, 1], by channel; default: the data set's, ImageNet's for a directory."""
    std: tuple[float, ...] | None = None
    """What the centred pixels are divided by; default likewise."""
    input_size: tuple[int, int] | None = None
    """Height and width of the images; default: what they have, 224 224 for a directory."""
    batch_size: int = 64
    """Samples in a batch; give the one that the model is trained with."""
    batches: int = 8
    """Checks look at the first 8 of them, --treat at 32."""
    seed: int = 0
    """Decides which samples are taken."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the model runs."""
    skip: tuple[str, ...] = ()
    """Checks that are not to run."""
    treat: Path | None = None
    """Repair what can be repaired, measure again, keep what helped, and write the weights into this new .safetensors
    file; the exit status is then that of a model built anew with them."""
    json: tuple[Path, ...] | None = None
    """Write the diagnosis as JSON into a file; without a name on standard output, in place of the table."""
    sarif: Path | None = None
    """Write it as SARIF 2.1.0 into this file."""
    html: Path | None = None
    """Write it as one page into this file."""
    explain: str | None = None
    """Print what a check looks at, why that harms, and what to do; then end."""
    list: bool = False
    """Print the name of every check, what it finds and what it needs; then end."""


def run_doctor(config: DoctorConfig, display: Display) -> Examination:
    """Diagnose a model.

    Raises:
        UserError: it cannot be done.
    """
    source = check_config(config)
    found = load_source(source, weights=config.weights, key=config.weights_key, may_lack=STATISTICS)
    if found.weights:
        display.message(found.weights)
    model = found.model.to(choose_device(config.device))
    sample, told = _sample(config, model, display)
    evidence = _observed(model, sample)
    diagnosis = judge(evidence, skip=config.skip)
    return Examination(
        diagnosis=diagnosis,
        model=found.name,
        told=tuple(filter(None, (found.weights, told))),
        has_data=sample is not None,
        scores=_scores(evidence),
        command=command_of("doctor", config),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        config=as_config(config),
        versions=describe_versions(),
        machine=describe_machine(next(chain(model.parameters(), model.buffers()), torch.empty(0)).device),
        treated=None if config.treat is None else _treated(config, source, model, diagnosis, sample),
    )


def _treated(
    config: DoctorConfig, source: str, model: nn.Module, diagnosis: Diagnosis, sample: Sample | None
) -> Treated:
    """Treat the model, and look at one built anew with what was written."""
    assert config.treat is not None
    found = treat(model, diagnosis, sample, source=source, out=config.treat)
    if not found.file:
        return found
    anew = reloaded(source, config.treat).to(choose_device(config.device))
    return replace(found, remaining=judge(_observed(anew, sample), skip=config.skip))


def explain(name: str) -> str:
    """Give the page of a check.

    Raises:
        UserError: none is called so; the message names those of like names, and all.
    """
    if name in CHECKS:
        return CHECKS[name].explain()
    near = get_close_matches(name.lower().replace("_", "-"), CHECKS, n=3, cutoff=0.5)
    meant = f" Did you mean {' or '.join(near)}?" if near else ""
    raise UserError(f"--explain: no check is called {name!r}.{meant} They are {', '.join(CHECKS)}.")


def check_config(config: DoctorConfig) -> str:
    """Check the flags, and give the source.

    Raises:
        UserError: a number is out of range, there is no source, or a flag would do nothing.
    """
    if config.source is None:
        raise UserError(
            "give the model: PACKAGE.MODULE:FUNCTION that builds it, or a checkpoint; or --explain CHECK, or --list."
        )
    if config.treat is not None:
        check_target(config.treat)
    check_at_least(config, (("batch_size", 1), ("batches", 1), ("seed", 0)))
    if config.batches > MOST:
        raise UserError(f"--batches: must be at most {MOST}, more are not looked at, got {config.batches}.")
    if config.input_size is not None and min(config.input_size) < 1:
        raise UserError(f"--input-size: must be at least 1, got {' '.join(map(str, config.input_size))}.")
    if config.std is not None and (not config.std or min(config.std) <= 0):
        raise UserError("--std: must be numbers above 0.")
    if config.mean is not None and not config.mean:
        raise UserError("--mean: must be numbers.")
    if config.weights_key is not None and config.weights is None:
        raise UserError("--weights-key: says where in a file of weights they are. Give the file by --weights.")
    check_known("--skip", config.skip, CHECKS, what="check")
    if config.json is not None and len(config.json) > 1:
        raise UserError(f"--json: must be one file, got {len(config.json)}. Give the model before the flags.")
    for name in () if config.data is not None else ("data_dir", "mean", "std", "input_size"):
        if getattr(config, name) is not None:
            raise UserError(f"--{name.replace('_', '-')}: says how data are read. Give them by --data.")
    return config.source


def _sample(config: DoctorConfig, model: nn.Module, display: Display) -> tuple[Sample | None, str]:
    """Load the data, and say what they are; without labels where accuracy on them would mean nothing."""
    if config.data is None:
        return None, ""
    wanted = Wanted(
        batch_size=config.batch_size,
        number=config.batches,
        seed=config.seed,
        mean=config.mean,
        std=config.std,
        input_size=config.input_size,
        data_dir=config.data_dir,
    )
    sample = _in_dtype_of(model, load_sample(config.data, wanted, display.message))
    output = _tried(model, sample, config)
    unscored = _why_unscored(sample, output)
    told = f"Data: {sample.told}."
    return (
        (sample, told) if not unscored else (sample.without_labels(), f"{told} Accuracy is not measured: {unscored}.")
    )


def _in_dtype_of(model: nn.Module, sample: Sample) -> Sample:
    """Give the inputs the dtype of the model's first parameter that is floating."""
    wanted = next((each.dtype for each in model.parameters() if each.is_floating_point()), torch.float32)

    def cast(x: Tensor) -> Tensor:
        return x.to(wanted) if x.is_floating_point() else x

    batches = tuple(cast(each) if isinstance(each, Tensor) else (cast(each[0]), each[1]) for each in sample.batches)
    return replace(sample, batches=batches)


def _tried(model: nn.Module, sample: Sample, config: DoctorConfig) -> Any:  # noqa: ANN401 (whatever a model gives)
    """Run the model on one batch, so that what it does not take is said in one line.

    Raises:
        UserError: it does not take the batch.
    """
    batch = sample.batches[0]
    try:
        return run(model, batch, feed, within=evaluating(model))
    except Exception as error:  # a model's forward may raise anything
        x = batch if isinstance(batch, Tensor) else batch[0]
        size = " Give the size it was made for by --input-size." if x.dim() == 4 else ""
        raise UserError(
            f"--data: the model does not take an input of shape {tuple(x.shape)}: {one_line(error)}.{size}"
        ) from error


def _why_unscored(sample: Sample, output: Any) -> str:  # noqa: ANN401 (whatever a model gives)
    """Say why accuracy is not measured; nothing if it is."""
    logits = logits_of(output)
    if sample.classes == 0:
        return "there are no labels"
    if logits is None or len(logits) != len(sample.batches[0][0]):
        return "the model gives no row of logits for each sample"
    if logits.shape[1] < sample.classes or min(int(labels.min()) for _, labels in sample.batches) < 0:
        return f"there are labels of {sample.classes} classes, and the model has {logits.shape[1]} outputs"
    return ""


def _observed(model: nn.Module, sample: Sample | None) -> Evidence:
    """Look at the model.

    Raises:
        UserError: it cannot be looked at.
    """
    batches: Sequence[Any] | None = None if sample is None else list(sample.batches)
    metric = accuracy if sample is not None and sample.classes else None
    return observe(model, batches, metric=metric)


def _scores(evidence: Evidence) -> Mapping[str, float]:
    """Give the accuracy by the statistics that are used; empty where it was not measured."""
    runs = evidence.batches
    if runs is None or evidence.score is None:
        return {}
    each = {"stored": runs.evaluation, "batch": runs.by_batch}
    return {name: -sum(scores) / len(scores) for name, scores in each.items() if scores}
