"""Evaluate under shift: by running statistics of several decays, and by methods that adapt without a gradient.

Question: which decay of the running statistics survives a shift of the data (0.9, 0.99, 0.5, self-tuned)? And may a
network take its statistics from the shifted stream without ever being worse off than with the stored ones?

Expected: swapping the labels of two classes, the article's shift, moves no activation, so no decay can survive it
better than another. Under corrupted images stored statistics fail at any decay; a batch's own win much of it back where
the stream is mixed well, and lose everything where it is ordered by class or shows one class (Schneider et al. 2020,
arXiv 2006.16971; Gong et al. 2022, arXiv 2208.05117). The gate should lose at most 0.5 points against the stored
statistics on any stream, and keep nine tenths of what batch statistics win on well-mixed ones.

Cost: on two cores, the training (a minute an epoch of CIFAR-10), then some ten seconds for each of a hundred streams of
1,000 images.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any, Self

import torch
from torch import Tensor, nn

from steadynorm.adaptation import ADAPTATIONS, Calibration
from steadynorm.lab.cells import Job, Measure, measure_cells
from steadynorm.lab.configuration import OneRateConfig, check_experiment, check_split, settings_of
from steadynorm.lab.data import Dataset, Images, evaluation_batches, some, take
from steadynorm.lab.data.cifar10_c import CIFAR10_C, load_cifar10_c
from steadynorm.lab.data.corruptions import CORRUPTIONS, OF_COLOUR, SEVERITIES, corrupt
from steadynorm.lab.data.streams import mix_domains, stream
from steadynorm.lab.describe.arms import finals
from steadynorm.lab.describe.claims import expected, tolerated
from steadynorm.lab.describe.figures import chart
from steadynorm.lab.describe.method import method_of, sentences
from steadynorm.lab.describe.names import method_label
from steadynorm.lab.describe.networks import all_measured, networks_as_json
from steadynorm.lab.evaluation import evaluate
from steadynorm.lab.experiment import Experiment, Task
from steadynorm.lab.judging import (
    calibrated,
    calibration_images,
    check_methods,
    check_possible,
    judge_methods,
    left_out_methods,
    without_uncalibrated,
)
from steadynorm.lab.several_decays import DECAYS, with_decay
from steadynorm.lab.training import network, train_networks
from steadynorm.reporting.chance import chance_of
from steadynorm.reporting.claims import compare, is_guessing, judge, too_few, unless_guessing
from steadynorm.reporting.failure import UserError
from steadynorm.reporting.numbers import NONE, SPACE, percent, points
from steadynorm.reporting.records import Cell, Factors, Measurement, Record
from steadynorm.reporting.report import Block, Claim, Claims, Entry, Figure, Figures, Report, Section, Table, Text
from steadynorm.reporting.seeds import Spread, mean, spread, spreads
from steadynorm.reporting.words import capital, counted, listing

__all__ = ["ARM", "CLEAN", "EXPERIMENT", "KINDS", "MIXED", "SWAPPED", "ShiftConfig"]

ARM = "several_decays"
CLEAN, SWAPPED, MIXED = "clean", "swapped_labels", "mixed"
"""Shown beside the corruptions: the images as they are; with labels 0 and 1 swapped; all corruptions at once."""
KINDS = ("iid", "class_ordered", "bursts", "single_class", "one_by_one")
"""Order of the images; see :mod:`steadynorm.lab.data.streams`. The last is iid in batches of one."""
CALIBRATION = 2000  # training images for the calibration of methods
NAMED = STORED, BATCH, GATE = "stored", "batch", "gate"
"""Methods that the report names: the two extremes, and the one that chooses between them."""
LIMIT = 0.005
"""Largest loss against the stored statistics on a stream at which a method counts as safe."""
SHARE = 0.9
"""Share of batch statistics' gain that the gate should keep."""
SAME = 0.01
"""Changes of error that differ by less count as equal."""
KIND_LABELS = {
    "iid": "well mixed",
    MIXED: "corruptions mixed",
    "class_ordered": "class by class",
    "bursts": "bursts",
    "single_class": "single class",
    "one_by_one": "one by one",
}
"""Names of the kinds of streams, in display order."""
SHIFT_LABELS = {CLEAN: "clean", SWAPPED: "labels 0 and 1 swapped", MIXED: "all corruptions"}


