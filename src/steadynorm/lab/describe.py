"""What the reports of all experiments say alike: names of arms and data, how networks train, curves over epochs.

A report by arms is declared: quantities as :data:`Reduction` of one network, :class:`Arm` for what they are over the
seeds, columns by :func:`spread_column` and :func:`accuracy_column`, claims by :func:`with_and_without`, figures by
:func:`arm_figure` and :func:`curves`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Self, TypeVar

from steadynorm.reporting.claims import compare
from steadynorm.reporting.numbers import NONE, number, percent_spread, rate, spread_note
from steadynorm.reporting.records import Cell, Record
from steadynorm.reporting.report import Block, Claim, Entry, Figure, Kind, Rows, Section
from steadynorm.reporting.seeds import Spread, spread
from steadynorm.reporting.words import capital, listing

__all__ = [
    "PLAIN",
    "Arm",
    "Outcome",
    "Reduction",
    "absent_because",
    "accuracy_column",
    "accuracy_entry",
    "all_measured",
    "arm_cell",
    "arm_figure",
    "arm_label",
    "arm_labels",
    "batch_arm",
    "batches_label",
    "class_count",
    "curves",
    "data_label",
    "data_method",
    "diverged_at_steps",
    "ending",
    "expected",
    "few_arms",
    "final",
    "finals",
    "has_ended",
    "left_out",
    "method_label",
    "method_of",
    "networks_as_json",
    "pair",
    "plain_arm",
    "runs_at",
    "seeds_note",
    "spread_column",
    "spread_entry",
    "status_entry",
    "training_method",
    "with_and_without",
]

BATCH_NORM = ("batch_norm", "torch_batch_norm")
"""Arms that are the article's batch norm, ours first."""
PLAIN = "none"
"""The arm without normalization."""
ARMS = {
    "none": "no normalization",
    "self_tuned_batch_norm": "self-tuned batch norm",
    "torch_batch_norm": "torch's batch norm",
}
DATA = {
    "cifar10": "CIFAR-10",
    "digits": "the embedded digits",
    "mnist": "MNIST",
    "shapes": "the embedded shapes",
}
METHODS = {"prior_16": "prior of 16", "self_tuned": "following, tuned", "gated": "gated layers"}
SERIES = 6  # colors that there are
FEW = 8  # epochs that each get a tick; Vega would put some between them
ArmT = TypeVar("ArmT")


def arm_label(arm: str) -> str:
    """Name an arm as a reader would."""
    return ARMS.get(arm, arm.replace("_", " "))


def arm_labels(record: Record) -> list[str]:
    """Name all arms, in the order that decides their colors in every figure."""
    return [arm_label(str(arm)) for arm in record.config["arms"]]


def arm_cell(record: Record, arm: str, *, before: int = 0) -> Entry:
    """Name an arm at the head of a row, with its color; ``before`` lines come before those of the arms."""
    place = before + [str(name) for name in record.config["arms"]].index(arm)
    return Entry(text=capital(arm_label(arm)), tone=f"series-{place % SERIES}")


def batch_arm(arms: Collection[str]) -> str | None:
    """Find the arm that is batch norm."""
    return next((name for name in BATCH_NORM if name in arms), None)


def plain_arm(arms: Collection[str]) -> str | None:
    """Find the arm without normalization."""
    return PLAIN if PLAIN in arms else None


def pair(arms: Mapping[str, ArmT]) -> tuple[ArmT | None, ArmT | None]:
    """Find batch norm and no normalization among arms by their names."""
    return arms.get(batch_arm(arms) or ""), arms.get(PLAIN)


def few_arms(arms: Sequence[str], *, most: int = 2) -> str:
    """Name so many arms, or count more, because a headline is short."""
    return listing([arm_label(arm) for arm in arms]) if len(arms) <= most else f"{len(arms)} arms"


def method_label(method: str) -> str:
    """Name a way to choose the statistics of a test batch."""
    if method.startswith("ema_"):
        return f"following {method.removeprefix('ema_')}"
    return METHODS.get(method, method.replace("_", " "))


def data_label(record: Record) -> str:
    """Name the data."""
    data = str(record.config["data"])
    return DATA.get(data, data)


