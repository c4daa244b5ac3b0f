"""Probe the loss around the weights while networks train: along the gradient, with and without batch norm.

Question: why does batch norm help: is the loss smoother around the weights, its gradient more predictive, and is that
so because the inputs of the layers are steadier?

Expected (Santurkar et al. 2018, arXiv 1805.11604): with batch norm the loss varies less along the gradient, the
gradient changes less over a step, by almost two orders of magnitude, and its effective Lipschitz constant is smaller;
batch norm with noise after it trains as well. Bjorck et al. 2018 (arXiv 1806.02375): without batch norm gradients are
larger. All of these are in units of the weights, whose scale is free in front of a normalization; so everything is
measured a second time with steps in proportion to the weights.

Each (arm, seed) is a cell. Its measurements, quantity by quantity:

- after an epoch: ``train_loss``, ``val_loss``, ``val_accuracy``;
- at a probe: ``loss``, ``gradient_norm`` of all parameters, ``weight_norm`` of convolutions and linear layers,
  ``learning_rate``, and in bfloat16 ``rounding``: the l2 distance of that gradient from the one in float32,
  relative to it;
- at a probe, ``gradient_norm`` and ``weight_norm`` of each convolution and linear layer, as subjects;
- at a probe, with subjects ``rate 0.5`` and ``weights 0.01`` for the step lengths: ``eta``, ``loss``, ``change``,
  ``cosine`` and ``smoothness`` of a :class:`steadynorm.lab.probe.Point`;
- ``diverged``, once, at the step whose loss was not finite.

Cost: a probe takes a gradient for each step length and one more, always in float32: about two seconds for eight lengths
and 128 images on two cores, as much as twenty training steps in bfloat16.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from steadynorm.lab.cells import Job, Line, Measure, measure_cells
from steadynorm.lab.compiling import failure_explained
from steadynorm.lab.configuration import OneRateConfig, check_arms, check_experiment, settings_of
from steadynorm.lab.describe.arms import Arm, Reduction, arms_at, final
from steadynorm.lab.describe.claims import PAIR, absent_because, absent_of, expected, left_out, tolerated
from steadynorm.lab.describe.figures import arm_figure
from steadynorm.lab.describe.method import batches_label, method_of, sentences
from steadynorm.lab.describe.names import arm_label, few_arms, pair
from steadynorm.lab.describe.networks import all_measured
from steadynorm.lab.describe.tables import accuracy_column, arm_cell, ending, spread_column, status_entry
from steadynorm.lab.evaluation import evaluate
from steadynorm.lab.experiment import Experiment, Task
from steadynorm.lab.gradient_norms import watched_weights
from steadynorm.lab.noisy_batch_norm import LARGEST_SCALING, LARGEST_SHIFT, NOISY, add_noise_
from steadynorm.lab.optimization import training_loss
from steadynorm.lab.probe import Slope, norm_of, probe, slope
from steadynorm.lab.settings import autocast, steps_per_epoch
from steadynorm.lab.trainer import Trainer
from steadynorm.lab.training import network
from steadynorm.reporting.chance import chance_of, loss_of_guessing
from steadynorm.reporting.claims import judge, unless_guessing
from steadynorm.reporting.failure import UserError
from steadynorm.reporting.flags import flag
from steadynorm.reporting.numbers import number, percent, points
from steadynorm.reporting.records import Measurement, Record, file_word
from steadynorm.reporting.report import Claim, Claims, Entry, Figure, Figures, Report, Section, Table, Text
from steadynorm.reporting.seeds import Spread, spread
from steadynorm.reporting.words import capital, listing

if TYPE_CHECKING:
    import pandas as pd

WITHOUT_NOISE = "batch_norm"
"""The arm to which noise is added."""

__all__ = ["EXPERIMENT", "LandscapeConfig"]


@dataclass(frozen=True, kw_only=True)
class LandscapeConfig(OneRateConfig):
    """Train the article's network with and without batch norm, probe its loss on the way, and write a report.

    The first run needs no data: it trains on the embedded shapes. For photographs give --data cifar10, and --data-dir
    if the data set is already on disk. --data also takes your own images.
    """

    epochs: int = 5
    milestones: tuple[int, ...] = ()
    arms: tuple[str, ...] = ("batch_norm", "noisy_batch_norm", "none")
    """Normalizations to compare: those of steadynorm compare, and noisy_batch_norm, whose outputs are shifted and
    scaled at random, drawn again at every step."""
    probe_every: int = 26
    """Training steps from one probe to the next; the first is at the initial weights."""
    rate_steps: tuple[float, ...] = (0.5, 1.0, 2.0, 4.0)
    """Steps along the gradient to probe, in learning rates."""
    weight_steps: tuple[float, ...] = (0.0025, 0.005, 0.01, 0.02)
    """Steps along the gradient to probe, as shares of the weights' norm."""