@dataclass(frozen=True, kw_only=True)
class ShiftConfig(OneRateConfig):
    """Train once, then evaluate under shift: with running statistics of several decays, and with methods that adapt.

    With --data cifar10, the files of CIFAR-10-C (gaussian_noise.npy and so on, with labels.npy) are used if --data-dir
    has them. Otherwise, and on other data, the same kinds of corruptions are computed.
    """

    methods: tuple[str, ...] = tuple(ADAPTATIONS)
    """Methods that choose the statistics of a test batch."""
    corruptions: tuple[str, ...] = tuple(CORRUPTIONS)
    """Corruptions of the test images; saturate does nothing to gray images, and is left out for them."""
    severities: tuple[int, ...] = SEVERITIES
    """Severities of the corruptions, from 1 to 5; streams that are not well mixed have the highest one only."""
    stream_images: int = 1000
    """Images in each stream; all validation images if there are fewer."""
    stream_batch: int = 100
    """Images that arrive together."""
    single_images: int = 300
    """Images in the streams of single images."""
    epochs: int = 8
    milestones: tuple[int, ...] = (6,)


QUICK: dict[str, Any] = {"widths": (8, 16, 32), "epochs": 6, "milestones": (5,), "severities": (5,)}
QUICK |= {"corruptions": ("gaussian_noise", "contrast"), "stream_images": 200, "stream_batch": 50, "single_images": 20}


def _work(task: Task[ShiftConfig]) -> None:
    """Train one network for each seed, then show it every stream."""
    task = replace(task, config=_that_change(task))
    config, settings = task.config, settings_of(task.config, task.record)
    runs = train_networks(task, [_network(config, seed) for seed in config.seeds], settings)
    lost = [run.name for run in runs if run.status != "finished"]
    if lost:
        raise UserError(f"shift: the network must train to the end, {', '.join(lost)} diverged. Lower --lr.")
    grid = [factors for seed in config.seeds for factors in _grid(config, seed)]
    measure_cells(grid, _measure, task)


def _check_fits(config: ShiftConfig, dataset: Dataset) -> None:
    """Refuse data on which no requested corruption or method is possible.

    Raises:
        UserError: every requested corruption or method is left out.
    """
    check_possible(config.methods, dataset)
    if not _shown(config.corruptions, dataset.channels):
        raise UserError(
            f"--corruptions: {listing(config.corruptions)} changes nothing in images of one channel. Choose others."
        )


def _that_change(task: Task[ShiftConfig]) -> ShiftConfig:
    """Drop the corruptions of color for gray images, and methods that cannot be calibrated."""
    names = _shown(task.config.corruptions, task.dataset.channels)
    if len(names) < len(task.config.corruptions):
        listed = listing([name for name in task.config.corruptions if name not in names])
        task.display.message(f"left out, since it changes nothing in images of one channel: {listed}")
    methods = without_uncalibrated(task.config.methods, task.dataset, task.display)
    return replace(task.config, corruptions=names, methods=methods)


def _shown(corruptions: Sequence[str], channels: int) -> tuple[str, ...]:
    return tuple(name for name in corruptions if channels > 1 or name not in OF_COLOUR)


def _network(config: ShiftConfig, seed: int) -> Factors:
    return network(arm=ARM, seed=seed, lr=config.lr, epochs=config.epochs)


def _grid(config: ShiftConfig, seed: int) -> Iterator[Factors]:
    """Yield the cells of a seed: stored statistics of each decay, then the methods on each stream."""
    shifts: list[tuple[str, int]] = [(name, severity) for severity in config.severities for name in config.corruptions]
    for name, severity in [(CLEAN, 0), (SWAPPED, 0), *shifts]:
        yield {"part": "decays", "shift": name, "severity": severity, "seed": seed}
    hardest = [(name, severity) for name, severity in shifts if severity == max(config.severities)]
    for kind in KINDS:
        shown = shifts if kind == "iid" else hardest
        mixed = [(MIXED, severity) for severity in config.severities] if kind == "iid" else []
        for name, severity in [(CLEAN, 0), *shown, *mixed]:
            yield {"part": "stream", "kind": kind, "shift": name, "severity": severity, "seed": seed}


