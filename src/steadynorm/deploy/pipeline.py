"""Turn a trained model into files that serve it: check, fold, export, quantise, verify and time."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from steadynorm.deploy.comparison import Comparison, eager_outputs
from steadynorm.deploy.formats import FORMATS, QUANTIZATIONS, Request
from steadynorm.deploy.latency import measure
from steadynorm.deploy.readiness import check_ready
from steadynorm.deploy.results import Artifact, Outcome, write_outcome
from steadynorm.deploy.source import as_logits
from steadynorm.lab.weights import load_weights
from steadynorm.reporting.environment import count_cores
from steadynorm.reporting.failure import UserError, check_known, one_line
from steadynorm.reporting.place import new_directory
from steadynorm.reporting.progress import Display, silent_display
from steadynorm.surgery import NothingDoneError, Refused, fold_, to_torch_

__all__ = ["EAGER", "FOLDED", "export", "plans"]

EAGER = Artifact(name="eager torch", format="eager", quantize="none", note="The model as it was trained.")
FOLDED = Artifact(name="eager torch, folded", format="folded", quantize="none", note="Batch norms in the weights.")
CALIBRATION_BATCH = 16
WEIGHTS = ("weights", "weights_key")
"""Names of the arguments in errors."""


def export(
    model: nn.Module,
    images: Tensor | Sequence[Tensor],
    *,
    out: str | Path,
    formats: str | Sequence[str] | None = None,
    quantize: str | Sequence[str] = "none",
    weights: str | Path | None = None,
    weights_key: str | None = None,
    calibration: Tensor | Sequence[Tensor] | None = None,
    labels: Tensor | None = None,
    max_drop: float = 1.0,
    requests: int = 0,
    batch_sizes: Sequence[int] = (),
    threads: int | None = None,
    progress: Display | None = None,
) -> Outcome:
    """Fold, export and quantise a trained model, and prove that each file answers as the model does.

    Each file is read again by a fresh process that cannot import steadynorm, and answers ``images`` there. A float
    file that is off by more than 1e-4 of the largest output is not kept, nor is a quantised one that costs more than
    ``max_drop``; why stands in :attr:`Artifact.refused`. The model is left as it is: modes, buffers, hooks, random
    numbers.

    Args:
        model: in evaluation mode, on any device; takes one float32 tensor of shape (N, ...) and gives logits of shape
            (N, classes), an object with ``logits``, or a tuple that begins with them. The files are for a CPU.
        images: inputs to compare on, one batch or several. Files keep the shape after N; N stays free.
        out: new or empty directory for the files and ``artifacts.json``. On an exception nothing is left there.
        formats: of ``torchscript``, ``torch-export``, ``aotinductor``, ``onnx``. Default: all that this machine can
            write.
        quantize: of ``none``, ``dynamic`` (linear layers in int8), ``static`` (convolutions too).
        weights: file to load into the model's copy, ``.safetensors`` or of ``torch.save``; no pickled code is run.
        weights_key: where in that file they are, such as ``ema``. Default: found by the model's names.
        calibration: inputs in which static quantisation sees the ranges of activations. Default: ``images``.
        labels: classes of ``images``, int64 of shape (N,); without them the share of images that keep the model's
            class takes the place of accuracy.
        max_drop: percentage points that quantising may cost.
        requests: timed requests of one image to each file and to eager torch; 0 times nothing. Eager torch has a
            process of its own as well, so the model's class must then be importable.
        batch_sizes: images in a request, for the throughput.
        threads: of a request. Default: torch's number.
        progress: receives progress messages.

    Returns:
        the files, their agreement with the model, their latency, and why others were refused.

    Raises:
        UserError: an argument cannot be used, the model is not ready (see :func:`check_ready`), or no file could be
            made.
        OSError: a file cannot be written.

    Example: ``export(model, images, out="served", formats="onnx").of("onnx").relative_error``
    """
    planned = plans(formats, quantize)
    inputs = _inputs(images, "images")
    ranges = inputs if calibration is None else _inputs(calibration, "calibration")
    if labels is not None and labels.shape != inputs.shape[:1]:
        raise UserError(f"labels: must be one for each of {len(inputs)} images, got shape {tuple(labels.shape)}.")
    if threads is not None and not 1 <= threads <= count_cores():
        raise UserError(f"threads: must be 1 to {count_cores()}, the cores that this process may use, got {threads}.")
    progress = progress or silent_display()
    with (
        new_directory(Path(out), name="out") as directory,
        tempfile.TemporaryDirectory() as scratch,
        contextlib.ExitStack() as servers,
        torch.random.fork_rng(devices=()),
    ):
        ready = _ready(model, inputs, weights=weights, key=weights_key)
        progress.message(" ".join(ready.folding))
        comparison = Comparison(
            scratch=Path(scratch),
            threads=threads or min(torch.get_num_threads(), count_cores()),
            labels=None if labels is None else labels.numpy(),
            expected=eager_outputs(ready.model, inputs),
            max_drop=max_drop,
        )
        np.save(comparison.images, inputs.numpy())
        # Their processes start first: where one cannot, no file has to be made to find that out.
        timed = {
            one.name: servers.enter_context(comparison.serve_eager(module))
            for one, module in ready.eager
            if requests > 0
        }
        found = [comparison.measured(one, eager_outputs(module, inputs)) for one, module in ready.eager]
        request = Request(
            model=ready.folded,
            example=inputs[[0, min(1, len(inputs) - 1)]],
            calibration=torch.split(ranges, CALIBRATION_BATCH),
        )
        found += _make_all(planned, request, comparison, directory, progress)
        if requests > 0:
            for one in found:
                if one.file:
                    timed[one.name] = servers.enter_context(comparison.serve(directory / one.file, one))
            progress.message(f"timing {requests:,} requests to each of {len(timed)}, in turn")
            found = measure(found, timed, images=comparison.images, requests=requests, batch_sizes=batch_sizes)
        outcome = Outcome(
            model=type(model).__name__,
            parameters=sum(parameter.numel() for parameter in ready.model.parameters()),
            norms=ready.norms,
            steps=tuple(filter(None, (ready.weights, *ready.folding))),
            artifacts=tuple(found),
            directory=directory,
        )
        write_outcome(outcome)
    return replace(outcome, directory=Path(out))


@dataclass(frozen=True, kw_only=True)
class _Ready:
    """A model that passed the checks for export, and its folded copy."""

    model: nn.Module
    """The model on the CPU, with its weights; returns logits."""
    folded: nn.Module
    """The folded copy, which the files hold."""
    norms: int
    """Number of batch norms in the model."""
    number: int
    """Number of batch norms that were folded."""
    weights: str
    """What was read from a weights file; empty without one."""
    folding: list[str]
    """Results of folding, one sentence each."""

    @property
    def eager(self) -> list[tuple[Artifact, nn.Module]]:
        """Eager models that files are compared with; the folded copy only if it differs."""
        return [(EAGER, self.model), *([(FOLDED, self.folded)] if self.number else [])]


def _ready(model: nn.Module, inputs: Tensor, *, weights: str | Path | None, key: str | None) -> _Ready:
    """Copy a model, load its weights, check it, and fold a copy of the copy.

    Raises:
        UserError: the model cannot be copied or folded, the weights do not match, or it is not ready for export.
    """
    try:
        copy = deepcopy(model).cpu()
    except (RuntimeError, TypeError, NotImplementedError) as error:
        raise UserError(f"the model cannot be copied: {one_line(error)}.") from error
    read = "" if weights is None else load_weights(copy, Path(weights), key=key, options=WEIGHTS)
    norms = check_ready(copy)
    copy = as_logits(copy, inputs[:2])
    folded, number, steps = _folded(copy, inputs[:8])
    return _Ready(model=copy, folded=folded, norms=norms, number=number, weights=read, folding=steps)


def plans(
    formats: str | Sequence[str] | None,
    quantize: str | Sequence[str],
    options: tuple[str, str] = ("formats", "quantize"),
) -> list[tuple[str, str]]:
    """Return every combination of format and quantisation to make.

    Args:
        formats: names of formats; None means all that this machine can write.
        quantize: names of quantisations.
        options: names of the two arguments above in errors.

    Raises:
        UserError: a name is unknown, a format cannot be written here, or no format has such a quantisation.
    """
    chosen, wanted = _names(formats), _names(quantize)
    check_known(options[0], chosen, FORMATS, what="format")
    check_known(options[1], wanted, QUANTIZATIONS, what="quantisation")
    if not wanted:
        raise UserError(f"{options[1]}: must be at least one of {', '.join(QUANTIZATIONS)}, got nothing.")
    for name in chosen:
        if why := FORMATS[name].absent():
            raise UserError(f"{options[0]} {name}: {why}")
    chosen = chosen or [name for name, one in FORMATS.items() if not one.absent()]
    if all(each in FORMATS[name].lacking for name in chosen for each in wanted):
        one = FORMATS[chosen[0]]
        raise UserError(f"{options[1]} {wanted[0]}: {one.title} has none: {one.lacking[wanted[0]]}")
    return [(name, each) for name in chosen for each in wanted]


def _names(given: str | Sequence[str] | None) -> list[str]:
    return list(dict.fromkeys((given,) if isinstance(given, str) else given or ()))


def _inputs(batches: Tensor | Sequence[Tensor], name: str) -> Tensor:
    """Concatenate batches of inputs on the CPU."""
    parts = [batches] if isinstance(batches, Tensor) else list(batches)
    for each in parts or (None,):
        if not isinstance(each, Tensor) or each.dtype != torch.float32 or each.dim() < 2:
            got = f"{each.dtype} of shape {tuple(each.shape)}" if isinstance(each, Tensor) else type(each).__name__
            raise UserError(f"{name}: must be float32 tensors of shape (N, ...), got {got}.")
    shapes = dict.fromkeys(tuple(each.shape[1:]) for each in parts)
    if len(shapes) > 1:
        raise UserError(f"{name}: batches must have one shape after N, got {' and '.join(map(str, shapes))}.")
    whole = torch.cat([each.detach().cpu() for each in parts])
    if not len(whole):
        raise UserError(f"{name}: must hold at least one, got shape {tuple(whole.shape)}.")
    return whole.contiguous()


def _make_all(
    planned: Sequence[tuple[str, str]],
    request: Request,
    comparison: Comparison,
    directory: Path,
    progress: Display,
) -> list[Artifact]:
    """Make every file.

    Raises:
        UserError: none could be made.
    """
    made = []
    for number, (name, quantize) in enumerate(planned, start=1):
        suffix = "" if quantize == "none" else f", {quantize} int8"
        artifact = Artifact(name=f"{FORMATS[name].title}{suffix}", format=name, quantize=quantize)
        progress.begin(artifact.name, number=number, of=len(planned))
        try:
            artifact = _make(artifact, request, comparison, directory)
        except UserError as error:
            artifact = replace(artifact, refused=str(error))
            progress.message(f"  no {artifact.name}: {error}")
        progress.end(artifact.name)
        made.append(artifact)
    if not any(one.file for one in made):
        raise UserError(f"nothing could be exported: {made[0].name}: {made[0].refused}")
    return made


def _make(artifact: Artifact, request: Request, comparison: Comparison, directory: Path) -> Artifact:
    """Write a file, and compare its outputs in a fresh process with the model's.

    Raises:
        UserError: the file cannot be written, or its outputs do not agree with the model's; then it is removed.
    """
    form = FORMATS[artifact.format]
    path = directory / f"model-{artifact.format}-{artifact.quantize}{form.suffix}"
    note = form.write(request, artifact.quantize, path)
    try:
        artifact = replace(artifact, file=path.name, note=note, mib=path.stat().st_size / 2**20)
        artifact = comparison.measured(artifact, comparison.answers(path, artifact))
        comparison.check(artifact)
    except UserError:
        path.unlink()
        raise
    return artifact


def _folded(model: nn.Module, example: Tensor) -> tuple[nn.Module, int, list[str]]:
    """Fold a copy, and convert its remaining layers of this package to torch's, so that files do not need the package.

    Returns:
        the copy, the number of folded batch norms, and a description of the steps.
    """
    copy = deepcopy(model)
    try:
        number, refused = 0, tuple[Refused, ...]()
        try:
            change = fold_(copy, example)
            copy, number, refused = change.model, len(change.changed), change.refused
        except NothingDoneError as error:
            refused = error.refused
        copy, turned = _to_torch(copy)
    except (RuntimeError, TypeError, ValueError) as error:
        raise UserError(f"the model cannot be folded: {one_line(error)}.") from error
    steps = [f"{number or 'No'} batch norms folded into the weights beside them."]
    steps += [f"Not folded: {each}" for each in refused]
    if turned:
        steps.append(f"{turned} layers turned into torch's own.")
    return copy, number, steps


def _to_torch(model: nn.Module) -> tuple[nn.Module, int]:
    """Convert layers to torch's where possible, and return their number."""
    try:
        change = to_torch_(model)
    except NothingDoneError:
        return model, 0
    return change.model, len(change.changed)