def batches_label(record: Record) -> str:
    """Say how many images are normalized together, and how many of such batches a step averages."""
    size, together = record.config["batch_size"], record.config.get("accumulate", 1)  # few experiments have it
    size = listing([str(one) for one in size]) if isinstance(size, list) else size
    return f"batches of {size}" if together == 1 else f"batches of {size}, {together} to a step"


def class_count(record: Record) -> int:
    """Count the classes, whether the record names or counts them."""
    classes = record.resolved["classes"]
    return classes if isinstance(classes, int) else len(classes)


def data_method(record: Record) -> str:
    """Say which images there are, and which network sees them."""
    resolved, config = record.resolved, record.config
    return (
        f"Data: {data_label(record)}, {resolved['train_images']:,} training and {resolved['validation_images']:,} "
        f"validation images in {class_count(record)} classes; augmentation: {config['augment']}. Network: "
        f"{config['network']}, the same for every arm except for its normalization layers."
    )


def training_method(record: Record) -> tuple[str, str]:
    """Say how networks are trained and when they are judged, in two paragraphs."""
    config, resolved = record.config, record.resolved
    augmented = ", and on augmented images" if config["augment"] != "none" else ""
    return (
        f"Training: SGD with momentum {config['momentum']} and weight decay {config['weight_decay']}, "
        f"{batches_label(record)}, {_schedule(record)}. It ran on {resolved['device']} in {resolved['precision']}"
        f"{_workers(record)}.",
        f"Training loss and accuracy are measured during the epoch, while the weights move{augmented}; validation "
        "follows the epoch, in evaluation mode. That is why validation can be ahead of training.",
    )


def _workers(record: Record) -> str:
    workers = record.resolved.get("workers", 1)  # older records do not have it
    if workers == 1:
        return ""
    return (
        f", on {workers} workers that share each batch evenly. Batch norm normalizes each worker's part by itself, "
        "where it is not synchronised; running statistics are merged before every evaluation"
    )


def _schedule(record: Record) -> str:
    """Describe the learning rate over time."""
    lr, milestones = record.config["lr"], [str(epoch) for epoch in record.config["milestones"]]
    which = (
        f"learning rates {listing([rate(one) for one in lr])}" if isinstance(lr, list) else f"learning rate {rate(lr)}"
    )
    if not milestones:
        return f"{which} throughout"
    return f"{which}, divided by ten after epoch {listing(milestones)}"


def method_of(record: Record, *paragraphs: str) -> list[str]:
    """Say how networks are trained and judged, and what else there is to say."""
    return [
        f"{data_method(record)} A seed decides the initial weights, the order of the images and their augmentation, "
        "alike in every arm.",
        *training_method(record),
        *paragraphs,
    ]


def expected(*blocks: Block) -> Section:
    """Make the section that holds what was expected against what was measured."""
    return Section(title="What was expected, and what was measured", short="Expectations", blocks=blocks)


def accuracy_entry(value: Spread | None, tone: str = "") -> Entry:
    """Write an accuracy, with its range over the seeds below it."""
    return Entry(text=percent_spread(value), note=spread_note(value), tone=tone)


def spread_entry(value: Spread | None, shown: Callable[[float], str] = number) -> Entry:
    """Write a mean over seeds, with their range below it."""
    if value is None:
        return Entry(text=NONE)
    several = f"{shown(value.low)} to {shown(value.high)}, n = {value.n}" if value.n > 1 else ""
    return Entry(text=shown(value.mean), note=several)


def seeds_note(record: Record) -> str:
    """Say what the seeds allow to say of a table's numbers."""
    if len(record.config["seeds"]) == 1:
        return "There is one seed: another would move these numbers by an unknown amount."
    return "Spreads are the standard deviation over seeds; notes give their range."


Reduction = Callable[[Cell], float]
"""What the measurements of one network come to; NaN where they do not say."""