def _measure(task: Task[ShiftConfig]) -> Measure:
    """Make the function that measures a cell; each seed's network is loaded and calibrated once."""
    config, dataset, settings = task.config, task.dataset, settings_of(task.config, task.record)
    predict = partial(judge_methods, config.methods, dataset=dataset, settings=settings)

    @cache
    def trained(seed: int) -> nn.Module:
        return task.trained(_network(config, seed))

    @cache
    def adapting(seed: int) -> tuple[nn.Module, Calibration | None]:
        model = with_decay(trained(seed), DECAYS[0])
        few = calibration_images(dataset, CALIBRATION, batch_size=config.stream_batch)
        batches = evaluation_batches(few, dataset=dataset, batch_size=config.stream_batch, device=settings.device)
        return model, calibrated(config.methods, model, batches)

    def measure(job: Job) -> Iterator[Measurement]:
        shift, severity, seed = (job.factors[name] for name in ("shift", "severity", "seed"))
        if job.factors["part"] == "decays":
            images = _images(task, shift, severity, seed, config.stream_images)
            if shift == SWAPPED:
                yield Measurement(quantity="swapped", value=(images.labels < 2).double().mean().item())
            for decay in (*DECAYS, None):
                _, accuracy = evaluate(with_decay(trained(seed), decay), images, dataset, settings)
                yield Measurement(subject=str(decay or "self_tuned"), quantity="accuracy", value=accuracy)
            return
        images, order = _stream(task, job.factors["kind"], shift, severity, seed)
        yield Measurement(quantity="images", value=float(len(images)))
        yield Measurement(quantity="published", value=float(_published(task, shift, severity) is not None))
        yield from predict(*adapting(seed), images, order, advance=job.advance)

    return measure


def _stream(task: Task[ShiftConfig], kind: str, shift: str, severity: int, seed: int) -> tuple[Images, list[Tensor]]:
    """Return the images of a stream and its batches."""
    config, alone = task.config, kind == "one_by_one"
    if shift == MIXED:
        domains = [_images(task, name, severity, seed, config.stream_images) for name in config.corruptions]
        images, _ = mix_domains(domains, seed=seed)
        return images, list(torch.split(torch.arange(len(images)), config.stream_batch))
    count = config.single_images if alone else config.stream_images
    images = _images(task, shift, severity, seed, count, one_class=kind == "single_class")
    order = kind if kind in ("class_ordered", "bursts") else "iid"
    return images, stream(images.labels, order, batch_size=1 if alone else config.stream_batch, seed=seed)


def _images(
    task: Task[ShiftConfig], shift: str, severity: int, seed: int, count: int, *, one_class: bool = False
) -> Images:
    """Return the first ``count`` validation images, or random ones of one class, in stream order."""
    published = _published(task, shift, severity)
    images = published or task.dataset.validation
    if one_class:
        images = take(images, torch.cat(stream(images.labels, "single_class", batch_size=count, seed=seed)))
    images = some(images, count)
    if shift in CORRUPTIONS and published is None:
        return corrupt(images, shift, severity=severity, seed=seed)
    if shift == SWAPPED:
        return replace(images, labels=torch.where(images.labels < 2, 1 - images.labels, images.labels))
    return images


def _published(task: Task[ShiftConfig], shift: str, severity: int) -> Images | None:
    """Return CIFAR-10-C's own images, where they are there and the data are CIFAR-10 in its own size."""
    is_own = task.config.data == "cifar10" and task.dataset.image_size == (32, 32)
    if shift not in CIFAR10_C or task.config.data_dir is None or not is_own:
        return None
    return load_cifar10_c(task.config.data_dir, shift, severity=severity)


def _check(config: ShiftConfig) -> None:
    check_methods(config.methods)
    unknown = [name for name in config.corruptions if name not in CORRUPTIONS]
    if unknown:
        raise UserError(f"--corruptions: none is called {unknown[0]!r}. Choose from {', '.join(CORRUPTIONS)}.")
    if not set(config.severities) <= set(SEVERITIES):
        raise UserError(f"--severities: must be from 1 to 5, got {' '.join(map(str, config.severities))}.")
    least = {"stream_images": 1, "stream_batch": 2, "single_images": 1}
    check_experiment(config, ("methods", "corruptions", "severities"), least=least)
    check_split(config.batch_size)


