import contextlib
import json
import math
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch.utils.tensorboard import SummaryWriter

from steadynorm.lab import trainer, training
from steadynorm.lab.cells import CellFiles, measure
from steadynorm.lab.checkpoint import load_checkpoint
from steadynorm.lab.data import Images, evaluation_batches
from steadynorm.lab.networks import build_network
from steadynorm.lab.trainer import Trainer
from steadynorm.lab.training import Training, network
from steadynorm.reporting.failure import UserError
from steadynorm.reporting.records import Cell, Measurement
from steadynorm.reporting.run_directory import RunDirectory
from tests.support.experiments import TINY_SETTINGS, Recorder, without_times
from tests.support.given_networks import HERE
from tests.support.records import with_factors
from tests.support.training import DATA, NETWORK, run


def epochs_of(cell: Cell, quantity: str) -> list[float]:
    return [*cell.series(quantity).values()]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Cell, Path]:
    path = tmp_path_factory.mktemp("undisturbed")
    return run(path), path


def rebuilt(path: Path) -> torch.nn.Module:
    model = build_network("cnn", arm="batch_norm", depth=2, widths=(4, 8), classes=10, seed=9)
    model.load_state_dict(load_file(RunDirectory(path).checkpoint_path(NETWORK)))
    return model.eval()


def test_a_network_trains_on_images_of_one_channel_and_its_checkpoint_says_so(tmp_path: Path) -> None:
    gray = {split: of_size(getattr(DATA, split), (20, 28), channels=1) for split in ("train", "validation")}
    dataset = replace(DATA, **gray, classes=(*DATA.classes, "k"), mean=(0.4,), std=(0.25,))
    cell = Cell(factors=network(arm="batch_norm", seed=0, lr=0.05, epochs=1))
    files = CellFiles(RunDirectory(tmp_path), Recorder(), {})
    files.plan([cell.factors])
    files.end(measure(cell, Training(settings=TINY_SETTINGS, dataset=dataset), files.begin(cell), files))
    found = load_checkpoint(RunDirectory(tmp_path).checkpoint_path(cell))
    assert (found.channels, found.classes, found.image_size) == (1, 11, (20, 28))


def of_size(images: Images, size: tuple[int, int], *, channels: int) -> Images:
    return Images(pixels=images.pixels[:, :channels, : size[0], : size[1]], labels=images.labels)


def test_a_finished_run_has_every_epoch(undisturbed: tuple[Cell, Path]) -> None:
    record, _ = undisturbed
    assert record.status == "finished"
    assert [*record.series("val_accuracy")] == [1, 2, 3, 4]


def test_the_rate_falls_tenfold_behind_each_milestone(undisturbed: tuple[Cell, Path]) -> None:
    assert epochs_of(undisturbed[0], "learning_rate") == pytest.approx([0.05, 0.05, 0.005, 0.0005])


def test_training_learns(undisturbed: tuple[Cell, Path]) -> None:
    first, *_, last = epochs_of(undisturbed[0], "train_loss")
    assert last < 0.8 * first
    assert undisturbed[0].last("train_accuracy") > 2 * 0.1  # chance


def test_the_checkpoint_is_the_network_that_was_measured(undisturbed: tuple[Cell, Path]) -> None:
    record, path = undisturbed
    model = rebuilt(path)
    pixels = (DATA.validation.pixels.float() / 255 - 0.4) / 0.25
    logits = model(pixels)
    assert record.last("val_accuracy") == (logits.argmax(1) == DATA.validation.labels).double().mean().item()
    assert record.last("val_loss") == pytest.approx(F.cross_entropy(logits, DATA.validation.labels).item(), rel=1e-5)


