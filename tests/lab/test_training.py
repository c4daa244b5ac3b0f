import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from steadynorm.lab import training
from steadynorm.lab.data import Images, evaluation_batches
from steadynorm.lab.networks import build_network
from steadynorm.lab.run_directory import RunDirectory
from steadynorm.lab.training import evaluate, train
from steadynorm.reporting.failure import UserError
from steadynorm.reporting.records import RunRecord, RunSpec
from tests.support.experiments import TINY_SETTINGS, Recorder, tiny_dataset, without_times

DATA = tiny_dataset()
SPEC = RunSpec(arm="batch_norm", seed=0, lr=0.05, epochs=4)


def run(path: Path, spec: RunSpec = SPEC, observer: Recorder | None = None, **changes: object) -> RunRecord:
    settings = replace(TINY_SETTINGS, **changes)
    return train(spec, settings, DATA, directory=RunDirectory(path), observer=observer or Recorder())


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunRecord, Path]:
    path = tmp_path_factory.mktemp("undisturbed")
    return run(path), path


def rebuilt(path: Path) -> torch.nn.Module:
    model = build_network("cnn", arm="batch_norm", depth=2, widths=(4, 8), classes=10, seed=9)
    model.load_state_dict(load_file(RunDirectory(path).checkpoint_path(SPEC)))
    return model.eval()


def test_a_finished_run_has_every_epoch(undisturbed: tuple[RunRecord, Path]) -> None:
    record, _ = undisturbed
    assert record.status == "finished"
    assert [epoch.epoch for epoch in record.epochs] == [1, 2, 3, 4]


def test_the_rate_falls_tenfold_behind_each_milestone(undisturbed: tuple[RunRecord, Path]) -> None:
    rates = [epoch.learning_rate for epoch in undisturbed[0].epochs]
    assert rates == pytest.approx([0.05, 0.05, 0.005, 0.0005])


def test_training_learns(undisturbed: tuple[RunRecord, Path]) -> None:
    first, *_, last = undisturbed[0].epochs
    assert last.train_loss < 0.8 * first.train_loss
    assert last.train_accuracy > 2 * 0.1  # chance


def test_the_checkpoint_is_the_network_that_was_measured(undisturbed: tuple[RunRecord, Path]) -> None:
    record, path = undisturbed
    model = rebuilt(path)
    pixels = (DATA.validation.pixels.float() / 255 - 0.4) / 0.25
    logits = model(pixels)
    assert record.epochs[-1].val_accuracy == (logits.argmax(1) == DATA.validation.labels).double().mean().item()
    assert record.epochs[-1].val_loss == pytest.approx(F.cross_entropy(logits, DATA.validation.labels).item(), rel=1e-5)