def describe(record: Record) -> Report:
    """Say what a shift costs, and how much of that other statistics win back."""
    found, decays = conditions(record, "stream"), conditions(record, "decays")
    words = _stream_words(record)
    return Report(
        headline=_headline(record, found),
        lead=sentences(record, LEAD, **words),
        table=_short_table(found),
        sections=(
            Section(title="Result", blocks=(Figures(_gains(found)), *_result(found))),
            expected(Claims(_claims(record, found, decays))),
            Section(title="Each corruption", short="Corruptions", blocks=(Figures(_corruptions(found)),)),
            Section(title="Which decay survives", short="Decays", blocks=_decays(decays)),
            Section(title="Every stream", blocks=tuple(_every_stream(found))),
        ),
        method=method_of(
            record,
            METHOD,
            source=_source(record),
            left_out=_left_out(record),
            no_gate=left_out_methods(record),
            **words,
        ),
        finished=all_measured(record),
        findings=_findings(record, found, decays),
    )


@dataclass(frozen=True, kw_only=True)
class Condition:
    """A shift of the images in one kind of stream, and the errors there; spreads are over the seeds."""

    kind: str
    """How images arrive; ``mixed`` where every batch holds all corruptions, empty where nothing adapts."""
    shift: str
    severity: int
    images: int
    """In the smallest stream of any seed."""
    error: Mapping[str, Spread]
    """Method, or decay of the stored statistics -> share of wrong predictions."""
    gain: Mapping[str, Spread]
    """Method -> error of the stored statistics less its own, seed by seed; empty without stored ones."""

    @classmethod
    def of(cls, kind: str, shift: str, severity: int, cells: Sequence[Cell]) -> Self:
        """Collect the errors of the cells of several seeds."""
        errors = [{name: 1 - value for name, value in cell.values("accuracy").items()} for cell in cells]
        gains = [{name: each[STORED] - error for name, error in each.items()} for each in errors if STORED in each]
        images = min(int(cell.values("images").get("", 0)) for cell in cells)
        return cls(kind=kind, shift=shift, severity=severity, images=images, error=spreads(errors), gain=spreads(gains))

    @property
    def shift_label(self) -> str:
        """Name the shift."""
        return SHIFT_LABELS.get(self.shift, self.shift.replace("_", " "))

    @property
    def label(self) -> str:
        """Name the shift with its severity."""
        return f"{self.shift_label} {self.severity}" if self.severity else self.shift_label


def conditions(record: Record, part: str) -> list[Condition]:
    """Collect what is measured in a part of the grid, in its order."""
    grouped: dict[tuple[str, str, int], list[Cell]] = {}
    for cell in record.select(part=part):
        if cell.has_ended:
            shift = cell.factors["shift"]
            kind = MIXED if shift == MIXED else cell.factors.get("kind", "")
            grouped.setdefault((kind, shift, cell.factors["severity"]), []).append(cell)
    return [Condition.of(*place, cells) for place, cells in grouped.items()]


def kept_share(found: Iterable[Condition], method: str) -> float | None:
    """Return the share of batch statistics' gain that a method keeps on corrupted, well-mixed streams of batches.

    Returns:
        sum of its gains over the sum of theirs, where theirs are positive; None where there are none.
    """
    gains = [one.gain for one in found if one.kind == "iid" and one.shift != CLEAN]
    won = [gain for gain in gains if {method, BATCH} <= gain.keys() and gain[BATCH].mean > 0]
    return sum(gain[method].mean for gain in won) / sum(gain[BATCH].mean for gain in won) if won else None


def worst(found: Iterable[Condition], method: str) -> Condition | None:
    """Find the stream on which a method loses most, or gains least, against the stored statistics."""
    return min((one for one in found if method in one.gain), key=lambda one: one.gain[method].mean, default=None)


def mean_error(found: Iterable[Condition], name: str) -> float:
    """Average an error over conditions, each counting alike; NaN of none."""
    return mean(one.error[name].mean for one in found if name in one.error)


