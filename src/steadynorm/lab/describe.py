"""What the reports of all experiments say alike: names of arms and data, how networks train, curves over epochs."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Self, TypeVar

from steadynorm.reporting.numbers import rate
from steadynorm.reporting.records import CellRecord, Epoch, Record, RunRecord
from steadynorm.reporting.report import Block, Cell, Figure, Section
from steadynorm.reporting.seeds import Spread, spread
from steadynorm.reporting.words import capital, listing

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "PLAIN",
    "Outcome",
    "all_measured",
    "arm_cell",
    "arm_label",
    "arm_labels",
    "batch_arm",
    "batches_label",
    "class_count",
    "curves",
    "data_label",
    "data_method",
    "expected",
    "few_arms",
    "has_ended",
    "measured",
    "measurements",
    "method_label",
    "pair",
    "plain_arm",
    "run_as_json",
    "runs_at",
    "seeds_note",
    "training_method",
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


def arm_cell(record: Record, arm: str, *, before: int = 0) -> Cell:
    """Name an arm at the head of a row, with its color; ``before`` lines come before those of the arms."""
    place = before + [str(name) for name in record.config["arms"]].index(arm)
    return Cell(text=capital(arm_label(arm)), tone=f"series-{place % SERIES}")


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


def expected(*blocks: Block) -> Section:
    """Make the section that holds what was expected against what was measured."""
    return Section(title="What was expected, and what was measured", short="Expectations", blocks=blocks)


def seeds_note(record: Record) -> str:
    """Say what the seeds allow to say of a table's numbers."""
    if len(record.config["seeds"]) == 1:
        return "There is one seed: another would move these numbers by an unknown amount."
    return "Spreads are the standard deviation over seeds; notes give their range."


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
    def of(cls, runs: Sequence[RunRecord], accuracy: Callable[[RunRecord], float], **own: Any) -> Self:  # noqa: ANN401
        """Summarise runs.

        Args:
            runs: one for each seed.
            accuracy: of a run that finished.
            own: fields of a subclass.
        """
        return cls(
            seeds=len(runs),
            accuracy=spread(accuracy(run) for run in runs if run.status == "finished"),
            exploded_at_step=tuple(run.diverged_at_step or 0 for run in runs if run.status == "diverged"),
            waiting=sum(run.status in ("waiting", "running") for run in runs),
            **own,
        )

    @property
    def exploded(self) -> str:
        """How many runs exploded, and when; nothing where none did."""
        if not self.exploded_at_step:
            return ""
        who = "" if self.seeds == 1 else f"{len(self.exploded_at_step)} of {self.seeds} "
        return f"{who}exploded at step {listing([f'{step:,}' for step in self.exploded_at_step])}"


def runs_at(
    record: Record, purpose: str = "compare", **factors: Sequence[Any]
) -> Iterator[tuple[dict[str, Any], list[RunRecord]]]:
    """Give the runs at each point of a grid, in its order.

    Args:
        record: holds the runs.
        purpose: of the runs.
        factors: field of :class:`RunSpec` -> its values.

    Yields:
        the point, as field -> value, and its runs.
    """
    for values in itertools.product(*factors.values()):
        point = dict(zip(factors, values, strict=True))
        runs = [run for run in record.runs if run.spec.purpose == purpose]
        yield point, [run for run in runs if all(getattr(run.spec, name) == point[name] for name in point)]


def has_ended(record: Record) -> bool:
    """Whether there are networks and every one has ended."""
    return bool(record.runs) and all(run.status in ("finished", "diverged") for run in record.runs)


def all_measured(record: Record) -> bool:
    """Whether every network has ended and every cell that was planned behind them is measured."""
    ended = all(run.status in ("finished", "diverged") for run in record.runs)
    return ended and bool(record.cells) and all(cell.is_measured for cell in record.cells)


def measured(cell: CellRecord, quantity: str) -> dict[str, float]:
    """Give the values of a quantity in a cell, subject by subject; of several steps the last."""
    return {row.subject: row.value for row in cell.measurements if row.quantity == quantity}


def measurements(record: Record) -> pd.DataFrame:
    """Give each number of the measured cells as a row: the cell's factors, subject, step, quantity and value."""
    import pandas as pd

    rows = [cell.factors | vars(row) for cell in record.cells if cell.is_measured for row in cell.measurements]
    factors = list(record.cells[0].factors) if record.cells else ["arm", "seed"]
    columns = [*factors, "subject", "step", "quantity", "value"]
    return pd.DataFrame(rows, columns=columns).astype({"step": int, "value": float})


def run_as_json(run: RunRecord) -> dict[str, Any]:
    """Give a run with its epochs; the norms of single layers stay in their own table."""
    content = asdict(run)
    del content["layers"]
    return content


def curves(
    runs: Mapping[str, Sequence[RunRecord]],
    value: Callable[[Epoch], float],
    *,
    name: str,
    title: str,
    caption: str,
    order: Sequence[str],
    config: Mapping[str, Any],
    percent: bool = False,
    steps: tuple[Callable[[Epoch], float], Callable[[Epoch], float]] | None = None,
) -> Figure:
    """Draw one column of the epochs, a line for each arm, and a cross on the last epoch of a run that diverged.

    Args:
        runs: label of a line -> its runs, one for each seed.
        value: the column.
        name: file name without its ending.
        title: of the figure.
        caption: what the reader has to know; the meaning of line and band is added.
        order: all labels; they decide the colors.
        config: of the experiment, for its epochs and milestones.
        percent: whether the column holds shares in [0, 1].
        steps: columns that hold the spread over an epoch's steps, shown where each arm has one seed.
    """
    single = all(len(found) < 2 for found in runs.values())
    rows = [
        {"arm": label, "epoch": one.epoch, "value": value(one)}
        | ({"low": steps[0](one), "high": steps[1](one)} if steps and single else {})
        for label, found in runs.items()
        for run in found
        for one in run.epochs
        if math.isfinite(value(one))
    ]
    lost = [(label, run) for label, found in runs.items() for run in found if run.status == "diverged"]
    epochs = int(config["epochs"])
    rules = [int(epoch) + 0.5 for epoch in config["milestones"] if epoch < epochs]
    return Figure(
        name=name,
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
            "percent": percent,
            "rules": rules,
        }
        | ({"band": ("low", "high")} if steps and single else {}),
        marks={"crosses": [_last(label, run, value) for label, run in lost]} if lost else {},
    )


def _last(label: str, run: RunRecord, value: Callable[[Epoch], float]) -> dict[str, Any]:
    """Give the last epoch of a run whose value is a number; where there is none, a place without a value."""
    known = [one for one in run.epochs if math.isfinite(value(one))]
    found = (known[-1].epoch, value(known[-1])) if known else (0.5, math.nan)
    return {"arm": label, "epoch": found[0], "value": found[1]}


def _band(runs: Mapping[str, Sequence[RunRecord]], steps: object) -> str:
    if any(len(found) > 1 for found in runs.values()):
        return "Line: mean of the seeds. Band: their lowest to highest value."
    return "Line: mean over the epoch's steps. Band: 5th to 95th percentile of the steps." if steps else ""


def _lowered(rules: Sequence[float]) -> str:
    return "Dotted: the learning rate is lowered." if rules else ""


def _crossed(lost: Iterable[object]) -> str:
    return "A cross marks the last epoch of a run that diverged." if lost else ""
