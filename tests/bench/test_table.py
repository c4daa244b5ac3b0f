import json
import re
from pathlib import Path
from typing import Any

import pytest

from steadynorm.bench.commands import BENCHMARKS, MOVED, table_of
from steadynorm.bench.record import Json, read_record
from steadynorm.bench.summary import summarize
from steadynorm.bench.table import show
from steadynorm.reporting.failure import UserError
from tests.support.bench import result

ROOT = Path(__file__).parents[2]
# <!-- bench: PATH OF A RECORD --> and <!-- /bench --> enclose a table that is made from the record.
PAGES = "".join((ROOT / "docs" / f"{page}.md").read_text() for page in ("bench", "export"))
BLOCKS = re.findall(r"<!-- bench: (\S+) -->\n(.*?)<!-- /bench -->", PAGES, flags=re.DOTALL)
RECORDS = sorted((ROOT / "docs" / "results").glob("bench_*.json"))
SMALL = (1, 512, 14, 14)
MACHINE = {"processor": "A processor", "accelerator": None}
STEP: dict[str, Any] = {
    "bench": "step",
    "created": "2026-03-01T12:00:00+00:00",
    "threads": 2,
    "precision": "bf16",
    "machine": MACHINE,
    "versions": {"torch": "2.13.0"},
    "config": {"batch": 128, "norms": ["none", "torch_batch_norm", "batch_norm"]},
    "networks": [
        {
            "network": "cnn",
            "norms": {
                "none": {"ms": {"median": 80.0}},
                "torch_batch_norm": {"ms": {"median": 110.04}},
                "batch_norm": {"ms": {"median": 100.0}},
            },
            "ours_over_torch": {"time": 0.909, "peak_bytes": 0.5},
        },
        {"network": "resnet20", "norms": {}, "ours_over_torch": None},
    ],
}


def kernels_record(*rows: Json, **changes: Any) -> Json:
    return STEP | {"bench": "kernels", "summary": summarize(rows, "cpu")} | changes


def test_a_column_shows_what_lies_at_a_path_and_nothing_where_nothing_does() -> None:
    assert show("a.b", ".1f")({"a": {"b": 2.25}}) == "2.2"
    assert show("name")({"name": "cnn"}) == "cnn"
    assert [show("a.b", ".1f")(item) for item in ({"a": None}, {"a": {}}, {})] == [""] * 3


def test_a_record_of_kernels_becomes_a_table_by_operation_dtype_and_layout() -> None:
    record = kernels_record(
        result(op="norm_relu_residual", copy=1.0, torch=16.0, ours=10.0),
        result(op="norm_relu_residual", shape=SMALL, dtype="bfloat16", layout="channels_last", torch=2.0, ours=2.5),
        result(op="norm", shape=SMALL),
    )
    assert table_of(record) == (
        "Geometric means over the grid; A processor, 2 threads; torch 2.13.0, 2026-03-01.\n"
        "\n"
        "| forward and backward of | input | cases | speed, torch eager = 1 | least | least from 8 MB |"
        " share of the byte floor from 8 MB, least |\n"
        "| --- | --- | --- | --- | --- | --- | --- |\n"
        "| norm | float32, contiguous | 1 | 2.00 | 2.00 |  |  |\n"
        "| norm | all | 1 | 2.00 | 2.00 |  |  |\n"
        "| norm, residual, ReLU | float32, contiguous | 1 | 1.60 | 1.60 | 1.60 | 60% |\n"
        "| norm, residual, ReLU | bfloat16, channels-last | 1 | 0.80 | 0.80 |  |  |\n"
        "| norm, residual, ReLU | all | 2 | 1.13 | 0.80 | 1.60 | 60% |\n"
    )


def test_the_table_has_a_column_for_compile_where_it_was_measured() -> None:
    _, _, head, _, row, _ = table_of(kernels_record(result(shape=SMALL, compile=9.0))).splitlines()
    assert "| torch.compile = 1 |" in head
    assert row == "| norm, ReLU | float32, contiguous | 1 | 2.00 | 2.00 | 1.50 |  |  |"


def test_an_accelerator_takes_the_place_of_processor_and_threads() -> None:
    record = kernels_record(result(), machine={"processor": "A processor", "accelerator": "A GPU"})
    assert table_of(record).startswith("Geometric means over the grid; A GPU; torch")


def test_a_record_of_steps_becomes_a_table_by_network() -> None:
    assert table_of(STEP) == (
        "Batch 128, bf16, channels-last; A processor, 2 threads; torch 2.13.0, 2026-03-01.\n"
        "\n"
        "| one training step of | none, ms | torch_batch_norm, ms | batch_norm, ms | ours over torch's: time"
        " | peak memory |\n"
        "| --- | --- | --- | --- | --- | --- |\n"
        "| cnn | 80.0 | 110.0 | 100.0 | 0.91 | 0.50 |\n"
        "| resnet20 |  |  |  |  |  |\n"
    )


@pytest.mark.parametrize(("path", "text"), BLOCKS, ids=[path for path, _ in BLOCKS])
def test_a_pages_table_is_what_its_record_gives(path: str, text: str) -> None:
    assert text.strip() == table_of(read_record(ROOT / "docs" / path)).strip()


def test_every_benchmark_has_a_record_in_docs_that_becomes_a_table() -> None:
    records = [read_record(path) for path in RECORDS]
    assert {record["bench"] for record in records} == {benchmark.name for benchmark in BENCHMARKS} | set(MOVED)
    assert all(table_of(record).count("\n| ") > 1 for record in records)


@pytest.mark.parametrize(
    "broken", [{"bench": "speed"}, {"bench": "step"}, STEP | {"networks": [3]}, STEP | {"config": []}]
)
def test_a_record_that_makes_no_table_is_one_line(broken: Json) -> None:
    with pytest.raises(UserError, match="no table"):
        table_of(json.loads(json.dumps(broken)))