def _findings(record: Record, found: Sequence[Condition], decays: Sequence[Condition]) -> dict[str, Any]:
    def of_stream(one: Condition) -> dict[str, Any]:
        errors = {method: round(error.mean, 6) for method, error in one.error.items()}
        gains = {method: [round(x, 6) for x in (gain.mean, gain.low, gain.high)] for method, gain in one.gain.items()}
        return vars(one) | {"n": max(error.n for error in one.error.values()), "error": errors, "gain": gains}

    methods = [str(method) for method in record.config["methods"]]
    least = {method: one for method in methods if (one := worst(found, method))}
    return {
        "limit": LIMIT,
        "kept_share": {method: kept_share(found, method) for method in methods},
        "worst": {
            method: vars(one) | {"method": method, "error": one.error[method], "gain": one.gain[method]}
            for method, one in least.items()
        },
        "decays": [
            {"decay": decay, "shift": one.shift, "severity": one.severity, "error": error}
            for one in decays
            for decay, error in one.error.items()
        ],
        "streams": [of_stream(one) for one in found],
        "runs": networks_as_json(record),
    }


def _names(found: Iterable[Condition]) -> list[str]:
    """List the methods, or decays, that were measured."""
    return list(dict.fromkeys(name for one in found for name in one.error))


def _by_kind(found: Sequence[Condition]) -> dict[str, list[Condition]]:
    """Group streams by the name of their kind, in the order of the names."""
    grouped = {label: [one for one in found if one.kind == kind] for kind, label in KIND_LABELS.items()}
    return {label: here for label, here in grouped.items() if here}


def _errors(found: Sequence[Condition]) -> Callable[[str], str]:
    return lambda name: percent(mean_error(found, name))


def _short_table(found: Sequence[Condition]) -> Table:
    """Lay out what fits into a terminal: error where streams are well mixed, and what is kept and lost at most."""
    columns: dict[str, Callable[[str], str]] = {
        "statistics": str,
        "error, well mixed": _errors([one for one in found if one.kind == "iid"]),
        "kept of batch's gain": lambda method: percent(kept_share(found, method), digits=0),
        "at worst, points": lambda method: f"{_lost(one, method):+.1f}" if (one := worst(found, method)) else NONE,
    }
    return Table.of(_names(found), columns)


def _lost(one: Condition, method: str) -> float:
    return 100 * one.gain[method].mean


NOTE = """
Error, averaged over streams: clean and corrupted ones at every severity where they are well mixed, clean ones and the
hardest severity elsewhere. The last two columns compare with the stored statistics on the same images: the share of
batch statistics' gain on corrupted, well-mixed streams that is kept, and the stream on which most is lost.
"""


def _result(found: Sequence[Condition]) -> tuple[Block, ...]:
    """Lay out the error of each method by kind of stream, and what it keeps and loses."""

    def kept(method: str) -> str:
        return NONE if method == STORED else percent(kept_share(found, method), digits=0)

    def at_worst(method: str) -> Entry:
        least = worst(found, method)
        if least is None or method == STORED:
            return Entry(text=NONE)
        note, tone = f"{KIND_LABELS[least.kind]}, {least.label}", "bad" if _is_unsafe(least, method) else ""
        return Entry(text=f"{_lost(least, method):+.1f}{SPACE}points", note=note, tone=tone)

    columns: dict[str, Callable[[str], Entry | str]] = {
        "Statistics": lambda method: capital(method_label(method)),
        **{capital(label): _errors(here) for label, here in _by_kind(found).items()},
        "Of batch's gain kept": kept,
        "Worst stream": at_worst,
    }
    return (Table.of(_names(found), columns), Text(" ".join(NOTE.split()))) if found else ()


def _is_unsafe(one: Condition, method: str) -> bool:
    return method in one.gain and one.gain[method].mean < -tolerated(LIMIT, one.images)


def _every_stream(found: Sequence[Condition]) -> Iterator[Block]:
    """Yield a table of errors for each kind of stream."""
    for label, here in _by_kind(found).items():
        yield Text(f"{capital(label)}: error, in bold where it is lower than the stored statistics'.")
        columns: dict[str, Callable[[Condition], Entry | str]] = {
            "Shift": lambda one: Entry(text=capital(one.label), note=f"{one.images:,} images"),
            **{capital(method_label(method)): partial(_error_cell, method) for method in _names(here)},
        }
        yield Table.of(here, columns)


