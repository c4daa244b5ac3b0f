"""Charts of tidy tables: what they aggregate, and the axes that they choose."""

from typing import Any

import pandas as pd
import pytest

from steadynorm.reporting.charts import COLORS, bars, dot_ranges, lines, points

CURVES = pd.DataFrame(
    {
        "arm": ["a", "a", "a", "a", "b", "b"],
        "epoch": [1, 1, 2, 2, 1, 2],
        "accuracy": [0.2, 0.4, 0.5, 0.7, 0.1, None],
    }
)


def shown(chart: Any, mark: str) -> list[dict[str, Any]]:
    """Give the rows after the first layer of a mark."""
    specification = chart.to_dict()
    layer = next(one for one in specification["layer"] if one["mark"]["type"] == mark)
    return specification["datasets"][(layer.get("data") or specification["data"])["name"]]


def axes(chart: Any, mark: str) -> dict[str, Any]:
    return next(one for one in chart.to_dict()["layer"] if one["mark"]["type"] == mark)["encoding"]


def draw(data: pd.DataFrame = CURVES, **options: Any) -> Any:
    return lines(data, x="epoch", y="accuracy", hue="arm", order=["a", "b"], **options)


def test_a_line_is_the_mean_of_the_rows_that_agree_and_its_band_their_range() -> None:
    first, second, other = shown(draw(), "line")
    assert (first["mean"], first["low"], first["high"]) == (pytest.approx(0.3), 0.2, 0.4)
    assert (second["mean"], second["low"], second["high"]) == (pytest.approx(0.6), 0.5, 0.7)
    assert (other["arm"], other["epoch"], other["mean"]) == ("b", 1, 0.1)


def test_a_band_of_the_rows_own_is_averaged() -> None:
    data = CURVES.assign(p5=[0.1, 0.3, 0.1, 0.1, 0.0, 0.0], p95=0.9)
    first, *_ = shown(draw(data, band=("p5", "p95")), "area")
    assert (first["low"], first["high"]) == (pytest.approx(0.2), pytest.approx(0.9))


def test_rows_are_marked_where_they_are_and_at_the_foot_where_they_have_no_value() -> None:
    crosses = pd.DataFrame({"arm": ["a", "b"], "epoch": [2, 2], "accuracy": [0.6, None]})
    *_, known, unknown = draw(crosses=crosses).to_dict()["layer"]
    assert known["encoding"]["y"]["field"] == "accuracy"
    assert unknown["encoding"]["y"] == {"value": 230}


@pytest.mark.parametrize(
    ("values", "kind"), [([1.0, 2.0, 3.0], None), ([1.0, 9.0, 11.0], "log"), ([0.0, 1.0, 11.0], None)]
)
def test_values_that_span_more_than_a_factor_of_ten_get_a_logarithmic_axis(
    values: list[float], kind: str | None
) -> None:
    data = pd.DataFrame({"arm": "a", "epoch": [1, 2, 3], "accuracy": values})
    assert axes(draw(data), "line")["y"]["scale"].get("type") == kind
    assert axes(draw(data, percent=True), "line")["y"]["scale"].get("type") is None


def test_a_logarithmic_axis_of_steps_has_round_ticks() -> None:
    for last, ticks in ((50.0, [1, 2, 5, 10, 20, 50]), (2000.0, [1, 10, 100, 1000])):
        encoding = axes(draw(x_log=True, x_domain=(1.0, last)), "line")
        assert encoding["x"]["axis"]["values"] == ticks


def test_shares_are_written_as_percentages() -> None:
    assert axes(draw(percent=True), "line")["y"]["axis"]["format"] == "~%"


def test_a_table_without_numbers_makes_an_empty_chart() -> None:
    empty = pd.DataFrame({"arm": [""], "epoch": [float("nan")], "accuracy": [float("nan")]})
    assert shown(draw(empty), "line") == []


def test_eighteen_lines_are_told_apart() -> None:
    order = [str(place) for place in range(3 * len(COLORS))]
    encoding = axes(lines(CURVES, x="epoch", y="accuracy", hue="arm", order=order), "line")
    looks = zip(encoding["color"]["scale"]["range"], map(tuple, encoding["strokeDash"]["scale"]["range"]), strict=True)
    assert len(set(looks)) == len(order)


def test_a_dot_is_a_mean_and_its_range_the_lowest_to_the_highest() -> None:
    data = pd.DataFrame({"layer": ["x", "x", "y"], "norm": [1.0, 3.0, 5.0], "arm": "a"})
    first, second = shown(dot_ranges(data, rows="layer", x="norm", hue="arm", order=["a"]), "point")
    assert (first["layer"], first["mean"], first["low"], first["high"]) == ("x", 2.0, 1.0, 3.0)
    assert (second["low"], second["high"]) == (5.0, 5.0)


def test_differences_stand_beside_a_line_at_zero() -> None:
    data = pd.DataFrame({"layer": ["x"], "gain": [-1.0], "arm": "a"})
    chart = dot_ranges(data, rows="layer", x="gain", hue="arm", order=["a"], signed=True)
    assert shown(chart, "rule") == [{"zero": 0}] and axes(chart, "point")["x"]["axis"]["format"].startswith("+")
    assert axes(chart, "point")["x"]["axis"]["labelExpr"].startswith("datum.value === 0 ? '0'")


def test_a_bar_begins_at_zero_and_carries_its_text() -> None:
    data = pd.DataFrame({"arm": ["a"], "seconds": [90.0], "text": ["1.5 min"]})
    chart = bars(data, rows="arm", x="seconds", text="text", order=["a"])
    assert axes(chart, "bar")["x"]["scale"]["domainMin"] == 0
    assert shown(chart, "text")[0]["text"] == "1.5 min"


def test_an_axis_that_counts_is_linear_with_whole_numbers() -> None:
    data = pd.DataFrame({"layer": range(1, 101), "share": 0.5, "kind": "a"})
    for counts, kind in ((True, None), (False, "log")):
        chart = points(data, x="layer", y="share", hue="kind", order=["a"], x_counts=counts).to_dict()
        x = chart["layer"][0]["encoding"]["x"]
        assert x["scale"].get("type") == kind
        assert (x["axis"].get("format") == "d") is counts


def test_what_is_as_good_as_equal_looks_so() -> None:
    data = pd.DataFrame({"server": ["a", "b"], "ms": [1.0, 20.0], "accuracy": [0.80, 0.801]})
    chart = points(data, x="ms", y="accuracy", hue="server", order=["a", "b"], percent=True, least_span=0.02)
    low, high = axes(chart, "point")["y"]["scale"]["domain"]
    assert high - low == pytest.approx(0.02)
    assert axes(chart, "point")["x"]["scale"]["type"] == "log"
