"""What torch.jit.trace, torch.export, torch.compile and ONNX make of a layer does at every size what the layer does."""

import copy
import io
import warnings
from collections.abc import Callable, Iterable, Mapping

import pytest
import torch
from torch import Tensor, nn

from steadynorm import layers
from steadynorm.layers import MaskedBatchNorm1d, NormAddActivation
from steadynorm.ops.dispatch import choose_backend, is_usable
from steadynorm.statistics.ranks import Ranks
from tests.support.family import build
from tests.support.layers import drawn, randomize_

pytestmark = pytest.mark.filterwarnings(
    "ignore::torch.jit.TracerWarning",
    "ignore:.torch.jit.*deprecated:DeprecationWarning",
    "ignore:.*should not be instantiated:DeprecationWarning",  # Dynamo does so
)
slow = pytest.mark.slow


class WithResidual(nn.Module):
    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x, 0.5 * x + 1)


class Masked(nn.Module):
    def __init__(self, **arguments) -> None:
        super().__init__()
        self.norm = randomize_(MaskedBatchNorm1d(3, **arguments).double())

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x, x[:, 0] > -1)


class WithLengths(Masked):
    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x, lengths=2 * (x[:, 0, 0] > 0) + 1)


def synchronized() -> nn.Module:
    return randomize_(layers.SyncBatchNorm(3).double())


KINDS: dict[str, Callable[[], nn.Module]] = {
    "plain": lambda: build("BatchNorm"),
    "fused": lambda: WithResidual(build("BatchNorm", activation="silu")),
    "cumulative": lambda: build("BatchNorm", momentum=None),
    "without statistics": lambda: build("BatchNorm", track_running_stats=False),
    "self-tuned": lambda: build("BatchNorm", running="self_tuned"),
    "skipping": lambda: build("BatchNorm", nonfinite="skip"),
    "renorm": lambda: build("BatchRenorm", activation="silu"),
    "renorm, cumulative": lambda: build("BatchRenorm", momentum=None),
    "gated": lambda: build("GatedBatchNorm"),
    "gated, fused": lambda: WithResidual(build("GatedBatchNorm", activation="relu")),
    "gated by a number": lambda: build("GatedBatchNorm", gate=0.3),
    "gated, self-tuned": lambda: build("GatedBatchNorm", running="self_tuned"),
    "gated, small batches": lambda: build("GatedBatchNorm", small_batch_probability=0.5),
    "ghost": lambda: build("GhostBatchNorm"),
    "ghost, fused": lambda: WithResidual(build("GhostBatchNorm", activation="leaky_relu")),
    "ghost, self-tuned": lambda: build("GhostBatchNorm", running="self_tuned"),
    "ghost, one value a sample": lambda: build("GhostBatchNorm", 2),
    "frozen": lambda: build("FrozenBatchNorm", activation="relu"),
    "masked": Masked,
    "masked, self-tuned": lambda: Masked(running="self_tuned"),
    "lengths": lambda: WithLengths(activation="silu"),
    "synchronized, one process": synchronized,
    "norm, add, activation": lambda: WithResidual(NormAddActivation(build("GhostBatchNorm"), "relu")),
}
"""Name -> a layer with random numbers in it, for input (N, 3, ...)."""
# One value per channel, which plain batch norm cannot normalize, is not among them.
SIZES = ((9, 4, 5), (1, 2, 3), (2, 2, 3), (5, 2, 7), (3, 3, 3), (7, 6, 2), (33, 2, 3), (6, 2, 3))
OTHER_EVALUATIONS = ("without statistics", "gated", "gated, fused", "ghost", "masked", "lengths")
AT_ONCE = [(kind, True) for kind in ("fused", "self-tuned", "renorm", "gated", "ghost", "masked")] + [("gated", False)]
"""One of each class; the others are slow."""
LIKE_OTHERS = ("gated by a number", "gated, self-tuned", "ghost, self-tuned", "masked, self-tuned")
EXPORTED = [
    pytest.param(kind, training, marks=() if (kind, training) in AT_ONCE else slow)
    for training in (True, False)
    for kind in KINDS
    if (kind not in LIKE_OTHERS if training else kind in OTHER_EVALUATIONS)
]
"""What is exported here: that takes seconds each."""
each_kind = pytest.mark.parametrize("kind", KINDS)
each_mode = pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])


