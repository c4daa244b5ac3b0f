"""Figures as files and as parts of a page."""

import json
import re

from steadynorm.reporting.figures import draw, live_script
from steadynorm.reporting.report import Figure

FIGURE = Figure(
    name="accuracy",
    title='Accuracy of <b> & "c"',
    caption="",
    kind="bars",
    data=[{"arm": "</script>", "seconds": 1.0, "text": "1 s"}],
    options={"rows": "arm", "x": "seconds", "text": "text", "order": ["</script>"]},
)


def test_the_same_figure_gives_the_same_bytes() -> None:
    assert draw(FIGURE) == draw(FIGURE)


def test_a_figure_is_a_png_an_svg_and_a_specification() -> None:
    drawn = draw(FIGURE)
    assert drawn.png.startswith(b"\x89PNG") and drawn.svg.startswith("<svg")
    assert json.loads(drawn.specification)["title"] == 'Accuracy of <b> & "c"'


def test_ids_of_a_figure_on_a_page_are_its_own() -> None:
    inline = draw(FIGURE).inline
    found = re.findall(r'id="([^"]+)"|url\(#([^)]+)\)', inline)
    assert all((one or other).startswith("accuracy-") for one, other in found)


def test_nothing_in_a_record_ends_the_script_that_holds_it() -> None:
    drawn = draw(FIGURE)
    assert "</script" not in drawn.specification and "</script" not in live_script()
    assert "<b>" not in drawn.inline and 'aria-label="Accuracy of &lt;b&gt; &amp; &quot;c&quot;"' in drawn.inline