def test_what_is_recorded_of_training_is_what_the_first_step_gives(tmp_path: Path) -> None:
    """One step of the whole training set as a batch, beside the same step by hand."""
    cell = with_factors(NETWORK, epochs=1)
    record = run(tmp_path, cell, batch_size=len(DATA.train))
    model = build_network("cnn", arm="batch_norm", depth=2, widths=(4, 8), classes=10, seed=0)
    x, labels = next(
        evaluation_batches(DATA.train, dataset=DATA, batch_size=len(DATA.train), device=torch.device("cpu"))
    )
    logits = model(x)
    F.cross_entropy(logits, labels).backward()
    gradients = {name: parameter.grad.double() for name, parameter in model.named_parameters()}
    whole = math.sqrt(sum(gradient.square().sum().item() for gradient in gradients.values()))
    assert record.last("train_accuracy") == (logits.argmax(1) == labels).double().mean().item()
    assert record.last("grad_norm_mean") == pytest.approx(whole, rel=1e-4)
    norms = record.values("grad_norm_mean")
    assert [*norms] == ["", "conv1", "conv2", "classifier"]
    for weight in ("conv1", "conv2", "classifier"):
        assert norms[weight] == pytest.approx(gradients[f"{weight}.weight"].norm().item(), rel=1e-4)


def test_a_step_over_several_batches_is_the_step_over_all_of_them(tmp_path: Path) -> None:
    """Group norm normalizes per image, so that the size of a batch changes nothing but the order of sums."""
    cell = with_factors(NETWORK, arm="group_norm")
    parts, whole = run(tmp_path / "parts", cell, batch_size=4, accumulate=4), run(tmp_path / "whole", cell)
    for name in ("train_accuracy", "val_accuracy"):
        assert epochs_of(parts, name) == epochs_of(whole, name)
    for name in ("train_loss", "grad_norm_mean"):
        assert epochs_of(parts, name) == pytest.approx(epochs_of(whole, name), rel=1e-3)


def test_only_batches_are_normalized_together_where_a_step_takes_several(tmp_path: Path) -> None:
    """Batch norm's running statistics follow each batch: 24 of 4 images an epoch, and none of 16."""
    parts = run(tmp_path / "parts", with_factors(NETWORK, epochs=1), batch_size=4, accumulate=4)
    whole = run(tmp_path / "whole", with_factors(NETWORK, epochs=1))
    assert abs(parts.last("train_loss") / whole.last("train_loss") - 1) > 0.01
    state = load_file(RunDirectory(tmp_path / "parts").checkpoint_path(with_factors(NETWORK, epochs=1)))
    assert {int(value) for name, value in state.items() if name.endswith("num_batches_tracked")} == {24}


def test_a_network_is_told_how_many_batches_there_will_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[dict[str, int]] = []

    def build(*given: Any, update_every: int, batches: int, **named: Any) -> torch.nn.Module:
        told.append({"update_every": update_every, "batches": batches})
        return build_network(*given, **named)

    monkeypatch.setattr(trainer, "build_network", build)
    run(tmp_path, with_factors(NETWORK, epochs=3), batch_size=4, accumulate=5)
    assert told == [{"update_every": 5, "batches": 3 * 4 * 5}] * 2  # the first network warms up


def test_an_epoch_leaves_out_the_batches_that_make_no_whole_step(tmp_path: Path) -> None:
    display = Recorder()
    run(tmp_path, with_factors(NETWORK, epochs=1), display, batch_size=16, accumulate=4)
    assert display.shares == [1.0]


def test_percentiles_enclose_the_mean_of_the_steps(undisturbed: tuple[Cell, Path]) -> None:
    columns = (epochs_of(undisturbed[0], f"grad_norm_{name}") for name in ("p5", "mean", "p95"))
    assert all(low < mean < high for low, mean, high in zip(*columns, strict=True))


@pytest.mark.parametrize("after", [1, 2, 3])
def test_a_resumed_run_ends_with_the_numbers_of_an_undisturbed_one(
    tmp_path: Path, undisturbed: tuple[Cell, Path], after: int
) -> None:
    with pytest.raises(RuntimeError, match="on purpose"):
        run(tmp_path, display=Recorder(fail_after_epoch=after))
    assert len(RunDirectory(tmp_path).load_state(NETWORK).series("val_loss")) == after
    record = run(tmp_path)
    assert without_times(record) == without_times(undisturbed[0])
    first, second = (load_file(RunDirectory(path).checkpoint_path(NETWORK)) for path in (tmp_path, undisturbed[1]))
    assert all(torch.equal(first[name], second[name]) for name in second)


