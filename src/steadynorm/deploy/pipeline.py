"""From a trained model to files that serve it: check, fold, export, quantise, verify, measure."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from steadynorm.deploy.configuration import ExportConfig, check_config, chosen_formats, is_own_data, with_data
from steadynorm.deploy.formats import FORMATS, Request
from steadynorm.deploy.latency import measure
from steadynorm.deploy.processes import Server
from steadynorm.deploy.readiness import check_ready
from steadynorm.deploy.results import Artifact, Outcome, write_outcome
from steadynorm.deploy.source import Source, as_logits, load_source
from steadynorm.lab.data import Dataset, Images, evaluation_batches, first, load_dataset
from steadynorm.lab.experiment import as_config, command_of, new_place
from steadynorm.lab.machine import choose_threads, describe_machine, describe_versions
from steadynorm.lab.progress import Display
from steadynorm.reporting.chance import most_frequent
from steadynorm.reporting.failure import UserError, one_line
from steadynorm.reporting.records import Record, write_config
from steadynorm.surgery import NothingDoneError, Refused, fold_, to_torch_

__all__ = ["EAGER", "FOLDED", "run_export"]

EAGER = Artifact(name="eager torch", format="eager", quantize="none", note="The model as it was trained.")
FOLDED = Artifact(name="eager torch, folded", format="folded", quantize="none", note="Batch norms in the weights.")
RUNTIMES = ("torchao", "onnx", "onnxscript", "onnxruntime")
TOLERANCE = 1e-4
"""Largest error of a float file, relative to the largest magnitude of an output."""
BATCH = 64
IMAGES = "images.npy"


@dataclass(frozen=True, kw_only=True)
class _Bench:
    """What files are compared on, and how they are served."""

    scratch: Path
    """Where processes meet: images.npy is float32 of shape (N, 3, H, W)."""
    threads: int
    """Of each process."""
    labels: NDArray[np.int64] | None
    """None where the model's classes are not the data's."""
    expected: NDArray[np.float32]
    """The eager model's outputs."""

    @property
    def images(self) -> Path:
        """What every process is asked with."""
        return self.scratch / IMAGES


def run_export(config: ExportConfig, display: Display) -> Path:
    """Export a model.

    Returns:
        the directory that holds the files and their record; the report is still to be made.

    Raises:
        UserError: it cannot be done; then no directory is left behind.
    """
    check_config(config)
    place = config.out or new_place("export")
    if place.exists() or place.is_symlink():
        raise UserError(f"--out: {place} exists already. Give a new directory.")
    config, is_own = with_data(config), is_own_data(config)
    assert config.data is not None
    threads = choose_threads(config.threads)
    source, norms = _loaded(config, display)
    dataset = load_dataset(config.data, data_dir=config.data_dir, progress=display.message)
    chosen = first(dataset.validation, config.images)
    images = _scaled(chosen, dataset, config.input_size)
    model = as_logits(source.model, images[:2])
    folded, number, steps = _folded(model, images[:8])
    display.message(" ".join(steps))
    calibration = torch.split(_scaled(first(dataset.train, config.calibration_images), dataset, config.input_size), 16)
    request = Request(model=folded, example=images[:2].clone(), calibration=calibration)
    place.parent.mkdir(parents=True, exist_ok=True)
    with _new_directory(place) as directory, tempfile.TemporaryDirectory() as scratch:
        paths = {EAGER.name: _pickled(model, Path(scratch) / "eager.pt")}
        if number:
            paths[FOLDED.name] = _pickled(folded, Path(scratch) / "folded.pt")
        np.save(Path(scratch) / IMAGES, images.numpy())
        expected = _answers(paths[EAGER.name], _serving(EAGER), Path(scratch), threads)
        unscored = _why_unscored(dataset, expected.shape[1], is_own=is_own)
        if unscored:
            display.message(unscored)
        labels = None if unscored else chosen.labels.numpy()
        bench = _Bench(scratch=Path(scratch), threads=threads, labels=labels, expected=expected)
        found = [_compared(EAGER, expected, bench)]
        if number:
            answers = _answers(paths[FOLDED.name], _serving(FOLDED), Path(scratch), threads)
            found.append(_compared(FOLDED, answers, bench))
        found += _make_all(request, bench, directory, config, display)
        paths |= {one.name: directory / one.file for one in found if one.file}
        display.message(f"timing {config.requests:,} requests to each of {len(paths)}, in turn")
        outcome = Outcome(
            model=source.name,
            parameters=sum(parameter.numel() for parameter in model.parameters()),
            norms=norms,
            steps=tuple(filter(None, (source.weights, *steps, unscored))),
            artifacts=tuple(_timed(found, paths, bench, config)),
        )
        write_config(directory, _record(config, threads=threads, labels=chosen.labels))
        write_outcome(directory, outcome)
    return place