QUICK: dict[str, Any] = {"epochs": 5, "widths": (8, 16, 32), "batch_size": 64, "probe_every": 20}


def _work(task: Task[LandscapeConfig]) -> None:
    grid = [{"arm": arm, "seed": seed} for seed in task.config.seeds for arm in task.config.arms]
    measure_cells(grid, _measure, task)


def _measure(task: Task[LandscapeConfig]) -> Measure:
    """Make the function that trains and probes the network of a cell."""

    def measure(job: Job) -> Iterator[Measurement | Line]:
        return _Trace.start(task, job.factors["arm"], job.factors["seed"]).measure(job.advance)

    return measure


@dataclass(frozen=True)
class _Trace:
    """A network in training, with probes."""

    config: LandscapeConfig
    trainer: Trainer

    @classmethod
    def start(cls, task: Task[LandscapeConfig], arm: str, seed: int) -> _Trace:
        """Build the network with its initial weights."""
        config, is_noisy = task.config, arm == NOISY
        factors = network(arm=WITHOUT_NOISE if is_noisy else arm, seed=seed, lr=config.lr, epochs=config.epochs)
        trainer = Trainer.start(factors, settings_of(config, task.record), task.dataset)
        if is_noisy:
            add_noise_(trainer.model)
        trainer.model.train()
        return cls(config, trainer)

    def measure(self, advance: Callable[[float, str], None]) -> Iterator[Measurement | Line]:
        """Train to the last epoch, or to a loss that is not finite, and yield the measurements."""
        model, dataset, settings = self.trainer.model, self.trainer.dataset, self.trainer.settings
        steps, epochs = steps_per_epoch(dataset.train, settings), self.config.epochs
        for epoch in range(1, epochs + 1):
            losses = []
            for step, (x, labels) in enumerate(self.trainer.batches(epoch), start=(epoch - 1) * steps):
                self.trainer.set_rate_(step)
                if step % self.config.probe_every == 0:
                    yield from self._probe(x, labels, step)
                losses.append(self._step(x, labels))
                if not math.isfinite(losses[-1]):
                    yield Measurement(step=step + 1, quantity="diverged", value=step + 1)
                    return
                advance((step + 1) / (steps * epochs), "")
            val_loss, val_accuracy = evaluate(model, dataset.validation, dataset, settings)
            found = {"train_loss": sum(losses) / steps, "val_loss": val_loss, "val_accuracy": val_accuracy}
            yield from _rows("", epoch * steps, found)
            told = f"train {number(found['train_loss'])}  validation {number(val_loss)} {val_accuracy:.1%}"
            yield Line(share=epoch / epochs, text=f"epoch {epoch}/{epochs}  {told}")

    def _step(self, x: Tensor, labels: Tensor) -> float:
        self.trainer.optimizer.zero_grad()
        with failure_explained(self.trainer.settings):
            loss = self._loss(self.trainer.forward, x, labels)
            loss.backward()  # type: ignore[no-untyped-call]
        self.trainer.optimizer.step()
        return loss.item()

    def _loss(self, model: Callable[[Tensor], Tensor], x: Tensor, labels: Tensor) -> Tensor:
        with autocast(self.trainer.settings):
            logits = model(x).float()
        return training_loss(logits, labels, self.trainer.settings)

    def _probe(self, x: Tensor, labels: Tensor, step: int) -> Iterator[Measurement]:
        """Probe the loss on the batch of the next step, in training mode and always in float32."""

        def loss(model: nn.Module) -> Tensor:
            return training_loss(model(x), labels, self.trainer.settings)

        model, rate = self.trainer.model, self.trainer.optimizer.param_groups[0]["lr"]
        here, weights = slope(model, loss), watched_weights(model)
        weight_norm = norm_of(weights.values())
        found = {"loss": here.loss, "gradient_norm": here.norm, "weight_norm": weight_norm, "learning_rate": rate}
        if self.trainer.settings.precision != "fp32":
            rounded = slope(model, lambda model: self._loss(model, x, labels))
            found["rounding"] = _distance(rounded, here) / here.norm
        yield from _rows("", step, found)
        for name, weight in weights.items():
            norms = {"gradient_norm": norm_of([here.gradient[f"{name}.weight"]]), "weight_norm": norm_of([weight])}
            yield from _rows(name, step, norms)
        etas = {f"rate {length!r}": length * rate for length in self.config.rate_steps}
        etas |= {
            f"weights {length!r}": length * weight_norm / here.norm if here.norm else math.nan
            for length in self.config.weight_steps
        }
        points = probe(model, loss, here, etas=tuple(etas.values()))
        for subject, point in zip(etas, points, strict=True):
            yield from _rows(subject, step, vars(point))


