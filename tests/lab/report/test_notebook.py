"""The executed notebook."""

import ast
import math

import nbformat
import numpy as np
import pytest
from safetensors.numpy import save_file

from steadynorm.lab.report.compare.notebook import make_notebook
from steadynorm.lab.report.notebook import CellSource, NotebookFailure, as_text, as_triple_quoted, execute, make
from tests.support.records import record, run


@pytest.fixture(scope="module")
def notebook(full):
    return nbformat.read(full / "report.ipynb", as_version=4)


def outputs(notebook):
    return [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]


def test_it_is_valid(notebook):
    nbformat.validate(notebook)


def test_every_code_cell_ran_in_order(notebook):
    counts = [cell.execution_count for cell in notebook.cells if cell.cell_type == "code"]
    assert counts == list(range(1, len(counts) + 1))


def test_it_has_neither_errors_nor_warnings(notebook):
    kinds = {(output.output_type, output.get("name", "")) for output in outputs(notebook)}
    assert kinds == {("stream", "stdout"), ("display_data", "")}


def test_it_has_four_figures(notebook):
    assert sum("image/png" in output.get("data", {}) for output in outputs(notebook)) == 4


def test_it_says_where_absent_checkpoints_are(notebook):
    assert "The trained networks are in checkpoints/" in outputs(notebook)[-1].text


def test_cell_ids_are_the_same_each_time():
    made = record([run("batch_norm", val_accuracy=[0.5])], arms=["batch_norm"])
    assert [cell.id for cell in make_notebook(made).cells] == [cell.id for cell in make_notebook(made).cells]


def test_awkward_records_and_checkpoints_run(tmp_path):
    stopped = run("none", val_accuracy=[0.1, math.nan], status="diverged", diverged_at_step=7, with_layers=False)
    made = record(
        [run('<b>"$x\\', val_accuracy=[0.5]), stopped, run("layer_norm", status="waiting")],
        arms=['<b>"$x\\', "none", "layer_norm"],
    )
    (tmp_path / "checkpoints").mkdir()
    save_file(
        {"norm.running_mean": np.array([1.5, -2.0], np.float32), "count": np.array(3)},
        tmp_path / "checkpoints" / f"{stopped.spec.name}.safetensors",
    )
    notebook = make_notebook(made)
    execute(notebook, tmp_path)
    text = "".join(output.get("text", "") for output in outputs(notebook))
    assert "no normalization: 1 runs, 2 epochs in all, diverged at step 7" in text
    assert "norm.running_mean" in text and "from -2 to 1.5" in text
    assert not any(output.get("name") == "stderr" for output in outputs(notebook))


def test_a_cell_that_raises_is_a_failure(tmp_path):
    notebook = make([CellSource(name="bad", kind="code", source="1 / 0")])
    with pytest.raises(NotebookFailure, match="division by zero"):
        execute(notebook, tmp_path)


@pytest.mark.parametrize("text", ['a """ b', "back\\slash\n", "two\nlines", 'ends with "', 'with three """'])
def test_quoted_text_reads_back(text):
    assert ast.literal_eval(as_triple_quoted(text)) == text


def test_text_of_a_notebook_reads_back():
    notebook = make([CellSource(name="one", kind="markdown", source="hello")])
    assert nbformat.reads(as_text(notebook), as_version=4).cells[0].source == "hello"