@dataclass(frozen=True, kw_only=True)
class Arm:
    """Networks that differ in their seed alone, and what is known of them: ``arm["val_accuracy"]`` over the seeds."""

    arm: str
    cells: tuple[Cell, ...]
    """One for each planned seed."""
    values: Mapping[str, Sequence[float]]
    """Quantity -> what each of the networks has of it, NaN where it has none."""

    @classmethod
    def of(cls, arm: str, cells: Iterable[Cell], quantities: Mapping[str, Reduction], **own: Any) -> Self:  # noqa: ANN401
        """Reduce each network to one number of each quantity; ``own``: fields of a subclass."""
        cells = tuple(cells)
        values = {name: [*map(one, cells)] for name, one in quantities.items()}
        return cls(arm=arm, cells=cells, values=values, **own)

    def __getitem__(self, quantity: str) -> Spread | None:
        return spread(self.values[quantity])

    @property
    def spreads(self) -> dict[str, Spread | None]:
        """Every quantity over the seeds."""
        return {name: spread(values) for name, values in self.values.items()}

    @property
    def label(self) -> str:
        """Its name in a sentence."""
        return arm_label(self.arm)

    @property
    def seeds(self) -> int:
        """Planned networks."""
        return len(self.cells)

    @property
    def ended(self) -> list[Cell]:
        """The networks that finished or diverged."""
        return [cell for cell in self.cells if cell.has_ended]

    @property
    def diverged_at_step(self) -> tuple[int, ...]:
        """Steps at which the loss was no longer finite, one for each network that diverged."""
        return diverged_at_steps(self.cells)

    @property
    def lost(self) -> str:
        """Which networks diverged, and when; nothing where none did."""
        steps = self.diverged_at_step
        who = "" if self.seeds == 1 else f"{len(steps)} of {self.seeds} "
        return f"{who}diverged at step {listing([f'{step:,}' for step in steps])}" if steps else ""

    @property
    def is_lost(self) -> bool:
        """Whether every network diverged."""
        return 0 < self.seeds == len(self.diverged_at_step)


def final(quantity: str) -> Reduction:
    """Take the last value of a network that finished."""
    return lambda cell: cell.last(quantity) if cell.status == "finished" else math.nan


def spread_column(quantity: str, shown: Callable[[float], str] = number) -> Callable[[Arm], Entry]:
    """Make a column of a table of arms: mean over the seeds, their range below it."""
    return lambda arm: spread_entry(arm[quantity], shown)


def accuracy_column(quantity: str = "val_accuracy") -> Callable[[Arm], Entry]:
    """Make a column of a table of arms: mean and standard deviation over the seeds, their range below them."""
    return lambda arm: accuracy_entry(arm[quantity], "strong")


def ending(accuracy: Spread | None, lost: str) -> str:
    """Write a final accuracy and who has none, for a terminal."""
    return f"{percent_spread(accuracy)}; {lost}" if accuracy and lost else lost or percent_spread(accuracy)


def status_entry(arm: Arm, so_far: str = "") -> Entry:
    """Say how the networks of an arm ended; ``so_far``: how far they are, where some have not."""
    some = f"{len(arm.ended)} of {arm.seeds} measured" if 0 < len(arm.ended) < arm.seeds else ""
    if arm.lost:
        return Entry(text=arm.lost, tone="bad", note=some)
    if arm.ended and not some:
        return Entry(text="finished", note="" if arm.seeds == 1 else f"{arm.seeds} seeds")
    return Entry(text=so_far or some or "waiting", tone="muted", note=some if so_far else "")


def absent_because(arm: Arm | None) -> str:
    """Say why an arm has no number."""
    if arm is None:
        return "The arm was not trained."
    if arm.lost:
        return f"{capital(arm.lost)}."
    waits = len(arm.ended) < arm.seeds or not arm.seeds
    return f"{len(arm.ended)} of {arm.seeds} networks are measured." if waits else "What was measured does not tell."


def with_and_without(
    claim: str,
    arms: tuple[Arm | None, Arm | None],
    quantity: str,
    what: str,
    shown: Callable[[float], str] = number,
    *,
    higher: bool = False,
) -> Claim:
    """Judge whether a quantity is lower with batch norm than without, or higher; see :func:`compare`."""
    first, second = (arm[quantity] if arm else None for arm in arms)
    lost = (arm for arm in arms if arm is None or arm.lost)
    absent = absent_because(next(lost, arms[1 if first else 0]))
    names = ("with batch norm", "without")
    return compare(claim, first, second, higher=higher, what=what, names=names, shown=shown, absent=absent)


