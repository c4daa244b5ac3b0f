import json
from pathlib import Path

import pytest

from steadynorm.lab.records import CellRecord, read_record, write_cells, write_config, write_tables
from steadynorm.lab.report.build import REPORTS, write_page
from steadynorm.lab.report.classic.document import make_report
from steadynorm.lab.report.document import Report, as_json
from tests.lab.report.browser import CHROMIUM, chromium
from tests.support.classic import cell, made_record

BATCH = [
    cell("batch_norm", seed, (0.1, 0.5, 0.9 + 0.01 * seed, 0.9, 0.9 + 0.01 * seed), drift=(0.1, 0.1, 0.1))
    for seed in (0, 1)
]
PLAIN = [cell("none", seed, (0.1, 0.1, 0.1, 0.6, 0.8 + 0.01 * seed), drift=(0.4, 0.5, 0.6)) for seed in (0, 1)]
LOST = [cell("none", seed, (0.1, 0.1), diverged=True) for seed in (0, 1)]


@pytest.fixture(scope="module")
def whole() -> Report:
    return make_report(made_record([*BATCH, *PLAIN]))


def test_each_arm_has_a_figure_of_percentiles_and_all_share_one_of_shifts(whole: Report) -> None:
    names = [drawing.name for drawing in whole.drawings]
    assert names == ["test_accuracy", "train_loss", "percentiles_batch_norm", "percentiles_none", "shifts"]


def test_the_figures_draw_the_numbers(whole: Report) -> None:
    """The axis of the figure holds the 85th percentile of step 30, 1.5 · 4, and the 15th, −4, in both arms."""
    figures = {drawing.name: drawing.svg.decode() for drawing in whole.drawings}
    for name in ("percentiles_batch_norm", "percentiles_none"):
        assert all(f">{number}</text>" in figures[name] for number in ("−4", "6"))


@pytest.mark.parametrize(
    ("cells", "finished"), [([], False), (BATCH[:1], False), (LOST, False), ([*BATCH, *LOST], True)]
)
def test_a_report_of_what_there_is_can_always_be_made(cells: list[CellRecord], finished: bool) -> None:
    record = made_record(cells)
    written = json.loads(json.dumps(as_json(record, make_report(record)), allow_nan=False))
    assert written["finished"] is finished and len(written["expectations"]) == 4


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium on the PATH")
@pytest.mark.parametrize("cells", [[*BATCH, *PLAIN], [*BATCH, *LOST], []])
def test_the_page_from_record_files_alone_fits_wide_and_narrow_screens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cells: list[CellRecord]
) -> None:
    monkeypatch.setitem(REPORTS, "classic", make_report)
    record = made_record(cells)
    write_tables(tmp_path, ())
    write_config(tmp_path, record)
    write_cells(tmp_path, record.cells)
    page = write_page(tmp_path, read_record(tmp_path))
    with chromium() as browser:
        for width in (1280, 400):
            browser.open(page, width=width)
            assert browser.evaluate("document.documentElement.scrollWidth") <= width