@pytest.mark.parametrize(
    "recipe",
    [{"optimizer": "adamw", "schedule": "cosine"}, {"schedule": "one-cycle", "label_smoothing": 0.1}],
    ids=lambda recipe: recipe["schedule"],
)
def test_any_recipe_goes_on_bit_for_bit(tmp_path: Path, recipe: dict[str, Any]) -> None:
    whole = run(tmp_path / "whole", **recipe)
    with pytest.raises(RuntimeError, match="on purpose"):
        run(tmp_path / "parts", display=Recorder(fail_after_epoch=2), **recipe)
    assert without_times(run(tmp_path / "parts", **recipe)) == without_times(whole)
    assert whole.last("train_loss") < whole.series("train_loss")[1]


def test_only_the_training_loss_is_to_smoothed_labels(tmp_path: Path) -> None:
    """At a rate that moves no weight."""
    plain, smoothed = (
        run(tmp_path / name, with_factors(NETWORK, epochs=1, lr=1e-9), label_smoothing=share)
        for name, share in (("a", 0.0), ("b", 0.5))
    )
    assert plain.last("val_loss") == pytest.approx(smoothed.last("val_loss"), rel=1e-6)
    assert plain.last("train_loss") != pytest.approx(smoothed.last("train_loss"), rel=1e-4)


def test_a_finished_run_is_not_trained_again(undisturbed: tuple[Cell, Path]) -> None:
    record, path = undisturbed
    display = Recorder()
    assert run(path, display=display) == record
    assert display.shares == []


def test_the_same_seed_gives_the_same_numbers(tmp_path: Path, undisturbed: tuple[Cell, Path]) -> None:
    assert without_times(run(tmp_path)) == without_times(undisturbed[0])


def test_another_seed_gives_other_numbers(tmp_path: Path, undisturbed: tuple[Cell, Path]) -> None:
    record = run(tmp_path, with_factors(NETWORK, seed=1))
    assert record.series("train_loss")[1] != undisturbed[0].series("train_loss")[1]


def test_every_epoch_has_its_own_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    batches = trainer.batches

    def spy(images: Images, **arguments: Any) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        asked.append((arguments["seed"], arguments["epoch"]))
        return batches(images, **arguments)

    monkeypatch.setattr(trainer, "batches", spy)
    run(tmp_path, with_factors(NETWORK, seed=3))
    assert asked == [(3, 1), (3, 1), (3, 2), (3, 3), (3, 4)]  # the first of a network that warms up


@pytest.mark.parametrize("changes", [{"weight_decay": 0.0}, {"momentum": 0.5}], ids=lambda changes: next(iter(changes)))
def test_the_optimizer_is_the_one_asked_for(
    tmp_path: Path, undisturbed: tuple[Cell, Path], changes: dict[str, float]
) -> None:
    record = run(tmp_path, with_factors(NETWORK, epochs=1), **changes)
    assert record.series("train_loss")[1] != undisturbed[0].series("train_loss")[1]


def test_augmentation_changes_what_is_trained_on(tmp_path: Path, undisturbed: tuple[Cell, Path]) -> None:
    record = run(tmp_path, augment="crop-flip")
    assert record.series("train_loss")[1] != undisturbed[0].series("train_loss")[1]


def test_bf16_trains_to_other_digits_of_a_similar_loss(tmp_path: Path, undisturbed: tuple[Cell, Path]) -> None:
    record = run(tmp_path, precision="bf16")
    assert record.series("train_loss")[1] != undisturbed[0].series("train_loss")[1]
    assert record.series("train_loss")[1] == pytest.approx(undisturbed[0].series("train_loss")[1], rel=0.1)


def test_a_loss_that_is_not_finite_ends_the_run_at_its_step(tmp_path: Path) -> None:
    cell = with_factors(NETWORK, arm="none", lr=1e12)
    record = run(tmp_path, cell)
    assert record.status == "diverged"
    assert record.diverged_at_step is not None
    assert record.series("val_loss") == {}
    assert not RunDirectory(tmp_path).checkpoint_path(cell).exists()
    assert RunDirectory(tmp_path).load_state(cell) == record