@pytest.fixture
def each_backend():
    """What is chosen for these tensors, here and at run time, is what is compared."""


def shape(kind: str, samples: int, *space: int) -> tuple[int, ...]:
    dimensions = 0 if kind == "ghost, one value a sample" else 1 if "mask" in kind or "length" in kind else 2
    return (
        max(samples, 2 - min(dimensions, 1)),
        3,
        *(max(3, size) if dimensions == 1 else size for size in space[:dimensions]),
    )


def batches(kind: str, sizes: Iterable[tuple[int, ...]] = SIZES) -> list[Tensor]:
    """Batches that lie elsewhere and are of another scale than the stored statistics."""
    return [1.5 * drawn(*shape(kind, *size), seed=seed) + 0.3 for seed, size in enumerate(sizes)]


def example(kind: str, samples: int = 6) -> Tensor:
    return drawn(*shape(kind, samples, 2, 3), seed=99)


def free(x: Tensor) -> tuple[dict[int, torch.export.Dim], ...]:
    """All sizes but C, which export must leave free: it raises where one is fixed, or bounded."""
    return ({dim: torch.export.Dim(f"size{dim}") for dim in range(x.dim()) if dim != 1},)


def make(kind: str, training: bool) -> nn.Module:
    layer = KINDS[kind]().train(training)
    for name, counter in layer.named_buffers():
        if name.endswith("num_batches_tracked"):
            counter.fill_(2)  # in the middle of renorm's way
    return layer