def _distance(first: Slope, second: Slope) -> float:
    return norm_of(first.gradient[name] - one for name, one in second.gradient.items())


def _rows(subject: str, step: int, values: dict[str, float]) -> Iterator[Measurement]:
    for quantity, value in values.items():
        yield Measurement(subject=subject, step=step, quantity=quantity, value=value)


def _check(config: LandscapeConfig) -> None:
    check_arms([arm for arm in config.arms if arm != NOISY])
    if config.network == "mlp" and NOISY in config.arms:
        raise UserError(f"--arms: {NOISY} is for images, and the mlp normalizes units. Drop one of the two.")
    for name in ("rate_steps", "weight_steps"):
        lengths = getattr(config, name)
        if len(lengths) < 2 or not all(0 < length < math.inf for length in lengths):
            raise UserError(
                f"{flag(name)}: two or more positive numbers are needed, got {' '.join(map(str, lengths))}."
            )
    if "--log" in config.given:
        raise UserError("--log: landscape logs no epochs. Drop it.")
    if config.optimizer != "sgd":
        raise UserError(
            f"--optimizer: landscape probes along the gradient, as SGD's steps go, got {config.optimizer}. Drop it."
        )
    least = {"batch_size": 2, "probe_every": 1}
    check_experiment(config, ("arms", "rate_steps", "weight_steps"), least=least)


def describe(record: Record) -> Report:
    """Describe the results of probing the loss around the weights."""
    probes = probes_of(record)
    arms = arms_of(record, probes)
    ratios = none_over_batch_norm(arms)
    return Report(
        headline=_headline(record, arms, ratios),
        lead=sentences(record, LEAD, variants=len(arms), batches=batches_label(record)) + left_out(arms),
        table=Table.of(arms, SHORT),
        sections=_sections(record, arms, ratios, probes) if len(probes) else (),
        method=_method(record, arms),
        finished=all_measured(record),
        findings={
            "arms": [
                {"arm": arm.arm, "seeds": [cell.factors["seed"] for cell in arm.ended]}
                | {"diverged_at_step": arm.diverged_at_step, **arm.spreads}
                for arm in arms
            ],
            "none_over_batch_norm": ratios,
        },
    )


QUANTITIES = {
    "loss_range": ("Range of the loss along the gradient", "Range of the loss"),
    "gradient_change": ("Change of the gradient along itself", "Change of the gradient"),
    "smoothness": ("Effective smoothness β", "β"),
    "raised": ("Probes at which the longest step raises the loss", "Longest step raises the loss"),
    "free_loss_range": ("Range of the loss, steps in proportion to the weights", "Range of the loss"),
    "free_gradient_change": (
        "Change of the gradient over its norm, steps in proportion to the weights",
        "Change of the gradient / ‖g‖",
    ),
    "free_smoothness": ("Effective smoothness times ‖w‖²", "β ‖w‖²"),
    "free_raised": ("Probes at which the longest step in proportion raises the loss", "Longest step raises the loss"),
    "gradient_norm": ("Norm of the gradient", "‖g‖"),
    "weight_norm": ("Norm of the weights", "‖w‖"),
    "relative_step": ("Step of one learning rate over the weights", "lr ‖g‖ / ‖w‖"),
    "rounding": ("Distance of bfloat16's gradient from float32's, over its norm", "Rounding"),
}
"""Quantities of a probe: key -> name, and head of a column. ``free_``: with steps in proportion to the weights."""


