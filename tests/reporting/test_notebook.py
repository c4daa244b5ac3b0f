"""The executed notebook."""

import ast
import io
import math
import re

import nbformat
import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import save_file

from steadynorm.lab.experiments.compare import describe
from steadynorm.lab.report import head_of
from steadynorm.reporting.notebook import CellSource, NotebookFailure, as_text, execute, make, make_notebook
from steadynorm.reporting.report import Figure, Figures, Report, Section, Table
from tests.support.records import record, run


@pytest.fixture(scope="module")
def notebook(full):
    return nbformat.read(full / "report.ipynb", as_version=4)


def notebook_of(made):
    return make_notebook(head_of(made), describe(made))


def outputs(notebook):
    return [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]


def test_it_is_valid(notebook):
    assert list(nbformat.validator.iter_validate(notebook)) == []


def test_every_code_cell_ran_in_order(notebook):
    counts = [cell.execution_count for cell in notebook.cells if cell.cell_type == "code"]
    assert counts == list(range(1, len(counts) + 1))


def test_it_has_neither_errors_nor_warnings(notebook):
    kinds = {(output.output_type, output.get("name", "")) for output in outputs(notebook)}
    assert kinds == {("stream", "stdout"), ("execute_result", "")}


def test_every_figure_of_the_page_is_drawn_again(full, notebook):
    pictures = sum("image/png" in output.get("data", {}) for output in outputs(notebook))
    assert pictures == len(list((full / "figures").glob("*.png"))) >= 8


def test_it_says_where_checkpoints_are(notebook):
    assert outputs(notebook)[-1].text.startswith("0 trained networks are in checkpoints/")


def test_it_holds_the_data_of_its_figures(notebook):
    (cell,) = [cell for cell in notebook.cells if cell.id == "figure-val-accuracy"]
    assert len(re.findall(r"^batch norm,\d+,0\.\d+$", cell.source, flags=re.MULTILINE)) == 3 * 20


def test_cell_ids_are_the_same_each_time():
    made = record([run("batch_norm", val_accuracy=[0.5])], arms=["batch_norm"])
    first, second = ([cell.id for cell in notebook_of(made).cells] for _ in range(2))
    assert first == second and len(set(first)) == len(first)


def test_awkward_records_and_checkpoints_run(tmp_path):
    stopped = run("none", val_accuracy=[0.1, math.nan], status="diverged", diverged_at_step=7, with_layers=False)
    made = record(
        [run('<b>"$x\\', val_accuracy=[0.5]), stopped, run("layer_norm", status="waiting")],
        arms=['<b>"$x\\', "none", "layer_norm"],
    )
    (tmp_path / "checkpoints").mkdir()
    save_file(
        {"norm.running_mean": np.array([1.5, -2.0], np.float32), "count": np.array(3)},
        tmp_path / "checkpoints" / f"{stopped.name}.safetensors",
    )
    notebook = notebook_of(made)
    execute(notebook, tmp_path)
    text = "".join(output.get("text", "") for output in outputs(notebook))
    assert "norm.running_mean" in text and "from -2 to 1.5" in text
    assert not any(output.get("name") == "stderr" for output in outputs(notebook))
    prose = "".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    assert "<b>" not in prose.replace("\\<", "")


def test_a_cell_that_raises_is_a_failure(tmp_path):
    notebook = make([CellSource(name="bad", kind="code", source="1 / 0")])
    with pytest.raises(NotebookFailure, match="division by zero"):
        execute(notebook, tmp_path)


def cell_of(figure):
    section = Section(title="B", blocks=[Figures([figure])])
    report = Report(
        headline="", lead="", table=Table(columns=(), rows=()), sections=(section,), method=(), finished=True
    )
    (cell,) = [cell for cell in make_notebook({"command": ""}, report).cells if cell.id == f"figure-{figure.name}"]
    return cell


@pytest.mark.parametrize("text", ['a """ b', "back\\slash\n", "two\nlines", 'ends with "', 'with three """'])
def test_text_in_a_cell_reads_back(text):
    figure = Figure(
        name="a", title="A", caption="", kind="bars", data=[{"a": text, "c": 1.0}], options={"rows": "a", "x": "c"}
    )
    assignment, _ = ast.parse(cell_of(figure).source).body
    assert pd.read_csv(io.StringIO(assignment.value.args[0].value)).loc[0, "a"] == text


def test_a_table_of_marks_that_is_empty_is_left_out():
    rows = [{"x": 1.0, "y": 2.0, "arm": "a"}]
    options = {"x": "x", "y": "y", "hue": "arm", "order": ["a"]}
    marks = {"crosses": [], "rings": rows}
    figure = Figure(name="a", title="A", caption="", kind="lines", data=rows, options=options, marks=marks)
    assert "crosses" not in cell_of(figure).source and "rings=rings" in cell_of(figure).source


def test_text_of_a_notebook_reads_back():
    notebook = make([CellSource(name="one", kind="markdown", source="hello")])
    assert nbformat.reads(as_text(notebook), as_version=4).cells[0].source == "hello"
