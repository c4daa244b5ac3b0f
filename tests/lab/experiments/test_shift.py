from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from steadynorm.lab.data.corruptions import corrupt
from steadynorm.lab.experiment import Task
from steadynorm.lab.experiments import shift
from steadynorm.lab.experiments.shift import ShiftConfig
from steadynorm.reporting.failure import UserError
from steadynorm.reporting.records import Record, read_record
from steadynorm.reporting.run_directory import RunDirectory
from tests.support.experiments import Recorder, on_tiny_data, tiny_dataset, without_times
from tests.support.records import RECORD

TINY = ShiftConfig(
    methods=("stored", "batch"),
    corruptions=("contrast", "gaussian_noise"),
    severities=(1, 5),
    stream_images=20,
    stream_batch=10,
    single_images=4,
    depth=2,
    widths=(4, 8),
    batch_size=16,
    epochs=2,
    milestones=(),
    precision="fp32",
)


def run(config: ShiftConfig, display: Recorder | None = None) -> Record:
    with on_tiny_data():
        return read_record(shift.EXPERIMENT.run(config, display or Recorder()))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Record:
    return run(replace(TINY, out=tmp_path_factory.mktemp("shift") / "a"))


def task(**changes: object) -> Task[ShiftConfig]:
    return Task(
        config=replace(TINY, **changes),
        record=RECORD,
        dataset=tiny_dataset(),
        directory=RunDirectory(Path("nowhere")),
        display=Recorder(),
    )


def values(record: Record, name: str, quantity: str = "accuracy") -> dict[str, float]:
    (cell,) = [cell for cell in record.cells if cell.name == name]
    return {row.subject: row.value for row in cell.measurements if row.quantity == quantity}


def test_one_network_serves_every_decay(undisturbed: Record) -> None:
    (trained,) = undisturbed.networks
    assert (trained.factors["arm"], trained.status) == ("several_decays", "finished")
    assert list(values(undisturbed, "decays-clean-severity0-seed0")) == ["0.9", "0.99", "0.5", "self_tuned"]


def test_hard_streams_are_of_the_hardest_severity_and_mixed_ones_of_all(undisturbed: Record) -> None:
    streams = [cell.factors for cell in undisturbed.select(part="stream")]
    iid = [(one["shift"], one["severity"]) for one in streams if one["kind"] == "iid"]
    corrupted = [("contrast", 1), ("gaussian_noise", 1), ("contrast", 5), ("gaussian_noise", 5)]
    assert iid == [("clean", 0), *corrupted, ("mixed", 1), ("mixed", 5)]
    for kind in ("class_ordered", "bursts", "single_class", "one_by_one"):
        shown = [(one["shift"], one["severity"]) for one in streams if one["kind"] == kind]
        assert shown == [("clean", 0), *corrupted[2:]]


def test_stored_statistics_do_not_care_for_the_order(undisturbed: Record) -> None:
    shown = [values(undisturbed, f"stream-{kind}-contrast-severity5-seed0") for kind in ("iid", "class_ordered")]
    assert shown[0]["stored"] == shown[1]["stored"]


def test_stored_statistics_are_those_of_the_first_decay(undisturbed: Record) -> None:
    stream, decays = (values(undisturbed, f"{part}-clean-severity0-seed0") for part in ("stream-iid", "decays"))
    assert stream["stored"] == decays["0.9"]


def test_each_stream_says_how_many_images_it_has(undisturbed: Record) -> None:
    found = {
        kind: values(undisturbed, f"stream-{kind}-clean-severity0-seed0", "images")[""]
        for kind in ("iid", "single_class", "one_by_one")
    }
    assert found == {"iid": 20, "single_class": 3, "one_by_one": 4}  # 30 images of ten classes


def test_swapping_labels_moves_no_image() -> None:
    clean = shift._images(task(), "clean", 0, 0, 20)
    swapped = shift._images(task(), "swapped_labels", 0, 0, 20)
    assert torch.equal(clean.pixels, swapped.pixels)
    assert swapped.labels.tolist() == [1, 0, *range(2, 10)] * 2


def test_corrupted_images_are_those_of_the_corruption() -> None:
    shown = shift._images(task(), "contrast", 5, 3, 12)
    expected = corrupt(shift.some(tiny_dataset().validation, 12), "contrast", severity=5, seed=3)
    assert torch.equal(shown.pixels, expected.pixels)


def test_a_single_class_is_shown_where_one_is_asked_for() -> None:
    images, order = shift._stream(task(), "single_class", "clean", 0, 0)
    assert len(set(images.labels.tolist())) == 1
    assert sorted(torch.cat(order).tolist()) == [0, 1, 2]


def test_one_by_one_is_one_by_one() -> None:
    _, order = shift._stream(task(), "one_by_one", "clean", 0, 0)
    assert [len(batch) for batch in order] == [1] * 4


def test_published_files_are_shown_where_they_are(tmp_path: Path) -> None:
    shape = (50_000, 32, 32, 3)  # a sparse file: little of it takes room
    pixels = np.lib.format.open_memmap(tmp_path / "brightness.npy", mode="w+", dtype=np.uint8, shape=shape)
    pixels[40_000:40_006] = 7  # severity 5
    pixels.flush()
    np.save(tmp_path / "labels.npy", np.tile(np.arange(10), 5000).astype(np.uint8))
    shown = shift._images(task(data="cifar10", data_dir=tmp_path), "brightness", 5, 0, 6)
    assert shown.pixels.unique().tolist() == [7]
    assert shown.labels.tolist() == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("stop", ["decays-contrast-severity1-seed0", "stream-bursts-clean-severity0-seed0"])
def test_a_stop_anywhere_resumes_to_the_same_numbers(tmp_path: Path, undisturbed: Record, stop: str) -> None:
    class Stopping(Recorder):
        """Stops where the cell begins."""

        def begin(self, name: str, **named: Any) -> None:
            if name == stop:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(replace(TINY, out=tmp_path / "a"), Stopping())
    again = Recorder()
    resumed = run(ShiftConfig(resume=tmp_path / "a"), again)
    assert [*map(without_times, resumed.cells)] == [*map(without_times, undisturbed.cells)]
    assert again.begun[0].endswith(stop)


def test_a_network_that_diverges_stops_the_experiment(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"several_decays-lr1e\+18-seed0 diverged\. Lower --lr"):
        run(replace(TINY, lr=1e18, out=tmp_path / "a"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"methods": ("magic",)}, "--methods: no way to adapt is called 'magic'"),
        ({"corruptions": ("rain",)}, "--corruptions: none is called 'rain'"),
        ({"severities": (0, 5)}, "--severities: must be from 1 to 5, got 0 5"),
        ({"stream_batch": 1}, "--stream-batch: must be at least 2"),
        ({"corruptions": ()}, "--corruptions: at least one value"),
    ],
)
def test_a_configuration_that_makes_no_experiment_is_refused(
    tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        run(replace(ShiftConfig(out=tmp_path / "a"), **changes))
    assert not (tmp_path / "a").exists()
