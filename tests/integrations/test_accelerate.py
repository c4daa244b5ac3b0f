"""The recipe for accelerate, as the page shows it, does what the page says."""

import re
from pathlib import Path

import pytest
import torch

from steadynorm.surgery import recalibrate_
from tests.support.fitting import running
from tests.support.ranks import on_ranks

pytest.importorskip("accelerate", reason="accelerate is not installed")

PAGE = Path(__file__).parents[2] / "docs" / "integrations.md"
RECIPE = next(each for each in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL) if "Accelerator" in each)


def test_the_estimates_are_the_datas():
    torch.manual_seed(0)
    names = {}
    exec(RECIPE, names)
    model, (x, _) = names["model"], names["data"].tensors
    found = running(model)
    assert names["change"].measured["batches"] == 8
    assert names["change"].measured["samples"] == 64
    recalibrate_(model, [x])
    for name, each in running(model).items():
        torch.testing.assert_close(found[name], each)


def test_the_loader_goes_on_as_it_would():
    orders = []
    for code in (RECIPE, re.sub(r"    with batches\.kept\(\):\n.*\n", "", RECIPE)):
        torch.manual_seed(0)
        names = {}
        exec(code, names)
        orders.append([x.tolist() for x, _ in names["loader"]])
        assert ("change" in names) is (code == RECIPE)
    assert orders[0] == orders[1]


def _recipe_on_a_rank():
    import os

    import torch.distributed as dist

    rank = dist.get_rank()
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="localhost", MASTER_PORT="0")
    torch.manual_seed(0)
    names = {}
    exec(RECIPE, names)
    state = names["accelerator"].unwrap_model(names["model"]).state_dict()
    return state, names["change"].measured, names["data"].tensors[0]


@pytest.mark.slow  # two processes import accelerate
def test_over_two_processes_all_batches_count_together(tmp_path):
    for state, measured, x in on_ranks(_recipe_on_a_rank, 2, tmp_path):
        assert measured["batches"] == 8
        model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.BatchNorm1d(16))
        model.load_state_dict({key: each for key, each in state.items() if key[0] in "01"})
        found = running(model)
        recalibrate_(model, [x])
        for name, each in running(model).items():
            torch.testing.assert_close(found[name], each)
