from dataclasses import replace

import pytest
import torch
from torch import nn

from steadynorm.bench import inference
from steadynorm.bench.commands import step as step_command
from steadynorm.bench.inference import inference_lines, measure_inference
from steadynorm.bench.record import read_record
from steadynorm.bench.step import StepConfig, _build, _draw_batch, run
from steadynorm.bench.table import markdown
from steadynorm.bench.timing import Sample
from steadynorm.reporting.failure import UserError
from tests.support.bench import Lines

CPU = torch.device("cpu")
TINY = StepConfig(networks=("resnet20",), batch=2, precision="fp32", seconds=1e-6, inference=True, device="cpu")
MS = {"none": 4.0, "torch_batch_norm": 10.0, "batch_norm": 8.0, "folded": 5.0}


@pytest.fixture
def made_up(monkeypatch):
    """Let times be as in ``MS``."""
    monkeypatch.setattr(
        inference,
        "interleave",
        lambda sides, clock, *, seconds: {name: [Sample(parts_ms=(MS[name],), host_ms=0.0)] * 3 for name in sides},
    )
    monkeypatch.setattr(inference, "WARM_UP", 0)


def measure(norms=TINY.norms):
    x, _ = _draw_batch(2, CPU)
    return measure_inference(
        "resnet20", norms, lambda norm: _build("resnet20", norm, CPU), x, precision="fp32", seconds=1e-6
    )


@pytest.mark.usefixtures("made_up")
def test_the_folded_network_is_compared_with_the_one_it_was():
    found = measure()
    assert (found.folded_from, found.folded, found.speedup) == ("torch_batch_norm", 19, 2.0)
    assert found.over_none == {"none": 1.0, "torch_batch_norm": 2.5, "batch_norm": 2.0, "folded": 1.25}
    assert 0 <= found.largest_relative_error < 1e-5


@pytest.mark.usefixtures("made_up")
def test_ours_is_folded_where_torchs_is_not_asked_for():
    found = measure(("batch_norm",))
    assert (found.folded_from, found.folded, found.speedup, found.over_none) == ("batch_norm", 19, 1.6, {})


def test_a_norm_that_cannot_be_folded_is_refused():
    with pytest.raises(UserError, match="--norms must have torch_batch_norm or batch_norm"):
        measure(("none", "group_norm"))


def test_all_sides_are_really_timed_in_evaluation(monkeypatch):
    seen = []
    made = inference._make_forward

    def noting(model, *rest):
        seen.append((model.training, sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())))
        return made(model, *rest)

    monkeypatch.setattr(inference, "_make_forward", noting)
    found = measure()
    assert seen == [(False, 0), (False, 19), (False, 19), (False, 0)]
    assert all(each.median > 0 for each in found.ms.values())
    assert found.samples == 7


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_a_forward_computes_in_the_precision_that_is_asked_for(precision, dtype):
    seen = []
    model = _build("resnet20", "none", CPU)
    model.conv.register_forward_hook(lambda module, inputs, y: seen.append((y.dtype, y.requires_grad)))
    inference._make_forward(model, _draw_batch(2, CPU)[0], precision)(lambda: None)
    assert seen == [(dtype, False)]


@pytest.mark.usefixtures("made_up")
def test_each_side_is_a_line_and_folding_another():
    lines = inference_lines(replace(measure(), largest_relative_error=2e-7))
    assert lines == [
        "resnet20  none                   4.00 ms (4.00-4.00)         1.00 of none",
        "resnet20  torch_batch_norm      10.00 ms (10.00-10.00)       2.50 of none",
        "resnet20  batch_norm             8.00 ms (8.00-8.00)         2.00 of none",
        "resnet20  folded                 5.00 ms (5.00-5.00)         1.25 of none",
        "resnet20  folding 19 norms of torch_batch_norm: 2.00 times as fast,"
        " largest error 2.0e-07 of the largest output",
    ]


@pytest.mark.usefixtures("made_up")
def test_the_record_is_kept_and_makes_a_table(tmp_path):
    display = Lines()
    run(replace(TINY, out=tmp_path), display)
    (path,) = tmp_path.iterdir()
    assert path.name.startswith("bench_inference_cpu_")
    record = read_record(path)
    assert record["command"].startswith("steadynorm bench step --networks resnet20 --batch 2 --inference")
    table = markdown(record).splitlines()
    assert table[2] == (
        "| one forward of | none, ms | torch_batch_norm, ms | batch_norm, ms | folded, ms | "
        "speed of folded, unfolded = 1 | largest error |"
    )
    assert table[4].startswith("| resnet20 | 4.00 | 10.00 | 8.00 | 5.00 | 2.00 | ")


@pytest.mark.usefixtures("made_up")
def test_the_command_ends_well(capsys):
    assert step_command(TINY) == 0
    assert "folding 19 norms" in capsys.readouterr().out
