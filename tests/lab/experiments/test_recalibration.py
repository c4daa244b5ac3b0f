import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from steadynorm.bench.moved import moved_record
from steadynorm.lab.data import load_dataset
from steadynorm.lab.experiments import recalibration
from steadynorm.lab.experiments.recalibration import EXPERIMENT, RecalibrationConfig, describe
from steadynorm.lab.networks import build_network
from steadynorm.reporting.failure import UserError
from steadynorm.reporting.records import Record, read_record
from steadynorm.reporting.run_directory import save_tensors
from tests.support.experiments import Recorder, on_tiny_data

ROOT = Path(__file__).parents[3]
RESULT = ROOT / "docs" / "results" / "bench_recalibration_cpu_20261123.json"
OLD = json.loads(RESULT.read_text())
TINY = RecalibrationConfig(
    images=(20, 80),
    seeds=(0, 1),
    epochs=3,
    milestones=(),
    batch_size=16,
    depth=3,
    widths=(8, 16, 16),
    precision="fp32",
    lr=0.05,
)


def run(config: RecalibrationConfig) -> Record:
    with on_tiny_data():
        return read_record(EXPERIMENT.run(config, Recorder()))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Record, Path]:
    place = tmp_path_factory.mktemp("runs") / "a"
    return run(replace(TINY, out=place)), place


def test_a_network_is_trained_for_each_seed_and_measured_for_each_number(trained: tuple[Record, Path]) -> None:
    record, _ = trained
    assert [network.factors["seed"] for network in record.networks] == [0, 1]
    cells = [cell for cell in record.cells if not cell.is_network]
    assert [cell.factors for cell in cells] == [{"images": n, "seed": s} for n in (20, 80) for s in (0, 1)]
    for cell in cells:
        assert cell.last("passes") >= 1
        assert all(0 <= cell.last(name) <= 1 for name in ("original", "wiped", "ours", "update_bn"))
    assert len({cell.last("original") for cell in cells if cell.factors["seed"] == 0}) == 1
    assert describe(record).finished


def test_accuracy_goes_with_the_statistics_and_comes_back(trained: tuple[Record, Path], tmp_path: Path) -> None:
    (checkpoint, _) = sorted((trained[1] / "checkpoints").glob("*.safetensors"))
    record = run(replace(TINY, checkpoint=checkpoint, draws=3, seeds=(5,), out=tmp_path / "b"))
    assert record.command.startswith(f"steadynorm recalibration {checkpoint} --seeds 5 ")
    assert not record.networks
    cells = [cell for cell in record.cells if cell.factors["images"] == 80]
    assert [cell.factors["seed"] for cell in cells] == [0, 1, 2]
    for cell in cells:
        assert cell.last("wiped") != cell.last("original")
        assert cell.last("ours") > cell.last("wiped") + 0.2


@pytest.mark.parametrize("images", [(1,), (20, 97)])
def test_numbers_of_images_that_there_are_not_are_refused(images: tuple[int, ...], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--images: "):
        run(replace(TINY, images=images, out=tmp_path / "a"))


def test_a_network_without_batch_norm_is_refused(tmp_path: Path) -> None:
    model = build_network("cnn", arm="none", depth=2, widths=(4,), classes=10, seed=0)
    metadata = {"arm": "none", "network": "cnn", "depth": "2", "widths": "4"}
    save_tensors(tmp_path / "a.safetensors", model.state_dict(), metadata)
    with pytest.raises(UserError, match="nothing to recalibrate"):
        run(replace(TINY, checkpoint=tmp_path / "a.safetensors", out=tmp_path / "b"))
    assert not (tmp_path / "b").exists()


def test_draws_are_of_different_images_and_the_same_again() -> None:
    dataset = load_dataset("shapes")
    first, again, other = (recalibration._draw(dataset, 30, 16, seed, torch.device("cpu")) for seed in (0, 0, 1))
    assert [len(x) for x in first] == [16, 14]
    assert torch.equal(first[0], again[0])
    assert not torch.equal(first[0], other[0])


# The report.


def made_record(**ours: list[float]) -> Record:
    """Numbers of images with these accuracies in percent; the original is 80 %."""
    rows = [
        {"images": int(name[1:]), "ours": each, "update_bn": each, "passes": [3] * len(each)}
        | {"standard_error": [0.1] * len(each), "seconds": [1.0] * len(each)}
        for name, each in ours.items()
    ]
    config = OLD["config"] | {"draws": len(next(iter(ours.values()))), "images": [row["images"] for row in rows]}
    return moved_record(OLD | {"original": 80.0, "rows": rows, "config": config})


@pytest.mark.parametrize("few", [70.0, 79.0])
def test_the_least_number_of_images_from_which_all_are_enough_on_average_is_named(few: float) -> None:
    report = describe(made_record(n50=[90.0, 90.0], n100=[few, few], n500=[79.7, 80.1], n2000=[80.0, 84.0]))
    assert report.headline == "From 500 images on, recalibration loses at most 0.2 points of the original accuracy"
    assert report.claims[0].verdict == "met"


def test_that_no_number_is_enough_is_said() -> None:
    report = describe(made_record(n2000=[79.0]))
    assert report.headline == "Recalibration loses more than 0.2 points of the original accuracy"
    assert report.claims[0].verdict == "not met"


def test_a_network_that_guesses_has_nothing_to_lose() -> None:
    made = made_record(n2000=[80.0])
    made.resolved.update(classes=["a", "b"], chance=0.8, validation_images=500)
    report = describe(made)
    assert report.headline.startswith("The network is not surely better than guessing (80.0")
    assert report.claims[0].verdict == "not measured: at chance"


def test_of_few_validation_images_one_may_be_lost() -> None:
    made = made_record(n2000=[79.0])
    made.resolved.update(classes=["a", "b"], chance=0.5, validation_images=100)
    report = describe(made)
    assert report.headline == "From 2,000 images on, recalibration loses at most 1 points of the original accuracy"
    assert report.claims[0].verdict == "met"


def test_too_few_images_leave_the_claim_unjudged() -> None:
    assert describe(made_record(n100=[80.0])).claims[0].verdict == "not measured"


def test_the_pages_table_is_that_of_the_record_beside_it() -> None:
    pattern = rf"<!-- record: {RESULT.relative_to(ROOT / 'docs')} -->\n(.*?)<!-- /record -->"
    (block,) = re.findall(pattern, (ROOT / "docs" / "recalibration.md").read_text(), flags=re.DOTALL)
    rows = [[text.strip() for text in line.split("|")[1:-1]] for line in block.splitlines() if line.startswith("|")]
    table = describe(moved_record(OLD)).table
    assert rows[0] == list(table.columns)
    expected = [[f"{one.text} ({one.note})" if one.note else one.text for one in row] for row in table.rows]
    assert rows[2:] == [[text.replace("\N{NO-BREAK SPACE}", " ") for text in row] for row in expected]