def test_the_step_of_divergence_is_the_first_with_a_loss_that_is_not_finite(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The 9th loss is made infinite: the third step of the second epoch of six steps."""
    calls = 0
    cross_entropy = F.cross_entropy

    def poisoned(logits: torch.Tensor, labels: torch.Tensor, **options: str) -> torch.Tensor:
        nonlocal calls
        loss = cross_entropy(logits, labels, **options)
        if "reduction" in options:  # evaluation
            return loss
        calls += 1
        return loss * math.inf if calls == 10 else loss  # the first call warms up

    monkeypatch.setattr(F, "cross_entropy", poisoned)
    record = run(tmp_path)
    assert (record.status, record.diverged_at_step, len(record.series("val_loss"))) == ("diverged", 9, 1)


def test_a_diverged_epoch_is_not_trained_to_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainer, "STEPS_BETWEEN_CHECKS", 1)
    display = Recorder()
    record = run(tmp_path, with_factors(NETWORK, arm="none", lr=1e30), display)
    assert record.diverged_at_step == len(display.shares) < 6


def test_the_display_hears_of_every_step_and_of_some_losses(tmp_path: Path) -> None:
    display = Recorder()
    run(tmp_path, with_factors(NETWORK, epochs=1), display)
    assert display.shares == pytest.approx([step / 6 for step in range(1, 7)])
    (text,) = display.texts
    assert text.startswith("epoch 1/1, loss ")


def test_an_epoch_is_told_in_a_line(tmp_path: Path) -> None:
    display = Recorder()
    cell = run(tmp_path, with_factors(NETWORK, epochs=1), display)
    loss, accuracy = cell.last("train_loss"), cell.last("train_accuracy")
    (line,) = display.lines
    assert line.startswith(f"epoch 1/1  train {loss:.2f} {accuracy:.1%}  validation {cell.last('val_loss'):.2f} ")
    assert f"  gradient {cell.last('grad_norm_mean'):.2f}  " in line and line.endswith(" s")


def test_a_loss_that_explodes_is_told_in_three_digits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loss = F.cross_entropy
    monkeypatch.setattr(F, "cross_entropy", lambda *given, **how: loss(*given, **how) * 1e12)
    display = Recorder()
    run(tmp_path, with_factors(NETWORK, epochs=1, lr=1e-15), display)
    (line,), (text,) = display.lines, display.texts
    assert re.match(r"epoch 1/1  train \d\.\d\de\+12 .*  validation \d\.\d\de\+12 .*  gradient \d\.\d\de\+1\d  ", line)
    assert re.fullmatch(r"epoch 1/1, loss \d\.\d\de\+12", text)


def test_what_compiles_at_its_first_call_counts_in_no_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock counts calls of the loss: each is a second, and the first takes a minute."""
    clock, loss = [0.0], F.cross_entropy

    def slow_at_first(*given: torch.Tensor, **how: str) -> torch.Tensor:
        clock[0] += 1.0 if clock[0] else 60.0
        return loss(*given, **how)

    monkeypatch.setattr(F, "cross_entropy", slow_at_first)
    monkeypatch.setattr(trainer, "time", SimpleNamespace(perf_counter=lambda: clock[0]))
    cell = run(tmp_path, with_factors(NETWORK, epochs=2))
    first, second = cell.series("seconds").values()
    assert clock[0] > 60 and first == second < 60


def test_events_for_tensorboard_hold_the_epochs(undisturbed: tuple[Cell, Path]) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    record, path = undisturbed
    events = EventAccumulator(str(RunDirectory(path).tensorboard_path(NETWORK)))
    events.Reload()
    accuracy = events.Scalars("val/accuracy")
    assert [event.step for event in accuracy] == [1, 2, 3, 4]
    assert [event.value for event in accuracy] == pytest.approx(epochs_of(record, "val_accuracy"))


def test_each_new_epoch_is_told_as_a_line_and_then_the_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cell = with_factors(NETWORK, arm="gated_batch_norm")
    with pytest.raises(RuntimeError, match="on purpose"):
        run(tmp_path, cell, Recorder(fail_after_epoch=2))
    ended = run(tmp_path, cell, lines=True)
    *epochs, end = map(json.loads, capsys.readouterr().out.splitlines())
    assert [(line["kind"], line["cell"], line["epoch"]) for line in epochs] == [
        ("epoch", cell.name, 3),
        ("epoch", cell.name, 4),
    ]
    assert epochs[-1]["val_loss"] == ended.last("val_loss") and epochs[-1]["factors"] == cell.factors
    assert {"norm1/gate", "norm1/noise", "norm2/distance"} <= epochs[-1]["readings"].keys()
    assert (end["kind"], end["status"]) == ("cell", "finished") and "measurements" not in end


def test_reading_the_norms_changes_no_bit_of_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cell = with_factors(NETWORK, arm="batch_renorm", epochs=2)
    read = run(tmp_path / "a", cell)
    monkeypatch.setattr(Trainer, "_reading", lambda self, stored: contextlib.nullcontext({}))
    assert without_times(run(tmp_path / "b", cell)) == without_times(read)


def test_the_rate_rises_step_by_step_and_is_lowered_behind_the_warm_up(tmp_path: Path) -> None:
    rates: list[float] = []
    step = torch.optim.SGD.step

    def noting(optimizer: torch.optim.SGD, *arguments: Any) -> Any:
        rates.append(optimizer.param_groups[0]["lr"])
        return step(optimizer, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.SGD, "step", noting)
        record = run(
            tmp_path, with_factors(NETWORK, lr=0.4), warm_up=2, warm_up_from=0.1, milestones=(3,), batch_size=48
        )
    rising = [0.1 + 0.3 * number / 4 for number in (1, 2, 3, 4)]  # two epochs of two steps
    _, *rates = rates  # the first is of a network that warms up
    assert rates == pytest.approx([*rising, 0.4, 0.4, 0.04, 0.04])
    assert epochs_of(record, "learning_rate") == pytest.approx([rising[1], 0.4, 0.4, 0.04])


def test_normalizations_and_biases_can_be_spared_the_decay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[torch.optim.SGD] = []
    original = torch.optim.SGD

    def noting(*arguments: Any, **named: Any) -> torch.optim.SGD:
        made.append(original(*arguments, **named))
        return made[-1]

    monkeypatch.setattr(torch.optim, "SGD", noting)
    run(tmp_path / "a", with_factors(NETWORK, epochs=1), spare_norms=True)
    run(tmp_path / "b", with_factors(NETWORK, epochs=1))
    _, spared, _, all_of_them = made  # the others warm up
    decays = {parameter.dim(): group["weight_decay"] for group in spared.param_groups for parameter in group["params"]}
    assert decays == {4: 5e-4, 2: 5e-4, 1: 0.0}
    assert [group["weight_decay"] for group in all_of_them.param_groups] == [5e-4]


def test_statistics_stay_in_the_last_epochs_and_normalize(tmp_path: Path) -> None:
    records = {name: run(tmp_path / name, freeze_last=last) for name, last in (("usual", 0), ("frozen", 2))}
    losses = [epochs_of(records[name], "train_loss") for name in ("usual", "frozen")]
    assert losses[0][:2] == losses[1][:2] and losses[0][2] != losses[1][2]
    short = run(tmp_path / "short", with_factors(NETWORK, epochs=2))
    assert short.last("val_accuracy") == records["frozen"].series("val_accuracy")[2]
    means = [
        {name: tensor for name, tensor in load_file(path).items() if "running" in name}
        for path in (
            RunDirectory(tmp_path / "short").checkpoint_path(with_factors(NETWORK, epochs=2)),
            RunDirectory(tmp_path / "frozen").checkpoint_path(NETWORK),
        )
    ]
    assert means[0].keys() == means[1].keys() and len(means[0]) > 0
    assert all(torch.equal(means[0][name], means[1][name]) for name in means[0])


def test_a_batch_that_does_not_fit_into_memory_is_averaged_from_parts_that_do(tmp_path: Path) -> None:
    parts = run(tmp_path / "parts", with_factors(NETWORK, arm="group_norm", batch_size=48), at_once=16)
    whole = run(tmp_path / "whole", with_factors(NETWORK, arm="group_norm", batch_size=48))
    assert epochs_of(parts, "train_loss") == pytest.approx(epochs_of(whole, "train_loss"))
    display = Recorder()
    run(tmp_path / "fits", with_factors(NETWORK, batch_size=48, epochs=1), display, at_once=48)
    assert len(display.shares) == 2


def test_a_state_that_names_the_gate_apart_is_restored() -> None:
    """So did version 0.1.0 write it."""
    built = {"arm": "gated_batch_norm", "depth": 3, "widths": (4, 8), "classes": 10}
    model, other = (build_network("cnn", seed=seed, **built) for seed in (0, 1))
    model.train()(torch.randn(8, 3, 32, 32))
    state = training._state(model, torch.optim.SGD(model.parameters(), lr=0.1))
    older = {
        key.replace("model.", "extra.", 1) if key.endswith((".noise", ".confidence")) else key: tensor.clone()
        for key, tensor in state.items()
    }
    assert any(key.startswith("extra.") for key in older)
    training._restore(other, torch.optim.SGD(other.parameters(), lr=0.1), older)
    assert all(torch.equal(tensor, model.state_dict()[key]) for key, tensor in other.state_dict().items())


def test_a_state_of_another_network_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError):
        run(tmp_path, display=Recorder(fail_after_epoch=1))
    directory = RunDirectory(tmp_path)
    tensors = directory.load_tensors(NETWORK)
    for damaged in ({}, tensors | {"model.conv1.weight": torch.zeros(1)}):
        directory.save_state(directory.load_state(NETWORK), damaged)
        with pytest.raises(UserError, match="the tensors of its state are those of another network") as refused:
            run(tmp_path)
        assert "\n" not in str(refused.value)