def left_out(arms: Iterable[Arm]) -> str:
    """Say which networks diverged, at the end of a lead; nothing where none did."""
    lost = [f"{len(arm.diverged_at_step)} of {arm.seeds} with {arm.label}" for arm in arms if arm.lost]
    return f" Diverged, and left out of final means: {listing(lost)}." if lost else ""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of networks that differ in their seed alone."""

    seeds: int
    """Planned runs."""
    accuracy: Spread | None
    """On the validation images, of the runs that finished."""
    exploded_at_step: tuple[int, ...]
    """Steps at which the loss was no longer finite, one for each run that exploded."""
    waiting: int
    """Runs that have not ended."""

    @classmethod
    def of(cls, runs: Sequence[Cell], accuracy: Callable[[Cell], float], **own: Any) -> Self:  # noqa: ANN401
        """Summarise networks.

        Args:
            runs: one for each seed.
            accuracy: of one that finished.
            own: fields of a subclass.
        """
        return cls(
            seeds=len(runs),
            accuracy=spread(accuracy(run) for run in runs if run.status == "finished"),
            exploded_at_step=diverged_at_steps(runs),
            waiting=sum(not run.has_ended for run in runs),
            **own,
        )

    @property
    def exploded(self) -> str:
        """How many runs exploded, and when; nothing where none did."""
        if not self.exploded_at_step:
            return ""
        who = "" if self.seeds == 1 else f"{len(self.exploded_at_step)} of {self.seeds} "
        return f"{who}exploded at step {listing([f'{step:,}' for step in self.exploded_at_step])}"


def diverged_at_steps(runs: Iterable[Cell]) -> tuple[int, ...]:
    """Give the steps at which the loss was no longer finite, of those that diverged."""
    return tuple(run.diverged_at_step or 0 for run in runs if run.status == "diverged")


def finals(runs: Iterable[Cell], quantity: str = "val_accuracy") -> dict[int, float]:
    """Give seed -> last value of a quantity, of the networks that finished."""
    return {run.factors["seed"]: run.last(quantity) for run in runs if run.status == "finished"}


def runs_at(
    record: Record, purpose: str | None = None, **factors: Sequence[Any]
) -> Iterator[tuple[dict[str, Any], list[Cell]]]:
    """Give the networks at each point of a grid, in its order.

    Args:
        record: holds them.
        purpose: of the networks.
        factors: name of a factor -> its values.

    Yields:
        the point, as factor -> value, and its networks.
    """
    for values in itertools.product(*factors.values()):
        point = dict(zip(factors, values, strict=True))
        yield point, record.select(purpose=purpose, **point)


def has_ended(record: Record) -> bool:
    """Whether there are networks and every one has ended."""
    return bool(record.networks) and all(run.has_ended for run in record.networks)


def all_measured(record: Record) -> bool:
    """Whether every network has ended, and every cell that was planned after them is measured.

    After networks that all diverged there is none.
    """
    lost = bool(record.networks) and all(network.status == "diverged" for network in record.networks)
    return all(cell.has_ended for cell in record.cells) and (lost or len(record.cells) > len(record.networks))


def networks_as_json(record: Record) -> list[dict[str, Any]]:
    """Give every network with its epochs; the norms of single weights stay in the record."""
    return [_as_json(run) for run in record.networks]


def _as_json(run: Cell) -> dict[str, Any]:
    epochs: dict[int, dict[str, float]] = {}
    for row in run.measurements:
        if not row.subject and row.quantity not in ("parameters", "diverged"):
            epochs.setdefault(row.step, {"epoch": row.step})[row.quantity] = row.value
    return {
        "spec": run.factors,
        "status": run.status,
        "diverged_at_step": run.diverged_at_step,
        "parameters": int(run.series("parameters").get(0, 0)),
        "epochs": list(epochs.values()),
    }


def arm_figure(
    record: Record,
    kind: Kind,
    data: Rows,
    *,
    name: str,
    title: str,
    caption: str,
    marks: Mapping[str, Sequence[dict[str, Any]]] = MappingProxyType({}),
    **options: Any,  # noqa: ANN401 (those of the chart)
) -> list[Figure]:
    """Draw rows whose column ``arm`` decides the color; nothing where there are none.

    Args:
        record: its arms decide the order.
        kind: of the chart; a function of :mod:`steadynorm.reporting.charts`.
        data: a row for each value, with the registered name of its arm.
        name: file name without its ending.
        title: of the figure.
        caption: what the reader has to know.
        marks: further rows of the chart, likewise.
        options: what else the chart takes.
    """
    import pandas as pd

    table = pd.DataFrame(data)
    if table.empty:
        return []
    table = table.assign(arm=table["arm"].map(arm_label))
    named = {mark: [row | {"arm": arm_label(row["arm"])} for row in rows] for mark, rows in marks.items()}
    options = {"hue": "arm", "order": arm_labels(record)} | options
    return [Figure(name=name, title=title, caption=caption, kind=kind, data=table, options=options, marks=named)]


def curves(
    runs: Mapping[str, Sequence[Cell]],
    quantity: str,
    *,
    name: str | None = None,
    title: str,
    caption: str,
    order: Sequence[str],
    config: Mapping[str, Any],
    steps: tuple[str, str] | None = None,
) -> Figure:
    """Draw one quantity over the epochs, a line for each arm, and a cross on the last epoch of a run that diverged.

    Args:
        runs: label of a line -> its runs, one for each seed.
        quantity: what is drawn; shares in [0, 1] where it is an accuracy.
        name: file name without its ending; default: the quantity.
        title: of the figure.
        caption: what the reader has to know; the meaning of line and band is added.
        order: all labels; they decide the colors.
        config: of the experiment, for its epochs and milestones.
        steps: quantities that are the ends of the spread over an epoch's steps, shown where each arm has one seed.
    """
    single = all(len(found) < 2 for found in runs.values())
    rows = [
        {"arm": label, "epoch": epoch, "value": value}
        | ({"low": run.series(steps[0])[epoch], "high": run.series(steps[1])[epoch]} if steps and single else {})
        for label, found in runs.items()
        for run in found
        for epoch, value in run.series(quantity).items()
        if math.isfinite(value)
    ]
    lost = [(label, run) for label, found in runs.items() for run in found if run.status == "diverged"]
    epochs = int(config["epochs"])
    rules = [int(epoch) + 0.5 for epoch in config["milestones"] if epoch < epochs]
    return Figure(
        name=name or quantity,
        title=title,
        caption=" ".join(filter(None, (caption, _band(runs, steps), _lowered(rules), _crossed(lost)))),
        kind="lines",
        data=rows or [{"arm": "", "epoch": math.nan, "value": math.nan, "low": math.nan, "high": math.nan}],
        options={
            "x": "epoch",
            "y": "value",
            "hue": "arm",
            "order": list(order),
            "x_domain": (0.5, epochs + 0.5),
            "x_values": list(range(1, epochs + 1)) if epochs <= FEW else [],
            "percent": quantity.endswith("accuracy"),
            "rules": rules,
        }
        | ({"band": ("low", "high")} if steps and single else {}),
        marks={"crosses": [_last(label, run, quantity) for label, run in lost]} if lost else {},
    )


def _last(label: str, run: Cell, quantity: str) -> dict[str, Any]:
    """Give the last epoch of a run whose value is a number; where there is none, a place without a value."""
    known = [(epoch, value) for epoch, value in run.series(quantity).items() if math.isfinite(value)]
    epoch, value = known[-1] if known else (0.5, math.nan)
    return {"arm": label, "epoch": epoch, "value": value}


def _band(runs: Mapping[str, Sequence[Cell]], steps: object) -> str:
    if any(len(found) > 1 for found in runs.values()):
        return "Line: mean of the seeds. Band: their lowest to highest value."
    return "Line: mean over the epoch's steps. Band: 5th to 95th percentile of the steps." if steps else ""


def _lowered(rules: Sequence[float]) -> str:
    return "Dotted: the learning rate is lowered." if rules else ""


def _crossed(lost: Iterable[object]) -> str:
    return "A cross marks the last epoch of a run that diverged." if lost else ""
