from steadynorm.lab.report.figure import SERIES, series


def test_three_times_as_many_series_as_colours_are_told_apart() -> None:
    styles = [(style["color"], style["linestyle"]) for style in map(series, range(3 * len(SERIES)))]
    assert len(set(styles)) == len(styles)
