"""The page in a real browser."""

import time

import pytest

from tests.reporting.browser import CHROMIUM, chromium

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium on the PATH")

WIDTHS = (1280, 1000, 768, 390, 320)
SIZES = """[...document.querySelectorAll('figure svg')].filter(svg => !svg.closest('details'))
    .map(svg => svg.getBoundingClientRect()).map(box => [box.width, box.height])"""
LIVE = """[...document.querySelectorAll('.live')].every(one => one.querySelector('svg.marks'))"""
COLOURS = """[getComputedStyle(document.body).backgroundColor,
    getComputedStyle(document.querySelector('figure svg text')).fill]"""


@pytest.fixture(scope="module")
def page():
    with chromium() as opened:
        yield opened


def until(page, expression):
    """Wait for what a script of the page does after it is loaded."""
    while not page.evaluate(expression):
        time.sleep(0.05)


@pytest.fixture(params=["full", "awkward"])
def report(request):
    return request.getfixturevalue(request.param) / "report.html"


@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_overflows_sideways(page, report, width):
    page.open(report, width=width)
    assert page.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize("width", (1280, 390))
def test_figures_are_large_enough_to_read(page, report, width):
    page.open(report, width=width)
    sizes = page.evaluate(SIZES)
    assert len(sizes) >= 6 and all(w >= 300 and h >= 90 for w, h in sizes)


def test_the_words_of_a_command_stay_whole_on_a_phone(page, report):
    page.open(report, width=390)
    heights = page.evaluate("[...document.querySelectorAll('.word')].map(one => one.getBoundingClientRect().height)")
    assert len(heights) > 3 and max(heights) < 30


def test_a_long_verdict_leaves_a_claim_and_what_was_measured_together(page, awkward):
    page.open(awkward / "report.html", width=1280)
    gap = """[...document.querySelectorAll('.verdicts li')].map(one => {
        const [claim, measured] = ['.claim', '.measured'].map(part => {
            const text = document.createRange();
            text.selectNodeContents(one.querySelector(part));
            return text.getBoundingClientRect();
        });
        return measured.top - claim.bottom;
    })"""
    page.evaluate("document.querySelectorAll('.chip').forEach(one => { one.textContent = 'not measured: at chance' })")
    gaps = page.evaluate(gap)
    assert len(gaps) > 2 and max(gaps) < 12


def test_the_browser_has_nothing_to_complain_about(page, report):
    page.open(report, width=1280)
    complaints = {"Log.entryAdded", "Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Network.loadingFailed"}
    assert [event for event in page.events if event.get("method") in complaints] == []


def test_the_browser_requests_the_page_alone(page, report):
    page.open(report, width=1280)
    requests = [
        event["params"]["request"]["url"] for event in page.events if event.get("method") == "Network.requestWillBeSent"
    ]
    assert [url for url in requests if not url.startswith("data:")] == [report.as_uri()]


def test_a_dark_page_has_light_figures_text(page, report):
    page.open(report, width=1280, dark=True)
    assert page.evaluate(COLOURS) == ["rgb(20, 24, 31)", "rgb(163, 173, 186)"]


@pytest.mark.parametrize("dark", [False, True])
def test_live_figures_have_the_ground_of_the_page(page, report, dark):
    page.open(report, width=390, dark=dark)
    until(page, LIVE)
    grounds = "[...document.querySelectorAll('figure svg')].map(one => getComputedStyle(one).backgroundColor)"
    assert set(page.evaluate(grounds)) == {"rgba(0, 0, 0, 0)"}


def test_a_live_figure_has_the_whole_width_of_a_phone(page, full):
    page.open(full / "report.html", width=390)
    until(page, LIVE)
    assert min(width for width, _ in page.evaluate(SIZES)) > 340


def test_a_light_page_has_dark_figures_text(page, report):
    page.open(report, width=1280)
    assert page.evaluate(COLOURS) == ["rgb(255, 255, 255)", "rgb(91, 100, 114)"]


def test_paper_is_white_even_in_the_dark(page, report):
    page.open(report, width=800, dark=True, media="print")
    assert page.evaluate(COLOURS)[0] == "rgb(255, 255, 255)"


def test_paper_of_a_page_width_holds_everything(page, report):
    page.open(report, width=700, media="print")
    assert page.evaluate("document.documentElement.scrollWidth") <= 700
