"""The documentation site, where no page of it has to be built."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.reporting.browser import CHROMIUM, chromium

SITE = Path(__file__).parents[1] / "docs" / "_site"


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium on the PATH")
def test_a_page_from_the_disk_runs_a_worker(tmp_path: Path) -> None:
    (tmp_path / "worker.js").write_text("addEventListener('message', (event) => postMessage(2 * event.data))")
    (tmp_path / "page.html").write_text(
        f'<script src="{(SITE / "iframe-worker.js").as_uri()}"></script>'
        "<script>worker = new Worker('worker.js'); worker.postMessage(21); answer = new Promise((resolve) => "
        "worker.addEventListener('message', (event) => resolve(event.data)))</script>"
    )
    with chromium() as page:
        page.open(tmp_path / "page.html", width=1280)
        found = page.call("Runtime.evaluate", expression="answer", awaitPromise=True)
    assert found["result"]["value"] == 42