def _loaded(config: ExportConfig, display: Display) -> tuple[Source, int]:
    """Load the model and say what it is; with the number of its batch norms."""
    source = load_source(config.source, weights=config.weights, key=config.weights_key)
    if source.weights:
        display.message(source.weights)
    norms = check_ready(source.model)
    display.message(f"{source.name}: {f'{norms} batch norms, all sound' if norms else 'no batch norms'}")
    return source, norms


def _make_all(
    request: Request, bench: _Bench, directory: Path, config: ExportConfig, display: Display
) -> list[Artifact]:
    """Write every format in every way.

    Raises:
        UserError: none could be written.
    """
    plans = [(name, way) for name in chosen_formats(config) for way in dict.fromkeys(config.quantize)]
    made = []
    for number, (name, way) in enumerate(plans, start=1):
        artifact = Artifact(name=f"{FORMATS[name].title}{_suffix(way)}", format=name, quantize=way)
        display.begin_cell(artifact.name, number=number, of=len(plans))
        try:
            artifact = _make(artifact, request, bench, directory, max_drop=config.max_drop)
        except UserError as error:
            artifact = replace(artifact, refused=str(error))
            display.message(f"  no {artifact.name}: {error}")
        display.end_cell(artifact.name)
        made.append(artifact)
    if not any(one.file for one in made):
        raise UserError(f"nothing could be exported: {made[0].name}: {made[0].refused}")
    return made


def _make(artifact: Artifact, request: Request, bench: _Bench, directory: Path, *, max_drop: float) -> Artifact:
    """Write a file and compare what a fresh process makes of it.

    Raises:
        UserError: there is no such file, or it does not answer as the model does; then it is removed.
    """
    form = FORMATS[artifact.format]
    if artifact.quantize not in form.writers:
        raise UserError(form.lacking[artifact.quantize])
    path = directory / f"model-{artifact.format}-{artifact.quantize}{form.suffix}"
    note = form.write(request, artifact.quantize, path)
    try:
        answers = _answers(path, form.serving, bench.scratch, bench.threads)
        artifact = replace(artifact, file=path.name, note=note, mib=path.stat().st_size / 2**20)
        artifact = _compared(artifact, answers, bench)
        _check(artifact, bench, max_drop=max_drop)
    except UserError:
        path.unlink()
        raise
    return artifact


def _record(config: ExportConfig, *, threads: int, labels: torch.Tensor) -> Record:
    runtimes = {name: found for name in RUNTIMES if (found := _version(name))}
    return Record(
        experiment="export",
        command=command_of("export", config),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        config=as_config(config) | {"quick": False},
        resolved={
            "format": chosen_formats(config),
            "threads": threads,
            "images": len(labels),
            "chance": most_frequent(labels),
        },
        versions=describe_versions() | runtimes,
        machine=describe_machine(torch.device("cpu")),
    )


def _version(package: str) -> str | None:
    with contextlib.suppress(PackageNotFoundError):
        return version(package)
    return None


def _timed(artifacts: list[Artifact], paths: dict[str, Path], bench: _Bench, config: ExportConfig) -> list[Artifact]:
    """Time what there is, each in a process that has done nothing else."""
    with contextlib.ExitStack() as servers:
        running = {
            one.name: servers.enter_context(_server(paths[one.name], _serving(one), bench.threads))
            for one in artifacts
            if one.name in paths
        }
        return measure(artifacts, running, images=bench.images, requests=config.requests, batch_sizes=config.batch_size)


