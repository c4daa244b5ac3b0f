import dataclasses
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from steadynorm.bench.record import read_record
from steadynorm.bench.results import CaseResult
from steadynorm.bench.summary import summarize
from steadynorm.bench.table import case_row, header, markdown, summary_lines
from steadynorm.bench.timing import Spread
from tests.support.bench import disagreeing, result

ROOT = Path(__file__).parents[2]
# <!-- bench: PATH OF A RECORD --> and <!-- /bench --> enclose a table that is made from the record.
BLOCKS = re.findall(r"<!-- bench: (\S+) -->\n(.*?)<!-- /bench -->", (ROOT / "README.md").read_text(), flags=re.DOTALL)
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


def kernels_record(*results: CaseResult, **changes: Any) -> dict[str, Any]:
    summary = dataclasses.asdict(summarize(results, "cpu"))
    return STEP | {"bench": "kernels", "summary": summary, "cases": list(results)} | changes


def test_a_row_stands_under_its_header() -> None:
    head, row = header(with_compile=False), case_row(result(copy=1.5, torch=12.0, ours=6.0))
    for name, value in {"MB": "12.8", "copy": "1.500", "torch": "12.000", "ours": "6.000", "ratio": "2.00x"}.items():
        assert head.index(name) + len(name) == row.index(f" {value}") + 1 + len(value)
    shown = "norm_relu 32x512x14x14 float32 contiguous 12.8 1.500 12.000 6.000 (5.400-7.200) 2.00x 100% 12.0 6.0 numba"
    assert " ".join(row.split()) == shown
    assert head.index("backend") == row.index("numba")


def test_the_header_says_what_the_columns_are() -> None:
    assert " ".join(header(with_compile=False).split()) == (
        "milliseconds, forward and backward MB copy torch ours (p20-p80) ratio floor peak MB, torch ours backend"
    )


def test_a_compiled_side_has_a_column_of_its_own() -> None:
    head, row = header(with_compile=True), case_row(result(compile=9.0))
    assert head.index("compile") + len("compile") == row.index(" 9.000") + len(" 9.000")


def test_a_case_that_disagrees_shows_the_difference_and_no_speed() -> None:
    row = case_row(disagreeing())
    assert row.endswith("disagrees: dx is off by 0.25, allowed 2e-06")
    assert row.startswith("norm_relu          32x512x14x14")


def test_the_summary_names_mean_extremes_targets_and_what_disagrees() -> None:
    big, small = result(copy=1.0, torch=16.0, ours=5.0), result(shape=SMALL, torch=2.0, ours=2.5)
    wrong = disagreeing(op="norm")
    assert summary_lines(kernels_record(big, small, wrong)) == [
        f"norm_relu: 2 cases, geometric mean 1.60x torch, least 0.80x at {small.case.label}",
        f"  from 8 MB (1 cases): least 3.20x at {big.case.label}",
        f"  likewise: least share of the byte floor 80% at {big.case.label}",
        "target not met  norm_relu: geometric mean of the ratio 1.60, at least 3.5 (goal 4.5)",
        "target not met  norm_relu: smallest ratio 0.80, at least 1",
        "target met      norm_relu: smallest ratio from 8 MB 3.20, at least 2.5",
        "target met      norm_relu: smallest share of the byte floor from 8 MB 0.80, at least 0.5 (goal 0.7)",
        f"disagrees with the reference, no speed: {wrong.case.label}",
    ]


def test_the_summary_says_when_the_machine_was_not_quiet() -> None:
    calm = result(op="norm_relu_residual", shape=SMALL)
    sides = calm.sides | {"ours": replace(calm.sides["ours"], ms=Spread(median=6.0, p20=1.0, p80=9.0))}
    lines = summary_lines(kernels_record(calm, replace(calm, sides=sides)))
    assert lines[1:] == ["unsteady, p80 over twice p20, in 1 of 2 cases: measure again on a quiet machine"]


def test_the_summary_has_the_ratio_to_compile_where_it_was_measured() -> None:
    (line, *_) = summary_lines(kernels_record(result(shape=SMALL, compile=9.0)))
    assert "geometric mean 2.00x torch and 1.50x torch.compile, least" in line


def test_a_record_of_kernels_becomes_a_table_by_operation_dtype_and_layout() -> None:
    record = kernels_record(
        result(op="norm_relu_residual", copy=1.0, torch=16.0, ours=10.0),
        result(op="norm_relu_residual", shape=SMALL, dtype="bfloat16", layout="channels_last", torch=2.0, ours=2.5),
        result(op="norm", shape=SMALL),
    )
    assert markdown(record) == (
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
    _, _, head, _, row, _ = markdown(kernels_record(result(shape=SMALL, compile=9.0))).splitlines()
    assert "| torch.compile = 1 |" in head
    assert row == "| norm, ReLU | float32, contiguous | 1 | 2.00 | 2.00 | 1.50 |  |  |"


def test_an_accelerator_takes_the_place_of_processor_and_threads() -> None:
    record = kernels_record(result(), machine={"processor": "A processor", "accelerator": "A GPU"})
    assert markdown(record).startswith("Geometric means over the grid; A GPU; torch")


def test_a_record_of_steps_becomes_a_table_by_network() -> None:
    assert markdown(STEP) == (
        "Batch 128, bf16, channels-last; A processor, 2 threads; torch 2.13.0, 2026-03-01.\n"
        "\n"
        "| one training step of | none, ms | torch_batch_norm, ms | batch_norm, ms | ours over torch's: time"
        " | peak memory |\n"
        "| --- | --- | --- | --- | --- | --- |\n"
        "| cnn | 80.0 | 110.0 | 100.0 | 0.91 | 0.50 |\n"
        "| resnet20 |  |  |  |  |  |\n"
    )


@pytest.mark.parametrize(("path", "text"), BLOCKS, ids=[path for path, _ in BLOCKS])
def test_the_readmes_table_is_what_its_record_gives(path: str, text: str) -> None:
    assert text.strip() == markdown(read_record(ROOT / path)).strip()
