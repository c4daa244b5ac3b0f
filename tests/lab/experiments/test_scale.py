from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from steadynorm.lab.experiments import scale
from steadynorm.lab.experiments.scale import ScaleConfig, network_of
from steadynorm.lab.recipe import RECIPES
from steadynorm.lab.settings import Settings
from steadynorm.reporting.failure import UserError
from steadynorm.reporting.records import Cell, Record, read_record
from tests.support.experiments import Recorder, on_tiny_data

TINY = ScaleConfig(
    network="cnn",
    widths=(4, 8),
    depth=2,
    batch_size=(16, 96),
    reference_batch=16,
    variants=("recipe", "no_scaling"),
    lr=0.05,
    epochs=3,
    milestones=(),
    warm_up=1,
    freeze_last=1,
    augment="none",
    precision="fp32",
)


def run(config: ScaleConfig, display: Recorder | None = None) -> Record:
    with on_tiny_data():
        return read_record(scale.EXPERIMENT.run(config, display or Recorder()))


def test_every_variant_is_trained_at_every_batch_size(tmp_path: Path) -> None:
    display = Recorder()
    record = run(replace(TINY, out=tmp_path / "a"), display)
    found = [(one.factors["variant"], one.factors["batch_size"], one.factors["lr"], one.status) for one in record.cells]
    assert found == [
        ("recipe", 16, 0.05, "finished"),
        ("no_scaling", 16, 0.05, "finished"),
        ("recipe", 96, pytest.approx(0.3), "finished"),
        ("no_scaling", 96, 0.05, "finished"),
    ]
    assert {steps // 3 for steps in display.steps.values()} == {6, 1}  # an epoch of 96 images
    assert [*record.cells[2].series("learning_rate").values()] == pytest.approx([0.3, 0.3, 0.3])
    assert len({one.name for one in record.cells}) == 4


def settings(variant: str, monkeypatch: pytest.MonkeyPatch, place: Path, **changes: object) -> tuple[Cell, Settings]:
    """What one variant is trained with."""
    seen = {}

    def noting(task, networks, of):
        cell = Cell(factors=networks[0])
        seen["one"] = cell, of(cell)

    monkeypatch.setattr(scale, "train_networks", noting)
    run(replace(TINY, variants=(variant,), batch_size=(96,), out=place, **changes))
    return seen["one"]


EXPECTED = {  # variant -> arm, rate at 96, warm-up, spared norms, zero gammas, frozen epochs
    "recipe": ("ghost_batch_norm", 0.3, 1, True, True, 0),
    "no_scaling": ("ghost_batch_norm", 0.05, 0, True, True, 0),
    "no_warm_up": ("ghost_batch_norm", 0.3, 0, True, True, 0),
    "no_zero_gamma": ("ghost_batch_norm", 0.3, 1, True, False, 0),
    "decayed_norms": ("ghost_batch_norm", 0.3, 1, False, True, 0),
    "whole_statistics": ("sync_batch_norm", 0.3, 1, True, True, 0),
    "frozen_end": ("ghost_batch_norm", 0.3, 1, True, True, 1),
    "plain": ("sync_batch_norm", 0.05, 0, False, False, 0),
}


RESNET: dict[str, Any] = {"network": "resnet20", "widths": ScaleConfig().widths, "depth": ScaleConfig().depth}


@pytest.mark.parametrize("variant", RECIPES)
def test_each_variant_leaves_out_its_own_step(variant: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    cell, found = settings(variant, monkeypatch, tmp_path / "a", at_once=48, **RESNET)
    assert EXPECTED[variant] == (
        cell.factors["arm"],
        pytest.approx(cell.factors["lr"]),
        found.warm_up,
        found.spare_norms,
        found.zero_last_gamma,
        found.freeze_last,
    )
    assert (found.warm_up_from, found.at_once) == (0.05, 48)


def test_a_network_without_residual_blocks_has_no_last_gamma(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert not settings("recipe", monkeypatch, tmp_path / "a")[1].zero_last_gamma


def test_the_reference_batch_has_the_rate_that_was_given() -> None:
    config = ScaleConfig(lr=0.1, reference_batch=256)
    assert network_of(config, "recipe", 256, 0)["lr"] == 0.1
    assert network_of(config, "recipe", 8192, 0)["lr"] == pytest.approx(3.2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"variants": ("warm",)}, "--variants: no variant is called 'warm'. Choose from recipe, no_scaling"),
        ({"variants": ()}, "--variants: at least one value"),
        ({"variants": ("no_zero_gamma",)}, "--variants: no_zero_gamma needs residual blocks, --network cnn has none"),
        ({"batch_size": (16, 1)}, "--batch-size: must be at least 2, got 1"),
        ({"batch_size": (16, 16)}, "--batch-size: every value may appear once"),
        ({"at_once": 64}, "--at-once: 96 images cannot be cut into equal parts of 64 for 1 workers"),
        ({"warm_up": 3}, "--warm-up: must be less than the 3 epochs, got 3"),
        ({"freeze_last": 4, "variants": ("frozen_end",)}, "--freeze-last: must be less than the 3 epochs, got 4"),
        ({"warm_up": -1}, "--warm-up: must be at least 0"),
        ({"reference_batch": 0}, "--reference-batch: must be at least 1"),
        (
            {"variants": ("plain",), "given": ("--warm-up",)},
            "--warm-up: belongs to a step that none of --variants takes",
        ),
        ({"given": ("--warm-up", "--freeze-last")}, "--freeze-last: belongs to a step that none of --variants takes"),
        ({"optimizer": "adamw"}, "--optimizer: the recipe's linear scaling is for SGD, got adamw"),
        ({"schedule": "one-cycle"}, "--schedule: one-cycle has its own warm-up"),
        ({"lr": float("nan")}, "--lr: a learning rate must be a positive number"),
    ],
)
def test_a_configuration_that_makes_no_experiment_is_refused_before_anything_is_written(
    tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    place = tmp_path / "a"
    with pytest.raises(UserError, match=message):
        run(replace(TINY, out=place, **changes))
    assert not place.exists()


def test_every_worker_must_have_its_part_of_what_is_in_memory_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scale, "number_of_workers", lambda: 3)
    scale._check_batches(ScaleConfig(batch_size=(6144,), at_once=1536))
    with pytest.raises(UserError, match="--at-once: 6144 images cannot be cut into equal parts of 2048 for 3 workers"):
        scale._check_batches(ScaleConfig(batch_size=(6144,), at_once=2048))
