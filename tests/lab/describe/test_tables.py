"""Entries of tables by arms."""

from steadynorm.lab.describe.tables import arm_cell
from tests.support.records import record


def test_an_arm_has_the_color_of_its_line_also_behind_other_lines():
    made = record([], arms=["batch_norm", "none"])
    assert [arm_cell(made, "none").tone, arm_cell(made, "none", before=1).tone] == ["series-1", "series-2"]
    assert arm_cell(made, "none", before=5).tone == "series-0"