def arms_of(record: Record, probes: pd.DataFrame) -> list[Arm]:
    """Reduce each network to its end and, over its probes, the median of each quantity, of ``raised`` the mean.

    Infinite values count as the largest; NaN is left out.
    """
    how = {key: "mean" if key.endswith("raised") else "median" for key in QUANTITIES}
    centers = probes.groupby(["arm", "seed"]).agg(how)

    def center(key: str) -> Reduction:
        return lambda cell: float(centers[key].get((cell.factors["arm"], cell.factors["seed"]), math.nan))

    quantities = {key: final(key) for key in ("val_accuracy", "train_loss")} | {key: center(key) for key in QUANTITIES}
    return arms_at(record, quantities, arm=record.config["arms"])


def none_over_batch_norm(arms: Sequence[Arm]) -> dict[str, Spread | None]:
    """Divide the quantities without normalization by those of batch norm, seed by seed."""
    batch, plain = _measured_pair(arms)
    if batch is None or plain is None:
        return dict.fromkeys(QUANTITIES)

    def ratio(key: str) -> Spread | None:
        under, over = (
            {cell.factors["seed"]: value for cell, value in zip(arm.cells, arm.values[key], strict=True)}
            for arm in (batch, plain)
        )
        return spread(_over(over[seed], under[seed]) for seed in over.keys() & under.keys())

    return {key: ratio(key) for key in QUANTITIES}


def _measured_pair(arms: Iterable[Arm]) -> tuple[Arm | None, Arm | None]:
    return pair({arm.arm: arm for arm in arms if arm.ended})


Subjects = dict[str, dict[str, float]]
"""Measurements after a step: subject -> quantity -> value."""


def probes_of(record: Record) -> pd.DataFrame:
    """Return a row for each probe: arm, seed, step, :data:`QUANTITIES`, and lines with bands for the figures."""
    import pandas as pd

    rows = [place | _probed(subjects) for place, subjects in _steps(record, "weight_norm")]
    return pd.DataFrame(rows, columns=None if rows else ["arm", "seed", *QUANTITIES])


def _steps(record: Record, quantity: str) -> Iterator[tuple[dict[str, Any], Subjects]]:
    """Yield each step that has a quantity: ``weight_norm`` where there is a probe, ``val_accuracy`` after an epoch."""
    for cell in record.cells:
        found: dict[int, Subjects] = {}
        for row in cell.measurements if cell.has_ended else ():
            found.setdefault(row.step, {}).setdefault(row.subject, {})[row.quantity] = row.value
        for step, subjects in found.items():
            if quantity in subjects.get("", {}):
                yield {**cell.factors, "step": step}, subjects


def _probed(subjects: Subjects) -> dict[str, float]:
    own = subjects[""]
    free = _along(own, _ends(subjects, "weights "), free=True)
    return {
        "gradient_norm": own["gradient_norm"],
        "weight_norm": own["weight_norm"],
        "relative_step": _over(own["learning_rate"] * own["gradient_norm"], own["weight_norm"]),
        "rounding": own.get("rounding", math.nan),  # absent if training does not round
        **_along(own, _ends(subjects, "rate "), free=False),
        **{f"free_{name}": value for name, value in free.items()},
    }


def _ends(subjects: Subjects, unit: str) -> list[dict[str, float]]:
    """Return the measurements at the ends of the steps along the gradient, the shortest first."""
    lengths = {float(name.removeprefix(unit)): found for name, found in subjects.items() if name.startswith(unit)}
    return [found for _, found in sorted(lengths.items())]


