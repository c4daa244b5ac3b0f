import pytest

from steadynorm.lab.report.figure import SERIES, canvas, percent_ticks, series


def test_three_times_as_many_series_as_colours_are_told_apart() -> None:
    styles = [(style["color"], style["linestyle"]) for style in map(series, range(3 * len(SERIES)))]
    assert len(set(styles)) == len(styles)


@pytest.mark.parametrize(
    ("low", "high", "some"),
    [(0.0, 1.0, "40 %"), (0.60, 0.72, "62 %"), (0.105, 0.125, "11.75 %"), (0.1, 0.1004, "10.005 %")],
)
def test_ticks_of_a_share_are_told_apart_by_as_few_digits_as_do(low: float, high: float, some: str) -> None:
    with canvas() as (figure, axes):
        axes.plot([0, 1], [low, high])
        percent_ticks(axes.yaxis)
        figure.canvas.draw()
        texts = [label.get_text().replace("\N{NO-BREAK SPACE}", " ") for label in axes.get_yticklabels()]
    assert len(set(texts)) == len(texts)
    assert some in texts