def _error_cell(method: str, one: Condition) -> Entry:
    is_better = method in one.gain and one.gain[method].mean > 0
    tone = "strong" if is_better else "bad" if _is_unsafe(one, method) else ""
    return Entry(text=percent(one.error[method].mean), tone=tone)


def _decays(decays: Sequence[Condition]) -> tuple[Block | None, ...]:
    """Show the error of each decay's stored statistics: clean, with swapped labels, and by severity."""
    rows = {capital(SHIFT_LABELS[name]): [one for one in decays if one.shift == name] for name in (CLEAN, SWAPPED)}
    for severity in sorted({one.severity for one in decays if one.severity}):
        rows[f"Corruptions, severity {severity}"] = [one for one in decays if one.severity == severity]

    def error(decay: str) -> Callable[[str], str]:
        return lambda row: _errors(rows[row])(decay)

    table = Table.of(rows, {"Shift": str, **{capital(_decay(name)): error(name) for name in _names(decays)}})
    return (Figures(_by_severity(decays)), table, _survivor(decays)) if decays else ()


def _decay(name: str) -> str:
    return f"decay {name}" if name[0].isdigit() else "self-tuned momentum"


def _gains(found: Sequence[Condition]) -> list[Figure]:
    """Draw the gain of each method over the stored statistics, by kind of stream."""
    rows = [
        {"statistics": method_label(method), "stream": KIND_LABELS[one.kind], "gain": 100 * gain.mean}
        for one in found
        for method, gain in one.gain.items()
        if method != STORED
    ]
    return chart(
        "dot_ranges",
        rows,
        name="gains",
        title="Gain over the stored statistics",
        caption="Dot: mean of a kind's streams, clean and corrupted. Line: its worst to its best stream.",
        rows="statistics",
        x="gain",
        x_title="points",
        signed=True,
        hue="stream",
        order=list(_by_kind(found)),
    )


def _corruptions(found: Sequence[Condition]) -> list[Figure]:
    """Draw the error under each corruption at its hardest on well-mixed streams."""
    hardest = max((one.severity for one in found), default=0)
    here = [one for one in found if one.kind == "iid" and one.severity in (0, hardest)]
    rows = [
        {"shift": one.shift_label, "statistics": method_label(method)}
        | {"error": error.mean, "low": error.low, "high": error.high}
        for one in here
        for method, error in one.error.items()
        if method in NAMED
    ]
    return chart(
        "dot_ranges",
        rows,
        name="corruptions",
        title=f"Error on well-mixed streams, severity {hardest}",
        caption="Dot: mean of the seeds. Line: their lowest to highest error.",
        rows="shift",
        x="error",
        ends=("low", "high"),
        percent=True,
        hue="statistics",
        order=[method_label(name) for name in NAMED if name in _names(here)],
    )


def _by_severity(decays: Sequence[Condition]) -> list[Figure]:
    """Draw the error of each decay's stored statistics over the severity."""
    names, shown = _names(decays), [one for one in decays if one.shift != SWAPPED]
    severities = list(dict.fromkeys(one.severity for one in shown))
    rows = [
        {"decay": _decay(name), "severity": severity}
        | {"error": mean_error([one for one in shown if one.severity == severity], name)}
        for name in names
        for severity in severities
    ]
    axes: dict[str, Any] = {"x": "severity", "x_title": "severity (0: clean)", "x_values": sorted(severities)}
    return chart(
        "lines",
        rows,
        name="decays",
        title="Error of stored statistics by severity",
        caption="Mean over corruptions and seeds.",
        **axes,
        y="error",
        percent=True,
        dots=True,
        hue="decay",
        order=list(map(_decay, names)),
    )


def _claims(record: Record, found: Sequence[Condition], decays: Sequence[Condition]) -> list[Claim]:
    """Judge the expectations, in the order of the experiment's question."""
    corrupted = [one for one in found if one.kind == "iid" and one.severity]
    ordered = [one for one in found if one.kind == "class_ordered"]
    wins = "On corrupted, well-mixed streams a batch's own statistics err less than the stored ones."
    judged = (
        _swap_costs_the_same(decays, _swapped(record)),
        _batch_and_stored(wins, corrupted, higher=False),
        _batch_and_stored("On streams ordered by class they err more.", ordered, higher=True),
        _safe(found),
        _keeps(found),
    )
    return [unless_guessing(item, chance_of(record), {"the network": _trained(record)}) for item in judged]


