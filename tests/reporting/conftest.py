"""Reports built once for all tests of this room."""

import pytest

from steadynorm.lab.report import build_report
from tests.support.records import example_record, without_notebook


@pytest.fixture(scope="session")
def full(tmp_path_factory):
    """The directory of a complete report: three seeds, tuned rates, and its executed notebook."""
    directory = tmp_path_factory.mktemp("full")
    example_record(directory, seeds=3, tune=(0.02, 0.1, 0.3))
    build_report(directory)
    return directory


@pytest.fixture(scope="session")
def awkward(tmp_path_factory):
    """The page of an interrupted experiment with a diverged arm, a waiting one and hostile text."""
    directory = tmp_path_factory.mktemp("awkward")
    arms = ("batch_norm", "none", "layer_norm", "group_norm", "batch_renorm", "instance_norm")
    example_record(directory, arms=arms, diverged=("none",), waiting=("group_norm",), data_dir="<b>$x</b>")
    with without_notebook():
        build_report(directory)
    return directory