def test_evaluation_counts_a_small_last_batch_by_its_size(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build_network("cnn", arm="none", depth=2, widths=(4, 8), classes=10, seed=0)
    whole = evaluate(model, DATA.validation, DATA, TINY_SETTINGS)
    monkeypatch.setattr(training, "EVALUATION_BATCH", 13)
    assert evaluate(model, DATA.validation, DATA, TINY_SETTINGS) == pytest.approx(whole)


@pytest.mark.parametrize("mode", [True, False])
def test_evaluation_moves_no_statistics_and_gives_the_mode_back(mode: bool) -> None:
    model = build_network("cnn", arm="batch_norm", depth=2, widths=(4, 8), classes=10, seed=0).train(mode)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    evaluate(model, DATA.validation, DATA, TINY_SETTINGS)
    assert model.training is mode
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_what_is_recorded_of_training_is_what_the_first_step_gives(tmp_path: Path) -> None:
    """One step of the whole training set as a batch, beside the same step by hand."""
    spec = replace(SPEC, epochs=1)
    record = run(tmp_path, spec, batch_size=len(DATA.train))
    model = build_network("cnn", arm="batch_norm", depth=2, widths=(4, 8), classes=10, seed=0)
    x, labels = next(
        evaluation_batches(DATA.train, dataset=DATA, batch_size=len(DATA.train), device=torch.device("cpu"))
    )
    logits = model(x)
    F.cross_entropy(logits, labels).backward()
    gradients = {name: parameter.grad.double() for name, parameter in model.named_parameters()}
    whole = math.sqrt(sum(gradient.square().sum().item() for gradient in gradients.values()))
    assert record.epochs[0].train_accuracy == (logits.argmax(1) == labels).double().mean().item()
    assert record.epochs[0].grad_norm_mean == pytest.approx(whole, rel=1e-4)
    assert [layer.layer for layer in record.layers] == ["conv1", "conv2", "classifier"]
    for layer in record.layers:
        assert layer.mean == pytest.approx(gradients[f"{layer.layer}.weight"].norm().item(), rel=1e-4)


def test_a_step_over_several_batches_is_the_step_over_all_of_them(tmp_path: Path) -> None:
    """Group norm normalizes per image, so that the size of a batch changes nothing but the order of sums."""
    spec = replace(SPEC, arm="group_norm")
    parts, whole = run(tmp_path / "parts", spec, batch_size=4, accumulate=4), run(tmp_path / "whole", spec)
    for one, other in zip(parts.epochs, whole.epochs, strict=True):
        assert (one.train_accuracy, one.val_accuracy) == (other.train_accuracy, other.val_accuracy)
        assert one.train_loss == pytest.approx(other.train_loss, rel=1e-3)
        assert one.grad_norm_mean == pytest.approx(other.grad_norm_mean, rel=1e-3)


def test_only_batches_are_normalized_together_where_a_step_takes_several(tmp_path: Path) -> None:
    """Batch norm's running statistics follow each batch: 24 of 4 images an epoch, and none of 16."""
    parts = run(tmp_path / "parts", replace(SPEC, epochs=1), batch_size=4, accumulate=4)
    whole = run(tmp_path / "whole", replace(SPEC, epochs=1))
    assert abs(parts.epochs[0].train_loss / whole.epochs[0].train_loss - 1) > 0.01
    state = load_file(RunDirectory(tmp_path / "parts").checkpoint_path(replace(SPEC, epochs=1)))
    assert {int(value) for name, value in state.items() if name.endswith("num_batches_tracked")} == {24}


def test_a_network_is_told_how_many_batches_there_will_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[dict[str, int]] = []

    def build(*given: Any, update_every: int, batches: int, **named: Any) -> torch.nn.Module:
        told.append({"update_every": update_every, "batches": batches})
        return build_network(*given, **named)

    monkeypatch.setattr(training, "build_network", build)
    run(tmp_path, replace(SPEC, epochs=3), batch_size=4, accumulate=5)
    assert told == [{"update_every": 5, "batches": 3 * 4 * 5}]


def test_an_epoch_leaves_out_the_batches_that_make_no_whole_step(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    observer = Recorder()
    observer.step = lambda record, *, step, steps, loss: seen.append((step, steps))  # type: ignore[method-assign]
    run(tmp_path, replace(SPEC, epochs=1), observer, batch_size=16, accumulate=4)
    assert seen == [(1, 1)]


def test_percentiles_enclose_the_mean_of_the_steps(undisturbed: tuple[RunRecord, Path]) -> None:
    for epoch in undisturbed[0].epochs:
        assert epoch.grad_norm_p5 < epoch.grad_norm_mean < epoch.grad_norm_p95


@pytest.mark.parametrize("after", [1, 2, 3])
def test_a_resumed_run_ends_with_the_numbers_of_an_undisturbed_one(
    tmp_path: Path, undisturbed: tuple[RunRecord, Path], after: int
) -> None:
    with pytest.raises(RuntimeError, match="on purpose"):
        run(tmp_path, observer=Recorder(fail_after_epoch=after))
    assert len(RunDirectory(tmp_path).load_record(SPEC).epochs) == after
    record = run(tmp_path)
    assert without_times(record) == without_times(undisturbed[0])
    first, second = (load_file(RunDirectory(path).checkpoint_path(SPEC)) for path in (tmp_path, undisturbed[1]))
    assert all(torch.equal(first[name], second[name]) for name in second)


def test_a_finished_run_is_not_trained_again(undisturbed: tuple[RunRecord, Path]) -> None:
    record, path = undisturbed
    observer = Recorder()
    assert run(path, observer=observer) == record
    assert observer.steps == []


def test_the_same_seed_gives_the_same_numbers(tmp_path: Path, undisturbed: tuple[RunRecord, Path]) -> None:
    assert without_times(run(tmp_path)) == without_times(undisturbed[0])


def test_another_seed_gives_other_numbers(tmp_path: Path, undisturbed: tuple[RunRecord, Path]) -> None:
    record = run(tmp_path, replace(SPEC, seed=1))
    assert record.epochs[0].train_loss != undisturbed[0].epochs[0].train_loss


def test_every_epoch_has_its_own_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    batches = training.batches

    def spy(images: Images, **arguments: Any) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        asked.append((arguments["seed"], arguments["epoch"]))
        return batches(images, **arguments)

    monkeypatch.setattr(training, "batches", spy)
    run(tmp_path, replace(SPEC, seed=3))
    assert asked == [(3, 1), (3, 2), (3, 3), (3, 4)]


@pytest.mark.parametrize("changes", [{"weight_decay": 0.0}, {"momentum": 0.5}], ids=lambda changes: next(iter(changes)))
def test_the_optimizer_is_the_one_asked_for(
    tmp_path: Path, undisturbed: tuple[RunRecord, Path], changes: dict[str, float]
) -> None:
    record = run(tmp_path, replace(SPEC, epochs=1), **changes)
    assert record.epochs[0].train_loss != undisturbed[0].epochs[0].train_loss


def test_augmentation_changes_what_is_trained_on(tmp_path: Path, undisturbed: tuple[RunRecord, Path]) -> None:
    record = run(tmp_path, augment="crop-flip")
    assert record.epochs[0].train_loss != undisturbed[0].epochs[0].train_loss


def test_bf16_trains_to_other_digits_of_a_similar_loss(tmp_path: Path, undisturbed: tuple[RunRecord, Path]) -> None:
    record = run(tmp_path, precision="bf16")
    assert record.epochs[0].train_loss != undisturbed[0].epochs[0].train_loss
    assert record.epochs[0].train_loss == pytest.approx(undisturbed[0].epochs[0].train_loss, rel=0.1)


def test_a_loss_that_is_not_finite_ends_the_run_at_its_step(tmp_path: Path) -> None:
    spec = replace(SPEC, arm="none", lr=1e12)
    record = run(tmp_path, spec)
    assert record.status == "diverged"
    assert record.diverged_at_step is not None
    assert record.epochs == ()
    assert not RunDirectory(tmp_path).checkpoint_path(spec).exists()
    assert RunDirectory(tmp_path).load_record(spec) == record


def test_the_step_of_divergence_is_the_first_with_a_loss_that_is_not_finite(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The 9th loss is made infinite: the third step of the second epoch of six steps."""
    calls = 0
    cross_entropy = F.cross_entropy

    def poisoned(logits: torch.Tensor, labels: torch.Tensor, **options: str) -> torch.Tensor:
        nonlocal calls
        loss = cross_entropy(logits, labels, **options)
        if options:  # evaluation
            return loss
        calls += 1
        return loss * math.inf if calls == 9 else loss

    monkeypatch.setattr(training.F, "cross_entropy", poisoned)
    record = run(tmp_path)
    assert (record.status, record.diverged_at_step, len(record.epochs)) == ("diverged", 9, 1)


def test_a_diverged_epoch_is_not_trained_to_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "STEPS_BETWEEN_CHECKS", 1)
    observer = Recorder()
    record = run(tmp_path, replace(SPEC, arm="none", lr=1e30), observer)
    assert record.diverged_at_step == len(observer.steps) < 6


def test_the_observer_hears_of_every_step_and_of_some_losses(tmp_path: Path) -> None:
    observer = Recorder()
    run(tmp_path, replace(SPEC, epochs=1), observer)
    assert observer.steps == [(step, 6) for step in range(1, 7)]
    assert len(observer.losses) == 1


def test_events_for_tensorboard_hold_the_epochs(undisturbed: tuple[RunRecord, Path]) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    record, path = undisturbed
    events = EventAccumulator(str(RunDirectory(path).tensorboard_path(SPEC)))
    events.Reload()
    accuracy = events.Scalars("val/accuracy")
    assert [event.step for event in accuracy] == [1, 2, 3, 4]
    assert [event.value for event in accuracy] == pytest.approx([epoch.val_accuracy for epoch in record.epochs])


def test_the_rate_rises_step_by_step_and_is_lowered_behind_the_warm_up(tmp_path: Path) -> None:
    rates: list[float] = []
    step = torch.optim.SGD.step

    def noting(optimizer: torch.optim.SGD, *arguments: Any) -> Any:
        rates.append(optimizer.param_groups[0]["lr"])
        return step(optimizer, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.SGD, "step", noting)
        record = run(tmp_path, replace(SPEC, lr=0.4), warm_up=2, warm_up_from=0.1, milestones=(3,), batch_size=48)
    rising = [0.1 + 0.3 * number / 4 for number in (1, 2, 3, 4)]  # two epochs of two steps
    assert rates == pytest.approx([*rising, 0.4, 0.4, 0.04, 0.04])
    assert [epoch.learning_rate for epoch in record.epochs] == pytest.approx([rising[1], 0.4, 0.4, 0.04])


def test_normalizations_and_biases_can_be_spared_the_decay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[torch.optim.SGD] = []
    original = torch.optim.SGD

    def noting(*arguments: Any, **named: Any) -> torch.optim.SGD:
        made.append(original(*arguments, **named))
        return made[-1]

    monkeypatch.setattr(torch.optim, "SGD", noting)
    run(tmp_path / "a", replace(SPEC, epochs=1), spare_norms=True)
    run(tmp_path / "b", replace(SPEC, epochs=1))
    spared, all_of_them = made
    decays = {parameter.dim(): group["weight_decay"] for group in spared.param_groups for parameter in group["params"]}
    assert decays == {4: 5e-4, 2: 5e-4, 1: 0.0}
    assert [group["weight_decay"] for group in all_of_them.param_groups] == [5e-4]


def test_statistics_stay_in_the_last_epochs_and_normalize(tmp_path: Path) -> None:
    records = {name: run(tmp_path / name, freeze_last=last) for name, last in (("usual", 0), ("frozen", 2))}
    usual, frozen = records["usual"].epochs, records["frozen"].epochs
    losses = [[epoch.train_loss for epoch in epochs] for epochs in (usual, frozen)]
    assert losses[0][:2] == losses[1][:2] and losses[0][2] != losses[1][2]
    short = run(tmp_path / "short", replace(SPEC, epochs=2))
    assert short.epochs[-1].val_accuracy == frozen[1].val_accuracy
    means = [
        {name: tensor for name, tensor in load_file(path).items() if "running" in name}
        for path in (
            RunDirectory(tmp_path / "short").checkpoint_path(replace(SPEC, epochs=2)),
            RunDirectory(tmp_path / "frozen").checkpoint_path(SPEC),
        )
    ]
    assert means[0].keys() == means[1].keys() and len(means[0]) > 0
    assert all(torch.equal(means[0][name], means[1][name]) for name in means[0])


def test_a_batch_that_does_not_fit_into_memory_is_averaged_from_parts_that_do(tmp_path: Path) -> None:
    parts = run(tmp_path / "parts", replace(SPEC, arm="group_norm", batch_size=48), at_once=16)
    whole = run(tmp_path / "whole", replace(SPEC, arm="group_norm", batch_size=48))
    assert [epoch.train_loss for epoch in parts.epochs] == pytest.approx([epoch.train_loss for epoch in whole.epochs])
    display = Recorder()
    run(tmp_path / "fits", replace(SPEC, batch_size=48, epochs=1), display, at_once=48)
    assert {steps for _, steps in display.steps} == {2}


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
        run(tmp_path, observer=Recorder(fail_after_epoch=1))
    directory = RunDirectory(tmp_path)
    tensors = directory.load_tensors(SPEC)
    for damaged in ({}, tensors | {"model.conv1.weight": torch.zeros(1)}):
        directory.save_state(directory.load_record(SPEC), damaged)
        with pytest.raises(UserError, match="the tensors of its state are those of another network") as refused:
            run(tmp_path)
        assert "\n" not in str(refused.value)


@pytest.mark.slow
def test_equal_runs_leave_checkpoints_of_equal_bytes(tmp_path: Path) -> None:
    spec = replace(SPEC, arm="gated_batch_norm", epochs=1)
    for name in "ab":
        run(tmp_path / name, spec)
    first, second = (RunDirectory(tmp_path / name).checkpoint_path(spec).read_bytes() for name in "ab")
    assert first == second