def _swapped(record: Record) -> float:
    """Return the share of images with swapped labels; 0 for older records, which lack it."""
    cells = record.select(part="decays", shift=SWAPPED)
    shares = [share for cell in cells for share in cell.values("swapped").values()]
    return mean(shares) if shares else 0.0


def _swap_costs_the_same(decays: Sequence[Condition], share: float) -> Claim:
    """Judge by how much each decay's mean error grows if the labels of two classes are swapped.

    A decay that is right on more of these images loses more. Of two decays that differ by d on clean images the changes
    may differ by twice d times the share of the images; with two classes they do, exactly.
    """
    claim = "Swapping the labels of two classes costs every decay the same: no activation moves."
    errors = {one.shift: one.error for one in decays}
    clean, swapped = errors.get(CLEAN, {}), errors.get(SWAPPED, {})
    changes = {name: error.mean - clean[name].mean for name, error in swapped.items() if name in clean}
    if not changes:
        return judge(claim, None, "It was not measured.")
    texts = [f"{100 * change:+.1f} at {decay.replace('_', '-')}" for decay, change in changes.items()]
    before = [clean[name].mean for name in changes]
    allowed = 2 * share * (max(before) - min(before))
    alike = max(changes.values()) - min(changes.values()) < SAME + allowed
    explained = (
        f" They differ in clean error, which lets their changes differ by up to {points(allowed)}."
        if allowed > SAME
        else ""
    )
    return judge(claim, alike, f"Change of the error in points: {listing(texts)}.{explained}")


def _batch_and_stored(claim: str, found: Sequence[Condition], *, higher: bool) -> Claim:
    batch, stored = (spread([mean_error(found, method)]) for method in (BATCH, STORED))
    return compare(
        claim,
        batch,
        stored,
        higher=higher,
        what="mean error",
        names=("by the batch", "by the stored ones"),
        shown=percent,
        absent="It was not measured.",
    )


def _safe(found: Sequence[Condition]) -> Claim:
    claim = f"The gate loses at most {points(LIMIT)} to the stored statistics on any stream."
    least = worst(found, GATE)
    if least is None:
        return judge(claim, None, "The gate was not measured.")
    lost = sum(_is_unsafe(one, GATE) for one in found)
    at_worst = f"At worst {_lost(least, GATE):+.2f} points ({KIND_LABELS[least.kind]}, {least.label})"
    few = ", on few images one," if any(tolerated(LIMIT, one.images) > LIMIT for one in found) else ""
    more = f"more than {points(LIMIT)}{few} are lost on {lost} of {len(found)} streams"
    return judge(claim, not lost, f"{at_worst}; {more}.")


def _keeps(found: Sequence[Condition]) -> Claim:
    claim = f"It keeps {percent(SHARE, digits=0)} of what batch statistics win on corrupted, well-mixed streams."
    share = kept_share(found, GATE)
    measured = "The gate was not measured." if share is None else f"It keeps {percent(share, digits=0)}."
    return judge(claim, None if share is None else share >= SHARE, measured)


def _trained(record: Record) -> Spread | None:
    """Return the accuracy of the networks after training, on the validation images as they are."""
    return spread(finals(record.networks).values())


def _headline(record: Record, found: Sequence[Condition]) -> str:
    trained, share, least = _trained(record), kept_share(found, GATE), worst(found, GATE)
    if trained and is_guessing(trained, chance_of(record)):
        said = f"The network is not surely better than guessing ({percent(trained.low)}), so a shift shows nothing"
        return too_few(chance_of(record)) or said
    if share is None or least is None:
        return _without_gate(found)
    gain = least.gain[GATE].mean
    loses = "never loses" if gain >= 0 else f"loses up to {points(gain)}"
    return f"The gate keeps {percent(share, digits=0)} of batch statistics' gain and {loses} to stored ones"