def _along(own: dict[str, float], ends: Sequence[dict[str, float]], *, free: bool) -> dict[str, float]:
    """Reduce the steps of a probe; ``free`` of the weights' scale, or as measured."""
    losses, changes, betas = ([end[name] for end in ends] for name in ("loss", "change", "smoothness"))
    by, times = (own["gradient_norm"], own["weight_norm"] * own["weight_norm"]) if free else (1.0, 1.0)
    middle = changes[(len(changes) - 1) // 2]
    return {
        "loss_range": _largest(losses) - min(losses) if all(map(math.isfinite, losses)) else math.inf,
        "raised": math.nan if math.isnan(own["loss"]) else float(not losses[-1] <= own["loss"]),
        "gradient_change": _over(_largest(changes), by),
        "smoothness": _largest(betas) * times,
        **_band("loss", [own["loss"], *losses]),
        **_band("gradient_change", [_over(change, by) for change in (middle, *changes)]),
    }


def _band(name: str, values: Iterable[float]) -> dict[str, float]:
    """Return the place of a line, the first value, and the ends of the band around it, of those that are finite."""
    finite = [value for value in values if math.isfinite(value)] or [math.nan]
    return {f"{name}_line": finite[0], f"{name}_low": min(finite), f"{name}_high": max(finite)}


def _over(value: float, by: float) -> float:
    return value / by if by else math.nan


def _largest(values: Iterable[float]) -> float:
    """Return the largest value; infinity if one is NaN, because the step was too long."""
    return max(math.inf if math.isnan(value) else value for value in values)


SHORT: Mapping[str, Callable[[Arm], Entry | str]] = {
    "arm": lambda arm: file_word(arm.arm),
    "seeds": lambda arm: str(len(arm.ended)),
    "validation accuracy": lambda arm: ending(arm["val_accuracy"], arm.lost.partition(" at step")[0]),
    "loss range": spread_column("loss_range"),
    "gradient change": spread_column("gradient_change"),
    "β": spread_column("smoothness"),
    "β ‖w‖²": spread_column("free_smoothness"),
}
VIEW = ("loss_range", "raised", "gradient_change", "smoothness")
SCALES = ("gradient_norm", "weight_norm", "relative_step")


def _table(record: Record, arms: Iterable[Arm], columns: Mapping[str, Callable[[Arm], Entry]]) -> Table:
    return Table.of(arms, {"Normalization": lambda arm: arm_cell(record, arm.arm), **columns})


def _quantities(record: Record, arms: Sequence[Arm], keys: Iterable[str]) -> Table:
    shown = {QUANTITIES[key][1]: spread_column(key, percent if key.endswith("raised") else number) for key in keys}
    return _table(record, [arm for arm in arms if arm.ended], shown)


ENDS = {
    "Final validation accuracy": accuracy_column(),
    "Final training loss": spread_column("train_loss"),
    "Status": status_entry,
}


PAPERS = (
    "The claims are those of Santurkar et al. 2018 (arXiv 1805.11604) on a VGG network, and of Bjorck et al. 2018 "
    "(arXiv 1806.02375) on gradients. Each is judged by the median over all probes, as the ratio of no normalization "
    "to batch norm, seed by seed. Those on steps in proportion to the weights, and on how often a step raises the "
    "loss, are not theirs."
)
RATES = "After steps of {rate} learning rates."
SHARES = "After steps of {weight} times the weights' norm."
OVER_LENGTHS = "Band: lowest to highest over the lengths. Both are medians of the seeds."
BEFORE = f"Line: the loss before the step. {OVER_LENGTHS}"
MIDDLE = f"Line: a step of the middle length. {OVER_LENGTHS}"
OVER_SEEDS = "Line: median of the seeds. Band: their lowest to highest value."
FIGURES = {
    "smoothness": ("Effective smoothness β", f"Largest ‖change of the gradient‖ / ‖step‖. {RATES} {OVER_SEEDS}"),
    "free_smoothness": (
        "Effective smoothness times ‖w‖²",
        f"What β is where the weights have norm 1. {SHARES} {OVER_SEEDS}",
    ),
    "loss": ("Loss along the gradient", f"{RATES} {BEFORE}"),
    "gradient_change": ("Change of the gradient along itself", f"{RATES} {MIDDLE}"),
    "free_loss": ("Loss along the gradient, steps in proportion", f"{SHARES} {BEFORE}"),
    "free_gradient_change": ("Change of the gradient over its norm", f"{SHARES} {MIDDLE}"),
    "gradient_norm": ("Norm of the gradient", f"Of all parameters. {OVER_SEEDS}"),
    "weight_norm": ("Norm of the weights", f"Of all convolutions and linear layers. {OVER_SEEDS}"),
    "relative_step": (
        "Step of one learning rate over the weights",
        f"How far one step, momentum aside, moves the weights. {OVER_SEEDS}",
    ),
    "train_loss": ("Training loss", f"Mean cross-entropy in nats over an epoch, while the weights move. {OVER_SEEDS}"),
    "val_accuracy": ("Validation accuracy", f"After each epoch, in evaluation mode, without noise. {OVER_SEEDS}"),
}
"""Column of the probes or epochs -> title and caption."""


def _sections(
    record: Record, arms: Sequence[Arm], ratios: Mapping[str, Spread | None], probes: pd.DataFrame
) -> tuple[Section, ...]:
    def drawn(*names: str, table: pd.DataFrame = probes) -> list[Figure]:
        return [figure for name in names for figure in _over_steps(record, arms, table, name)]

    def seen(title: str, short: str, figures: Sequence[Figure], keys: Iterable[str]) -> Section:
        blocks = (Figures(figures), _quantities(record, arms, keys)) if figures else ()
        return Section(title=title, short=short, blocks=blocks)

    smoothness, free = drawn("smoothness", "free_smoothness"), drawn("free_loss", "free_gradient_change")
    result = (Figures(smoothness), _table(record, arms, ENDS), Text(TWO_VIEWS))
    return (
        Section(title="Result", blocks=result),
        expected(Text(PAPERS), Claims(_claims(record, arms, ratios))),
        seen("In learning rates, as the paper measures", "In learning rates", drawn("loss", "gradient_change"), VIEW),
        seen("In proportion to the weights", "In proportion", free, [f"free_{key}" for key in VIEW]),
        seen("Scale of gradients and weights", "Scale", [*drawn(*SCALES), *_layers(record)], SCALES),
        Section(title="Training", blocks=(Figures(drawn("train_loss", "val_accuracy", table=_epochs(record))),)),
    )


def _over_steps(record: Record, arms: Iterable[Arm], table: pd.DataFrame, name: str) -> list[Figure]:
    """Draw a column over the training steps, with a band if probes have one; nothing if no value is finite."""
    has_band = f"{name}_line" in table
    value, low, high = (f"{name}_{end}" if has_band else name for end in ("line", "low", "high"))
    lowest, highest = ("median", "median") if has_band else ("min", "max")
    finite = table[table[value].abs() < math.inf].groupby(["arm", "step"])
    shown = finite.agg(value=(value, "median"), low=(low, lowest), high=(high, highest)).reset_index()
    crosses = [  # the last point of a line before one of its networks diverged
        last
        for arm in arms
        for step in arm.diverged_at_step
        for last in shown[(shown["arm"] == arm.arm) & (shown["step"] < step)].tail(1).to_dict("records")
    ]
    title, caption = FIGURES[name]
    lengths = {unit: _lengths(record, unit) for unit in ("rate", "weight")}
    return arm_figure(
        record,
        "lines",
        shown,
        name=name,
        title=title,
        caption=caption.format(**lengths) + (" A cross: one of its networks diverged after it." if crosses else ""),
        marks={"crosses": crosses} if crosses else {},
        x="step",
        y="value",
        band=("low", "high"),
        x_title="training step",
        percent=name == "val_accuracy",
    )


def _epochs(record: Record) -> pd.DataFrame:
    """Return a row for each epoch of each network."""
    import pandas as pd

    rows = [place | subjects[""] for place, subjects in _steps(record, "val_accuracy")]
    return pd.DataFrame(rows, columns=["arm", "step", "train_loss", "val_accuracy"])


def _layers(record: Record) -> list[Figure]:
    """Draw, of each layer, the median over the probes of ||gradient|| / ||weight||."""
    import pandas as pd

    rows = [
        place | {"layer": layer, "value": _over(one["gradient_norm"], one["weight_norm"])}
        for place, subjects in _steps(record, "weight_norm")
        for layer, one in subjects.items()
        if layer and not layer.startswith(("rate ", "weights "))
    ]
    table = pd.DataFrame(rows)
    networks = table[table["value"].abs() < math.inf].groupby(["arm", "layer", "seed"], sort=False)["value"].median()
    return arm_figure(
        record,
        "dot_ranges",
        networks.groupby(["arm", "layer"], sort=False).agg(value="median", low="min", high="max").reset_index(),
        name="layers",
        title="Gradient over weight, by layer",
        caption="‖gradient‖ / ‖weight‖, median over the probes; first layer on top. Dot: median of the seeds. Line: "
        "their lowest to highest value.",
        rows="layer",
        x="value",
        ends=("low", "high"),
        x_title="‖gradient‖ / ‖weight‖",
    )


ORDERS = 30.0
"""Expected ratio of the two arms' gradients, "almost two orders of magnitude"."""
AS_WELL = 0.02
"""Difference in validation accuracy that counts as "as well": two points."""
LARGER = (
    ("Along the gradient the loss varies less with batch norm.", "loss_range", 1.0),
    ("The gradient changes less along itself with batch norm.", "gradient_change", 1.0),
    ("It changes less by almost two orders of magnitude.", "gradient_change", ORDERS),
    ("The effective smoothness β is smaller with batch norm.", "smoothness", 1.0),
    ("The loss varies less also with steps in proportion to the weights.", "free_loss_range", 1.0),
    ("The gradient changes less, in proportion, also with those steps.", "free_gradient_change", 1.0),
    ("β is smaller also for weights of norm 1.", "free_smoothness", 1.0),
    ("Gradients are smaller with batch norm.", "gradient_norm", 1.0),
)
"""Claim, quantity, and the least ratio of its value without normalization to that with batch norm."""
RARER = (
    ("The longest step along the gradient raises the loss less often with batch norm.", "raised"),
    ("So it does with steps in proportion to the weights.", "free_raised"),
)
TRAINS = ("as well as batch norm", "better than no normalization")


def _claims(record: Record, arms: Sequence[Arm], ratios: Mapping[str, Spread | None]) -> list[Claim]:
    """Judge by medians over the probes and means over the seeds, if the compared networks have learned something."""
    chance = chance_of(record)
    batch, plain = both = _measured_pair(arms)
    noisy = next((arm for arm in arms if arm.arm == NOISY and arm.ended), None)
    as_well, better = (f"Batch norm with noise after it trains {how}." for how in TRAINS)
    judged = [
        *((_larger(batch, plain, ratios[key], claim, key, times), both) for claim, key, times in LARGER),
        *((_rarer(batch, plain, claim, key), both) for claim, key in RARER),
        (_trains(as_well, noisy, batch, PAIR[0], tolerated(AS_WELL, chance.images)), (noisy, batch)),
        (_trains(better, noisy, plain, PAIR[1]), (noisy, plain)),
    ]
    return [
        unless_guessing(item, chance, {arm.label: arm["val_accuracy"] for arm in compared if arm})
        for item, compared in judged
    ]


def _larger(
    batch: Arm | None, plain: Arm | None, factor: Spread | None, claim: str, key: str, at_least: float
) -> Claim:
    with_norm, without = (arm[key] if arm else None for arm in (batch, plain))
    if with_norm is None or without is None:
        return judge(claim, None, absent_of((batch, plain), key))
    if factor is None:
        return judge(claim, None, "No seed has a number of both arms.")
    seeds = f", from {number(factor.low)} to {number(factor.high)} over the seeds" if factor.n > 1 else ""
    split = " The seeds disagree." if factor.low <= at_least <= factor.high and factor.n > 1 else ""
    return judge(
        claim,
        factor.mean > at_least,
        f"{QUANTITIES[key][0]}: {number(with_norm.mean)} with batch norm, {number(without.mean)} without, "
        f"{number(factor.mean)} times as much{seeds}.{split}",
    )


def _rarer(batch: Arm | None, plain: Arm | None, claim: str, key: str) -> Claim:
    with_norm, without = (arm[key] if arm else None for arm in (batch, plain))
    if with_norm is None or without is None:
        return judge(claim, None, absent_of((batch, plain), key))
    measured = f"At {percent(with_norm.mean)} of the probes with batch norm, at {percent(without.mean)} without."
    return judge(claim, with_norm.mean < without.mean, measured)


def _trains(claim: str, noisy: Arm | None, other: Arm | None, which: str, allowed: float = 0.0) -> Claim:
    """Judge whether ``noisy`` ends at most ``allowed`` behind ``other``, which is one of :data:`PAIR`."""
    ours, theirs = (one["val_accuracy"] if one else None for one in (noisy, other))
    if noisy is None or ours is None:
        return judge(claim, None, absent_because(noisy, "with noise after batch norm"))
    if other is None or theirs is None:
        return judge(claim, None, absent_because(other, which))
    ahead = ours.mean - theirs.mean
    lost = [f"{len(one.diverged_at_step)} diverged with {one.label}" for one in (noisy, other) if one.diverged_at_step]
    seeds = "; ".join(["n = " + " and ".join(map(str, dict.fromkeys((ours.n, theirs.n)))), *lost])
    tolerance = f'; "as well" allows {points(allowed, digits=0 if allowed == AS_WELL else 1)}' if allowed else ""
    return judge(
        claim,
        ahead >= -allowed,
        f"Validation accuracy {percent(ours.mean)} against {percent(theirs.mean)} with {other.label}: "
        f"{points(ahead)} {'ahead' if ahead > 0 else 'behind'} ({seeds}){tolerance}.",
    )


HARDLY = 0.95
"""Share of the guessing loss above which a training loss has hardly moved."""
TWO_VIEWS = (
    "Weights in front of a normalization can be multiplied by any c > 0 without changing what the network computes: "
    "its gradient is then divided by c and its β by c². Steps in learning rates, as the papers measure, see that; "
    "steps that are a share of the weights' norm hardly do, nor does β times its square. Only a difference that shows "
    "in both views is one of shape. The range of the loss counts a fall as much as a rise, so a network that learns "
    "faster has the larger one; how often the longest step raises the loss tells the two apart."
)


def _headline(record: Record, arms: Sequence[Arm], ratios: Mapping[str, Spread | None]) -> str:
    """Return the difference in both views, which may disagree; in the paper's only if the networks hardly trained."""
    if None in _measured_pair(arms):
        measured = [arm.arm for arm in arms if arm.ended]
        so_far = "The loss" if all_measured(record) else "So far the loss"
        return f"{so_far} was probed around {few_arms(measured)}" if measured else "Nothing is measured yet"
    first, second = (ratios[key] for key in ("smoothness", "free_smoothness"))
    if not first or not second:
        return "β cannot be compared: no seed has a finite one with batch norm and without"
    beta, free, guessing = size(first), size(second), loss_of_guessing(record)
    stuck = [arm.arm for arm in arms if (loss := arm["train_loss"]) and loss.mean > HARDLY * guessing]
    if stuck:
        return f"β is {beta} with batch norm; {few_arms(stuck, most=1)} hardly trained"
    return f"β is {beta} with batch norm, {free} for weights of norm 1"


def size(factor: Spread) -> str:
    """Describe how many times smaller a quantity is with batch norm, given its ratio without to with.

    If seeds disagree on the direction, it counts as about the same.
    """
    if factor.low <= 1 <= factor.high and factor.n > 1:
        return "about as large"
    if factor.mean >= 1:
        return f"{number(factor.mean, digits=2)} times smaller"
    return f"{number(1 / factor.mean if factor.mean else None, digits=2)} times larger"


LEAD = """
β is how fast the gradient changes along itself; weights of norm 1 take their scale out of it. The same network
({network}) in {variants} variants, probed every {probe_every} steps of {epochs} on {data} with learning rate {lr} and
{batches}; {seeds}.
"""
METHOD = """
At step 0 and every {probe_every} steps the loss and its gradient g are taken on the step's own batch, in training mode,
at the weights x and at x - η g: with η of {rate_steps} learning rates, and with η ‖g‖ of {weight_steps} times the norm
‖w‖ of convolutions and linear layers. It is done on copies, without weight decay and momentum.

The range of the loss is the largest less the smallest at the ends of the steps; the change of the gradient is the
largest ‖g(x) - g(x - η g)‖; the effective smoothness β the largest ‖g(x) - g(x - η g)‖ / ‖η g‖. Tables give the median
over a network's probes, then mean and range over the seeds.

{noise}

{rounding}
"""
NOISE = (
    f"{capital(arm_label(NOISY))} shifts every normalized channel by up to {LARGEST_SHIFT:g} standard deviations and "
    f"scales it by up to {percent(LARGEST_SCALING, digits=0)} up or down, at random, drawn again at every training "
    "step, the same for all images of the batch; in evaluation there is none."
)


def _method(record: Record, arms: Sequence[Arm]) -> list[str]:
    shares = listing([f"{percent(found.mean)} with {arm.label}" for arm in arms if (found := arm["rounding"])])
    rounding = f"rounding to bfloat16 moves the gradient at the median probe by these shares of its norm: {shares}."
    noise = NOISE if NOISY in record.config["arms"] else ""
    return method_of(record, METHOD, noise=noise, rounding=f"Probes are in float32; {rounding}" if shares else "")


def _lengths(record: Record, unit: str) -> str:
    return listing([f"{length:g}" for length in record.config[f"{unit}_steps"]])


EXPERIMENT = Experiment(
    name="landscape",
    config=LandscapeConfig,
    quick=QUICK,
    check=_check,
    work=_work,
    describe=describe,
    trains=lambda config: dict.fromkeys(WITHOUT_NOISE if arm == NOISY else arm for arm in config.arms),
)
