from dataclasses import replace

import pytest
import torch

from steadynorm.bench import recalibration
from steadynorm.bench.commands import table_of
from steadynorm.bench.recalibration import BENCHMARK, RecalibrationConfig, recalibration_lines
from steadynorm.bench.record import read_record
from steadynorm.lab.data import load_dataset
from steadynorm.lab.networks import build_network
from steadynorm.reporting.failure import UserError
from steadynorm.reporting.run_directory import save_tensors
from tests.support.bench import Lines


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A thin network that has learned something, with the statistics of its own last batches."""
    path = tmp_path_factory.mktemp("run") / "a.safetensors"
    dataset = load_dataset("shapes")
    model = build_network("cnn", arm="torch_batch_norm", depth=3, widths=(8, 16, 32), classes=10, seed=0).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.03, momentum=0.9)
    for seed in range(12):
        batches = recalibration._draw(dataset, len(dataset.train), 100, seed, torch.device("cpu"))
        rows = torch.randperm(len(dataset.train), generator=torch.Generator().manual_seed(seed))
        for x, labels in zip(batches, dataset.train.labels[rows].split(100), strict=True):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(x), labels).backward()
            optimizer.step()
    metadata = {"arm": "torch_batch_norm", "network": "cnn", "depth": "3", "widths": "8 16 32"}
    save_tensors(path, model.state_dict(), metadata)
    return path


def config(checkpoint, **changed):
    return replace(RecalibrationConfig(checkpoint=checkpoint, images=(20, 500), draws=2, device="cpu"), **changed)


def test_accuracy_goes_with_the_statistics_and_comes_back(checkpoint, tmp_path):
    display = Lines()
    record = BENCHMARK.run(config(checkpoint, out=tmp_path), display)
    assert record["command"] == f"steadynorm bench recalibration --device cpu {checkpoint} --images 20 500 --draws 2"
    assert record["wiped"] < record["original"] - 10
    few, many = record["rows"]
    assert min(many["ours"]) > record["original"] - 3
    assert many["standard_error"][0] < few["standard_error"][0] or few["standard_error"][0] != few["standard_error"][0]
    assert all(len(row[key]) == 2 for row in record["rows"] for key in ("ours", "update_bn", "passes", "seconds"))
    assert [line.split()[0] for line in display.lines] == ["20", "500", "record:"]
    (path,) = tmp_path.iterdir()
    table = table_of(read_record(path)).splitlines()
    assert table[0].startswith(
        f"Original {record['original']:.2f} %, statistics wiped {record['wiped']:.2f} %; mean of 2"
    )
    assert table[4].startswith("| 20 | ")


def row(images, *ours):
    return {"images": images, "ours": list(ours)}


def test_the_least_number_of_images_that_is_enough_is_named():
    record = {
        "original": 80.0,
        "wiped": 10.0,
        "within": 0.2,
        "rows": [row(100, 70.0), row(500, 79.7, 80.1), row(900, 80)],
    }
    assert recalibration_lines(record) == [
        "validation accuracy: original 80.00 %, statistics wiped 10.00 %",
        "within 0.2 points of the original on average from 500 images on",
    ]


def test_that_no_number_is_enough_is_said():
    record = {"original": 80.0, "wiped": 10.0, "within": 0.2, "rows": [row(100, 79.0)]}
    assert recalibration_lines(record)[1].startswith("not within 0.2 points")


@pytest.mark.parametrize("images", [(1,), (100, 10**9)])
def test_numbers_of_images_that_there_are_not_are_refused(checkpoint, images):
    with pytest.raises(UserError, match="--images: from 2 to the"):
        BENCHMARK.run(config(checkpoint, images=images), Lines())


def test_a_network_without_batch_norm_is_refused(tmp_path):
    model = build_network("cnn", arm="none", depth=2, widths=(4,), classes=10, seed=0)
    metadata = {"arm": "none", "network": "cnn", "depth": "2", "widths": "4"}
    save_tensors(tmp_path / "a.safetensors", model.state_dict(), metadata)
    with pytest.raises(UserError, match="nothing to recalibrate"):
        BENCHMARK.run(config(tmp_path / "a.safetensors"), Lines())


def test_draws_are_of_different_images_and_the_same_again():
    dataset = load_dataset("shapes")
    first, again, other = (recalibration._draw(dataset, 30, 16, seed, torch.device("cpu")) for seed in (0, 0, 1))
    assert [len(x) for x in first] == [16, 14]
    assert torch.equal(first[0], again[0])
    assert not torch.equal(first[0], other[0])
