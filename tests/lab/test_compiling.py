from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from steadynorm.lab.networks import build_network
from steadynorm.reporting.failure import UserError
from steadynorm.reporting.records import Cell
from tests.support.experiments import Recorder, without_times
from tests.support.records import with_factors
from tests.support.training import NETWORK, run

pytestmark = pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # Dynamo does so
SHORT = with_factors(NETWORK, epochs=2)


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> Callable[[object], None]:
    """Let torch.compile take another backend than Inductor, which takes tens of seconds, and refuse graph breaks."""
    original = torch.compile

    def choose(name: object) -> None:
        monkeypatch.setattr(torch, "compile", partial(original, backend=name, fullgraph=True))

    return choose


@pytest.mark.parametrize("arm", ["batch_norm", "batch_renorm", "gated_batch_norm", "self_tuned_batch_norm"])
def test_a_compiled_network_has_no_graph_break_and_trains_alike(
    tmp_path: Path, backend: Callable[[object], None], arm: str
) -> None:
    backend("eager")
    cell = with_factors(SHORT, arm=arm, epochs=1)
    compiled, plain = (run(tmp_path / name, cell, compile=name == "a", accumulate=2) for name in "ab")
    for quantity in ("train_loss", "val_loss", "grad_norm_mean"):
        assert compiled.last(quantity) == pytest.approx(plain.last(quantity), rel=1e-4)


def test_what_is_kept_of_a_compiled_network_has_the_plain_names(
    tmp_path: Path, backend: Callable[[object], None]
) -> None:
    graphs = []

    def noting(graph: torch.fx.GraphModule, inputs: object) -> torch.fx.GraphModule:
        graphs.append(graph)
        return graph

    backend(noting)
    run(tmp_path, SHORT, compile=True)
    assert len(graphs) == 1  # not of validation, which runs as it is; reading the norms breaks none
    model = build_network("cnn", arm="batch_norm", depth=2, widths=(4, 8), classes=10, seed=9)
    (path,) = (tmp_path / "checkpoints").iterdir()
    assert load_file(path).keys() == model.state_dict().keys()


def test_a_network_that_cannot_be_compiled_is_one_line(tmp_path: Path, backend: Callable[[object], None]) -> None:
    def failing(graph: object, inputs: object) -> object:
        raise ValueError("no compiler\nwas found")

    backend(failing)
    with pytest.raises(
        UserError, match=r"^--compile: torch\.compile failed \(ValueError: no compiler\)\. Run it without"
    ) as error:
        run(tmp_path, SHORT, compile=True)
    assert "\n" not in str(error.value)


@pytest.mark.slow
def test_a_compiled_run_goes_on_bit_for_bit(tmp_path: Path) -> None:
    whole: Cell = run(tmp_path / "whole", SHORT, compile=True)
    with pytest.raises(RuntimeError, match="on purpose"):
        run(tmp_path / "parts", SHORT, Recorder(fail_after_epoch=1), compile=True)
    assert without_times(run(tmp_path / "parts", SHORT, compile=True)) == without_times(whole)