@pytest.mark.slow
def test_equal_runs_leave_checkpoints_of_equal_bytes(tmp_path: Path) -> None:
    cell = with_factors(NETWORK, arm="gated_batch_norm", epochs=1)
    for name in "ab":
        run(tmp_path / name, cell)
    first, second = (RunDirectory(tmp_path / name).checkpoint_path(cell).read_bytes() for name in "ab")
    assert first == second


@pytest.mark.parametrize("steps", [[1, 2, 3, 4, 5], [2], [1, 3], [2, 1]])
def test_a_state_that_no_training_leaves_is_damaged(tmp_path: Path, steps: list[int]) -> None:
    rows = tuple(Measurement(step=step, quantity="val_accuracy", value=0.5) for step in steps)
    RunDirectory(tmp_path).save_state(replace(NETWORK, status="running", measurements=rows), {})
    with pytest.raises(UserError, match=r"the state is damaged \(running with the epochs .* of 4\)\. Remove it"):
        run(tmp_path)


def test_events_after_the_last_state_are_dropped_where_training_goes_on(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = RunDirectory(tmp_path).tensorboard_path(NETWORK)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, NETWORK, Recorder(fail_after_epoch=2, error=KeyboardInterrupt()))
    with SummaryWriter(str(board)) as lost:  # an epoch whose state was not written
        lost.add_scalar("val/accuracy", -1.0, 3)
    for file in board.iterdir():  # read in the order of their names, by second
        file.rename(file.with_name(file.name.replace("tfevents.", "tfevents.0")))
    run(tmp_path, NETWORK)
    events = EventAccumulator(str(board))
    events.Reload()
    assert [event.step for event in events.Scalars("val/accuracy")] == [1, 2, 3, 4]


