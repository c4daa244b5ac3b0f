from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from steadynorm.lab.experiments import stream
from steadynorm.lab.experiments.stream import StreamConfig
from steadynorm.reporting.failure import UserError
from steadynorm.reporting.records import Measurement, Record, read_record
from tests.support.experiments import Recorder, on_tiny_data, without_times

TINY = StreamConfig(
    arms=("gated_batch_norm", "group_norm"),
    methods=("stored", "batch"),
    depth=2,
    widths=(4, 8),
    batch_size=16,
    train_images=32,
    stream_images=12,
    epochs=1,
    milestones=(),
    precision="fp32",
)


def run(config: StreamConfig, display: Recorder | None = None) -> Record:
    with on_tiny_data():
        return read_record(stream.EXPERIMENT.run(config, display or Recorder()))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Record:
    return run(replace(TINY, out=tmp_path_factory.mktemp("stream") / "a"))


def cells(record: Record) -> list[object]:
    return [(cell.factors, cell.measurements) for cell in record.cells]


def test_arms_train_image_by_image_at_a_scaled_rate_beside_the_default_build(undisturbed: Record) -> None:
    found = [
        (*(one.factors.get(name) for name in ("arm", "batch_size", "lr")), one.status) for one in undisturbed.networks
    ]
    assert found == [
        ("batch_norm", None, 0.1, "finished"),
        ("gated_batch_norm", 1, 0.1 / 16, "finished"),
        ("group_norm", 1, 0.1 / 16, "finished"),
    ]


def test_every_arm_sees_the_same_number_of_images(tmp_path: Path) -> None:
    display = Recorder()
    run(replace(TINY, out=tmp_path / "a"), display)
    assert {steps for name, steps in display.steps.items() if "-lr" in name} == {2, 32}  # of 16 images, and of one


def test_statistics_are_measured_again_and_the_default_build_meets_single_images(undisturbed: Record) -> None:
    assert [cell.factors for cell in undisturbed.cells if not cell.is_network] == [
        {"part": "recalibrated", "arm": "gated_batch_norm", "seed": 0},
        {"part": "recalibrated", "arm": "group_norm", "seed": 0},
        {"part": "stream", "order": "iid", "seed": 0},
        {"part": "stream", "order": "class_ordered", "seed": 0},
    ]
    assert [[row.subject for row in cell.measurements] for cell in undisturbed.select(part="stream")] == [
        ["stored", "batch"]
    ] * 2


def test_a_layer_without_running_statistics_has_nothing_to_measure_again(undisturbed: Record) -> None:
    group = undisturbed.select(part=None, arm="group_norm")[0]
    (row,) = undisturbed.select(part="recalibrated")[1].measurements
    assert row.value == group.last("val_accuracy")


def test_a_frozen_layer_has_nothing_to_measure_again_either(tmp_path: Path) -> None:
    found = run(replace(TINY, arms=("frozen_batch_norm",), methods=("stored",), out=tmp_path / "a"))
    assert found.select(part="recalibrated")[0].last("accuracy") == found.networks[1].last("val_accuracy")


def test_statistics_measured_again_are_of_training_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    monkeypatch.setattr(stream, "recalibrate_", lambda model, batches: seen.append(sum(len(x) for x, _ in batches)))
    run(replace(TINY, methods=("stored",), out=tmp_path / "a"))
    assert seen == [32]  # once: group norm has none


def test_stored_statistics_do_not_care_for_the_order(undisturbed: Record) -> None:
    mixed, ordered = (
        {row.subject: row.value for row in cell.measurements} for cell in undisturbed.select(part="stream")
    )
    assert mixed["stored"] == ordered["stored"]


def test_the_images_of_a_stream_come_one_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[set[int]] = []

    def judge(methods, model, calibration, images, order, **rest) -> list[Measurement]:
        seen.append({len(batch) for batch in order})
        return []

    monkeypatch.setattr(stream, "judge_methods", judge)
    run(replace(TINY, arms=("group_norm",), out=tmp_path / "a"))
    assert seen == [{1}] * 2


@pytest.mark.parametrize("stop", ["gated_batch_norm", "recalibrated-group_norm-seed0", "stream-class_ordered-seed0"])
def test_a_stop_anywhere_resumes_to_the_same_numbers(tmp_path: Path, undisturbed: Record, stop: str) -> None:
    class Stopping(Recorder):
        """Stops after the arm's epoch, or where the cell begins."""

        def advance(self, name: str, share: float, text: str = "", *, lasting: bool = False) -> None:
            if lasting and name.startswith(stop):
                raise KeyboardInterrupt

        def begin(self, name: str, **named: Any) -> None:
            if name == stop:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(replace(TINY, out=tmp_path / "a"), Stopping())
    again = Recorder()
    resumed = run(StreamConfig(resume=tmp_path / "a"), again)
    assert [*map(without_times, resumed.cells)] == [*map(without_times, undisturbed.cells)]
    assert not any("batch_norm-lr0.1" in line for line in again.begun)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"arms": ("bn",)}, "--arms: no normalization is called 'bn'"),
        ({"methods": ("magic",)}, "--methods: no way to adapt is called 'magic'"),
        ({"methods": ()}, "--methods: at least one value"),
        ({"batch_size": 1}, "--batch-size: must be at least 2, got 1"),
        ({"stream_images": 0}, "--stream-images: must be at least 1"),
    ],
)
def test_a_configuration_that_makes_no_experiment_is_refused(
    tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        run(replace(StreamConfig(out=tmp_path / "a"), **changes))
    assert not (tmp_path / "a").exists()