def _without_gate(found: Sequence[Condition]) -> str:
    corrupted = [one for one in found if one.kind == "iid" and one.severity]
    batch, stored = (mean_error(corrupted, method) for method in (BATCH, STORED))
    if not all(map(math.isfinite, (batch, stored))):
        return "No corrupted stream has been measured with the gate yet"
    return f"On corrupted, well-mixed streams batch statistics err {percent(batch)}, stored ones {percent(stored)}"


def _survivor(decays: Sequence[Condition]) -> Text | None:
    """Name the decay with the lowest error under corruption, and by how much; empty before the measurement."""
    corrupted = [one for one in decays if one.severity]
    clean = next((one.error for one in decays if one.shift == CLEAN), None)
    errors = {name: mean_error(corrupted, name) for name in _names(corrupted)}
    if not errors or not clean:
        return None
    best, last = min(errors, key=errors.__getitem__), max(errors, key=errors.__getitem__)
    return Text(
        f"Under corruption the stored statistics of {_decay(best)} err least, {percent(errors[best])} on average, and "
        f"those of {_decay(last)} most, {percent(errors[last])}: {points(errors[last] - errors[best])} apart, where "
        f"the corruption itself costs {points(errors[best] - clean[best].mean)}."
    )


LEAD = """
One network ({network}) of batch norm, trained for {epochs} on {data}; {corruptions_count}, streams of {stream_images}
images in batches of {stream_batch}; {seeds}.
"""
METHOD = """
Running statistics take no part in training, so one training gives those of every decay: a decay of 0.9 is torch's
momentum of 0.1. The methods that adapt begin with those of decay 0.9.

Corruptions: {source}.{left_out} Streams: well mixed; every batch mixing all corruptions; class by class; bursts of
classes (Dirichlet shares, concentration 0.1); the images of one class, drawn at random; and well mixed, one by one.

Statistics: stored; the batch's own; a prior of 16, the stored ones counting as 16 samples beside the batch's; running
statistics that go on following the stream by a decay or self-tuned, each batch seen before it is predicted; gated
layers, each for itself; and the gate, which decides for the whole network whether to adapt. No method sees a label or
takes a gradient, and all calibration is on training images.{no_gate}{labels}

Every method predicts the same images, so differences between methods are less noisy than the errors themselves: of
{stream_images} images, one image is {one_image}. Streams of one class, or of images one by one, may be shorter.
"""


def _stream_words(record: Record) -> dict[str, object]:
    """Say how long streams are, which no data set is too small for, and whose labels are swapped."""
    images = min(int(record.config["stream_images"]), int(record.resolved["validation_images"]))
    classes, count = record.resolved["classes"], len(_shown(record.config["corruptions"], _channels(record)))
    labels = "" if isinstance(classes, int) else f" Swapped labels are those of {classes[0]} and {classes[1]}."
    return {
        "corruptions_count": counted(count, "corruption"),
        "stream_images": images,
        "stream_batch": min(int(record.config["stream_batch"]), images),
        "one_image": points(1 / images, digits=2),
        "labels": labels,
    }


def _channels(record: Record) -> int:
    return int(record.resolved.get("channels", 3))  # absent from older records


def _left_out(record: Record) -> str:
    """Name the corruptions left out, and describe those of other image sizes than CIFAR-10-C's."""
    names = record.config["corruptions"]
    absent = [name for name in names if name not in _shown(names, _channels(record))]
    sizes = record.resolved.get("image_size", [32, 32])
    found = [
        f" Left out, since images of one channel have no color to change: {listing(absent)}." if absent else "",
        " Their lengths are for 32 x 32 pixels and grow with larger images." if sizes != [32, 32] else "",
    ]
    return "".join(found)


def _source(record: Record) -> str:
    """Name the source of the corrupted images."""
    streams = [cell for cell in record.select(part="stream") if cell.factors["severity"]]
    published = {value for cell in streams for value in cell.values("published").values()}
    made = "made after CIFAR-10-C (Hendrycks & Dietterich 2019, arXiv 1903.12261), which they are not"
    if published == {1.0}:
        return "CIFAR-10-C's own files"
    return f"in part CIFAR-10-C's own files, else {made}" if len(published) > 1 else made


EXPERIMENT = Experiment(
    name="shift",
    config=ShiftConfig,
    quick=QUICK,
    check=_check,
    work=_work,
    describe=describe,
    fits=_check_fits,
    trains=lambda config: (ARM,),
)