def test_a_network_is_named_by_what_is_its_own() -> None:
    assert network(arm="none", seed=1, lr=0.1, epochs=2) == {"arm": "none", "lr": 0.1, "seed": 1, "epochs": 2}
    more = network(arm="none", seed=1, lr=0.1, epochs=2, purpose="tune", variant="plain", batch_size=8, depth=3)
    assert Cell(factors=more).name == "tune-plain-none-lr0.1-batch8-depth3-seed1"


@pytest.mark.parametrize(
    ("settings", "arm", "message"),
    [
        (
            {},
            f"late={HERE}:FailsLater",
            r"cnn with late: failed on a batch of 16 images with RuntimeError: too many \(given_networks.py, line",
        ),
        (
            {"network": "vgg", "batch_size": 1},
            "batch_norm",
            "vgg with batch norm: failed on a batch of 1 images",
        ),
    ],
)
def test_what_fails_while_it_trains_is_one_line(
    tmp_path: Path, settings: dict[str, Any], arm: str, message: str
) -> None:
    gray = {split: of_size(getattr(DATA, split), (28, 28), channels=3) for split in ("train", "validation")}
    factors = network(arm=arm, seed=0, lr=0.05, epochs=1)
    trainer = Trainer.start(factors, replace(TINY_SETTINGS, **settings), replace(DATA, **gray))
    with pytest.raises(UserError, match=message):
        trainer.steps(1)