def _compared(artifact: Artifact, answers: NDArray[np.float32], bench: _Bench) -> Artifact:
    error = float(np.abs(answers - bench.expected).max())
    top, expected = answers.argmax(1), bench.expected.argmax(1)
    return replace(
        artifact,
        largest_error=error,
        relative_error=error / max(float(np.abs(bench.expected).max()), 1e-30),
        agreement=float((top == expected).mean()),
        accuracy=None if bench.labels is None else float((top == bench.labels).mean()),
    )


def _check(artifact: Artifact, bench: _Bench, *, max_drop: float) -> None:
    """Refuse a file that answers otherwise than the model.

    Raises:
        UserError: it does.
    """
    assert artifact.relative_error is not None and artifact.agreement is not None
    if not np.isfinite(artifact.relative_error):
        raise UserError("its outputs are not finite.")
    if artifact.quantize == "none":
        if artifact.relative_error > TOLERANCE:
            raise UserError(
                f"its outputs are off by {artifact.relative_error:.1g} of the largest, more than {TOLERANCE:g}."
            )
        return
    if artifact.accuracy is None or bench.labels is None:
        drop, what = 1 - artifact.agreement, "% of the images get another class than from the model"
    else:
        drop = float((bench.expected.argmax(1) == bench.labels).mean()) - artifact.accuracy
        what = "points of accuracy lost"
    if round(100 * drop, 9) > max_drop:  # 0.01 is not quite a hundredth
        raise UserError(f"{100 * drop:.1f} {what}, more than --max-drop {max_drop:g}.")


def _folded(model: nn.Module, example: Tensor) -> tuple[nn.Module, int, list[str]]:
    """Fold a copy; whatever of ours is left becomes torch's, so that files need nothing of this package.

    Returns:
        the copy, how many batch norms were folded, and what was done in words.
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
    """Turn into torch's layers what can be, and say how many were."""
    try:
        change = to_torch_(model)
    except NothingDoneError:
        return model, 0
    return change.model, len(change.changed)


def _why_unscored(dataset: Dataset, outputs: int, *, is_own: bool) -> str:
    """Say why agreement with the model takes the place of accuracy, nothing where it does not."""
    if outputs != len(dataset.classes):
        why = f"the model has {outputs} outputs, {dataset.name} {len(dataset.classes)} classes"
    elif not is_own:
        why = f"{dataset.name} is not known to hold the model's classes; if another --data does, give it"
    else:
        return ""
    return f"Accuracy is not measured: {why}. Files are compared by their agreement with the model."


def _scaled(images: Images, dataset: Dataset, size: tuple[int, int]) -> Tensor:
    """Normalize images as in training and scale them, by bilinear interpolation."""
    parts = evaluation_batches(images, dataset=dataset, batch_size=256, device=torch.device("cpu"))
    whole = torch.cat([part for part, _ in parts]).contiguous(memory_format=torch.contiguous_format)
    if tuple(whole.shape[2:]) == tuple(size):
        return whole
    return F.interpolate(whole, size=size, mode="bilinear", align_corners=False, antialias=True)


def _pickled(model: nn.Module, path: Path) -> Path:
    try:
        torch.save(model, path)
    except OSError:
        raise
    except Exception as error:
        raise UserError(f"the model cannot be pickled for a process of its own: {one_line(error)}.") from error
    return path


def _serving(artifact: Artifact) -> str:
    return FORMATS[artifact.format].serving if artifact.format in FORMATS else "eager.py"


def _server(path: Path, serving: str, threads: int) -> Server:
    return Server(path, serving=serving, threads=threads, own=serving == "eager.py")


def _answers(path: Path, serving: str, scratch: Path, threads: int) -> NDArray[np.float32]:
    with _server(path, serving, threads) as server:
        server.ask("predict", images=str(scratch / IMAGES), outputs=str(scratch / "outputs.npy"), batch=BATCH)
    answers: NDArray[np.float32] = np.load(scratch / "outputs.npy")
    return answers


def _suffix(way: str) -> str:
    return "" if way == "none" else f", {way} int8"


@contextlib.contextmanager
def _new_directory(place: Path) -> Iterator[Path]:
    """Give a directory that takes its name when the block ends; on an exception nothing is left."""
    directory = Path(tempfile.mkdtemp(dir=place.parent, prefix=f".{place.name}."))
    try:
        yield directory
        directory.chmod(0o755)
        directory.rename(place)
    except BaseException:
        shutil.rmtree(directory, ignore_errors=True)
        raise