def outcome(run: Callable[[Tensor], Tensor], x: Tensor, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The result and its gradients."""
    torch.manual_seed(4)
    x = x.clone().requires_grad_()
    learned = {name: parameter for name, parameter in parameters.items() if parameter.requires_grad}
    y = run(x)
    gradients = torch.autograd.grad(y, (x, *learned.values()), drawn(*y.shape, seed=7).to(y.dtype))
    return {"y": y.detach(), "dx": gradients[0]} | dict(zip(learned, gradients[1:], strict=True))


def assert_does_as(
    eager: nn.Module, run: Callable[[Tensor], Tensor], xs: Iterable[Tensor], state: nn.Module, **tolerance
):
    """Let both meet the batches in turn; ``state`` is the module that holds what ``run`` reads and changes."""
    for x in xs:
        actual = outcome(run, x, dict(state.named_parameters())) | dict(state.named_buffers())
        expected = outcome(eager, x, dict(eager.named_parameters())) | dict(eager.named_buffers())
        for name, value in expected.items():
            where = f"{name} of {tuple(x.shape)}"
            torch.testing.assert_close(actual[name], value, msg=lambda text, at=where: f"{at}: {text}", **tolerance)


@each_kind
@each_mode
@pytest.mark.parametrize("samples", [6, 1])
def test_a_trace_holds_for_every_size(kind, training, samples):
    layer = make(kind, training)
    eager, x = copy.deepcopy(layer), example(kind, samples)
    traced = torch.jit.trace(layer, x, check_trace=False)
    eager(x)  # as the traced one has done
    assert_does_as(eager, traced, batches(kind), traced)


@pytest.mark.parametrize(("kind", "training"), EXPORTED)
def test_an_export_holds_for_every_size(kind, training):
    layer, x = make(kind, training), example(kind)
    eager = copy.deepcopy(layer)
    module = torch.export.export(layer, (x,), dynamic_shapes=free(x), strict=False).module()
    assert_does_as(eager, module, batches(kind), module)


@pytest.mark.parametrize(("kind", "training"), AT_ONCE)
def test_an_export_holds_no_operation_of_our_own(kind, training):
    exported = torch.export.export(make(kind, training), (example(kind),), strict=False)
    graphs = [module for module in exported.graph_module.modules() if isinstance(module, torch.fx.GraphModule)]
    targets = [str(node.target) for graph in graphs for node in graph.graph.nodes]
    assert targets and not [target for target in targets if "steadynorm" in target]
    if kind == "fused":  # which quantisers recognise
        assert "aten.batch_norm.default" in targets


@pytest.mark.skipif(torch.__version__ < "2.7", reason="torch 2.6 does not tell a strict export from a compiler")
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["fused", "self-tuned", "renorm", "gated", "ghost", "masked"])
def test_a_strict_export_trains_at_every_size(kind):
    layer, x = make(kind, True), example(kind)
    eager = copy.deepcopy(layer)
    module = torch.export.export(layer, (x,), dynamic_shapes=free(x), strict=True).module()
    assert_does_as(eager, module, batches(kind), module)


@pytest.mark.parametrize(
    ("kind", "tool"),
    [
        pytest.param(kind, tool, marks=() if (kind, tool) in (("fused", "trace"), ("ghost", "export")) else slow)
        for kind in ("fused", "renorm", "gated", "ghost")
        for tool in ("trace", "export")
    ],
)
def test_a_record_made_of_a_small_batch_holds_where_the_layer_runs_compiled_kernels(kind, tool):
    small, large = example(kind).float(), drawn(8, 3, 80, 80, dtype=torch.float32)
    layer = make(kind, True).float()
    eager = copy.deepcopy(layer)
    if tool == "trace":
        recorded = torch.jit.trace(layer, small, check_trace=False)
        eager(small)
    else:
        recorded = torch.export.export(layer, (small,), dynamic_shapes=free(small), strict=False).module()
    if is_usable("numba"):
        assert choose_backend(large, fused=True) == "numba"
    assert_does_as(eager, recorded, [large], recorded, rtol=1e-4, atol=1e-4)


def test_a_trace_made_of_a_large_batch_holds_for_small_ones():
    layer, large = make("plain", True).float(), drawn(8, 3, 80, 160, dtype=torch.float32)
    eager = copy.deepcopy(layer)
    traced = torch.jit.trace(layer, large, check_trace=False)
    eager(large)
    assert_does_as(eager, traced, [x.float() for x in batches("plain")], traced, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["gated, small batches", "ghost", "self-tuned", "renorm", "masked"])
def test_two_layers_in_a_row_compile_with_dynamic_shapes(kind):
    # What comes from a norm has the same moments in every batch, which tells self-tuned statistics nothing.
    layer = nn.Sequential(make(kind, True), nn.SiLU(), make(kind, True))
    eager = copy.deepcopy(layer)
    torch._dynamo.reset()
    compiled = torch.compile(layer, dynamic=True, backend="aot_eager", fullgraph=True)
    assert_does_as(eager, compiled, batches(kind, SIZES[:4]), layer)
    torch._dynamo.reset()


@pytest.mark.parametrize("kind", ["self-tuned", "gated", "masked, self-tuned"])
def test_one_compiled_graph_serves_every_batch_size(kind):
    layer = make(kind, True)
    eager = copy.deepcopy(layer)
    torch._dynamo.reset()
    compiled = torch.compile(layer, dynamic=True, backend="aot_eager", fullgraph=True)
    with torch._dynamo.config.patch(error_on_recompile=True):
        assert_does_as(eager, compiled, batches(kind, [(samples, 2, 3) for samples in (6, 9, 5)]), layer)
    torch._dynamo.reset()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["without statistics", "gated, fused", "gated, self-tuned", "ghost", "lengths"])
def test_onnx_evaluates_at_every_batch_size(kind):
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    layer, file = make(kind, False).float(), io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch's own
        program = torch.onnx.export(
            layer,
            (example(kind).float(),),
            dynamo=True,
            dynamic_shapes=({0: torch.export.Dim.DYNAMIC},),
            verbose=False,
        )
    program.save(file)
    session = runtime.InferenceSession(file.getvalue(), providers=["CPUExecutionProvider"])
    for x in batches(kind, [(9, 2, 3), (1, 2, 3), (33, 2, 3)]):
        (y,) = session.run(None, {session.get_inputs()[0].name: x.float().numpy()})
        torch.testing.assert_close(torch.from_numpy(y), layer(x.float()).detach(), rtol=1e-4, atol=1e-5)


def trace(layer: nn.Module, x: Tensor) -> object:
    return torch.jit.trace(layer, x, check_trace=False)


def export(layer: nn.Module, x: Tensor) -> object:
    return torch.export.export(layer, (x,), strict=False)


def export_strictly(layer: nn.Module, x: Tensor) -> object:
    return torch.export.export(layer, (x,), strict=True)


RECORDERS = [
    trace,
    export,
    pytest.param(export_strictly, marks=pytest.mark.skipif(torch.__version__ < "2.7", reason="as above")),
]


@pytest.mark.parametrize("record", RECORDERS)
@pytest.mark.parametrize("name", ["BatchNorm", "GatedBatchNorm", "GhostBatchNorm"])
def test_a_window_of_batches_is_refused_by_name(record, name):
    layer = build(name, update_every=2)
    with pytest.raises(RuntimeError, match=rf"{name}2d: .*no window.*got update_every=2. Use update_every=1, or call"):
        record(layer, example("plain"))
    assert layer.num_batches_tracked == 0
    record(layer.eval(), example("plain"))


@pytest.mark.parametrize("record", RECORDERS)
@pytest.mark.parametrize("make_layer", [synchronized, lambda: Masked(synchronized=True)], ids=["plain", "masked"])
def test_moments_over_several_ranks_are_refused_by_name(record, make_layer, monkeypatch):
    monkeypatch.setattr("steadynorm.layers.sync_batch_norm.ranks_of", lambda *_: Ranks("two", 0, 2))
    layer, x = make_layer(), example("masked") if make_layer is not synchronized else example("plain")
    with pytest.raises(RuntimeError, match=r"\w+BatchNorm\w*: .*over several ranks .*torch.jit.trace .* \.eval\(\)"):
        record(layer, x)
    record(layer.eval(), x)


def test_raising_for_a_batch_is_refused_by_name_in_a_trace():
    layer = build("BatchRenorm", nonfinite="raise")
    with pytest.raises(RuntimeError, match=r"BatchRenorm2d: .*torch.jit.trace .*got nonfinite='raise'. Use .*'skip'"):
        trace(layer, example("renorm"))
    trace(layer.eval(), example("renorm"))


def test_an_exported_layer_raises_for_a_batch_that_is_not_finite():
    layer, x = make("plain", True), example("plain")
    layer.nonfinite = "raise"
    module = torch.export.export(layer, (x,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},), strict=False).module()
    module(torch.cat((x, x)))
    with pytest.raises(RuntimeError, match=r"BatchNorm2d: with nonfinite='raise' a training batch must be finite"):
        module(torch.cat((x, x / 0)))
    assert torch.is_grad_enabled()


def test_a_trace_draws_again_for_every_batch():
    layer = build("GatedBatchNorm", gate=1.0, small_batch_probability=0.5)
    traced, x = trace(layer, example("gated")), drawn(64, 3, 2, 3)
    assert len({traced(x).sum().item() for _ in range(40)}) > 4


def test_what_a_trace_leaves_out_reaches_no_batch():
    """NaN in one batch is skipped, before and after others."""
    layer = make("skipping", True)
    traced, bad = trace(layer, example("skipping")), example("skipping").clone()
    bad[0, 0, 0, 0] = float("nan")
    before = {name: buffer.clone() for name, buffer in traced.named_buffers()}
    traced(bad)
    for name, buffer in traced.named_buffers():
        assert torch.equal(buffer, before[name]), name
