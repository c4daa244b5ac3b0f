"""Which implementation is chosen, and what torch sees of it."""

import shutil
import subprocess
import sys
import threading

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx

import steadynorm
from steadynorm import BatchNorm2d, backend, explain_backend
from steadynorm.ops import _numba, dispatch, reference, registration
from steadynorm.ops.dispatch import choose_backend, smallest_for_numba

BIG = torch.zeros(8, 16, 128, 128)
SMALL_X = torch.randn(4, 3, 6, 5, generator=torch.Generator().manual_seed(0))
NUMBERS = [torch.rand(3, generator=torch.Generator().manual_seed(seed)) + 0.5 for seed in range(6)]


def compiles(test):
    """Let Dynamo instantiate the autograd functions that it traces."""
    return pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")(test)


needs_a_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="inductor compiles C++ on a CPU")


@pytest.mark.parametrize(
    ("x", "others", "chosen", "because"),
    [
        (BIG, (), "numba", "not small"),
        (BIG, (BIG, None), "numba", "not small"),
        (BIG.bfloat16(), (), "numba", "not small"),
        (BIG.half(), (), "numba", "not small"),
        (BIG.to(memory_format=torch.channels_last), (), "numba", "not small"),
        (BIG.transpose(2, 3), (), "numba", "not small"),
        (BIG.repeat(2, 1, 1, 1)[:, :, ::2], (), "numba", "not small"),
        (nn.Parameter(BIG), (), "numba", "not small"),
        *[
            (torch.zeros(values + more, dtype=dtype).view(*shape).permute(order), (), *expected)
            for dtype, order, values in (
                (torch.float32, (0, 1, 2), 1 << 17),
                (torch.float32, (0, 2, 1), 1 << 20),
                (torch.bfloat16, (0, 1, 2), 1 << 18),
                (torch.float16, (0, 2, 1), 3 << 16),
            )
            for shape, more, expected in (
                ((-1, 8, 64), 0, ("numba", "not small")),
                ((-1, 8, 64), -512, ("torch", "small")),
            )
        ],
        (torch.zeros(4, 3, 5, 1), (), "torch", "small"),
        (torch.zeros(4, 5, 3, 1).transpose(1, 2), (), "reference", "dimension of size 1"),
        (BIG.double(), (), "torch", "float64 is not"),
        (BIG.bfloat16(), (BIG,), "torch", "differ in dtype"),
        (BIG.to("meta"), (), "torch", "neither a CPU nor a CUDA"),
    ],
)
def test_the_choice_follows_from_the_tensors(x, others, chosen, because):
    choice = explain_backend(x, *others)
    assert choice.backend == chosen == choose_backend(x, *others)
    assert because in choice.reason


def test_a_norm_with_nothing_to_fuse_is_torchs_up_to_twice_the_size():
    x = torch.zeros(1 << 8, 2, 1 << 8)
    assert explain_backend(x).backend == explain_backend(x.repeat(2, 1, 1), fused=False).backend == "numba"
    assert explain_backend(x, fused=False).backend == "torch"


@pytest.mark.parametrize(
    ("arguments", "fused"), [({}, False), ({"activation": "relu"}, True), ({"residual": None}, True)]
)
def test_a_layer_says_whether_it_fuses(arguments, fused, monkeypatch):
    x = SMALL_X.clone()
    said = []
    monkeypatch.setattr(dispatch, "choose_backend", lambda *_, fused, **__: said.append(fused) or "torch")
    arguments = {name: x if value is None else value for name, value in arguments.items()}
    steadynorm.batch_norm(x, None, None, training=True, **arguments)
    assert said == [fused]


@pytest.mark.parametrize(("samples", "expected"), [(7, "torch"), (8, "numba")])
def test_what_torch_has_no_function_for_is_small_below_eight_thousand_values(samples, expected):
    x = torch.zeros(samples, 16, 8, 8)
    assert choose_backend(x, torchs_own=False) == explain_backend(x, torchs_own=False).backend == expected
    assert choose_backend(x) == explain_backend(x).backend == "torch"


@pytest.mark.parametrize("name", ["reference", "numba", "torch"])
def test_a_backend_that_is_asked_for_takes_everything_within(name):
    before = choose_backend(SMALL_X)
    with backend(name):
        assert choose_backend(SMALL_X) == name
        with backend("auto"):
            assert choose_backend(SMALL_X) == before
        assert explain_backend(SMALL_X).reason == f'backend("{name}") asks for it'
    assert choose_backend(SMALL_X) == before


def test_a_backend_ends_with_its_block_after_an_exception_too():
    with pytest.raises(KeyError), backend("reference"):
        raise KeyError
    assert choose_backend(SMALL_X) == "torch"


def test_a_backend_holds_in_other_threads():
    seen = []
    with backend("reference"):
        worker = threading.Thread(target=lambda: seen.append(choose_backend(SMALL_X)))
        worker.start()
        worker.join()
    assert seen == ["reference"]


def test_an_unknown_backend_is_refused():
    with pytest.raises(ValueError, match="must be auto, reference, numba, triton, torch, got 'cuda'"), backend("cuda"):
        pass


def test_a_backend_that_cannot_be_loaded_is_refused(monkeypatch):
    monkeypatch.setattr(dispatch, "why_unusable", lambda name: f"{name} has gone")
    with (
        pytest.raises(RuntimeError, match="triton must be installed and usable, but triton has gone"),
        backend("triton"),
    ):
        pass


def test_a_tensor_that_the_asked_backend_cannot_take_is_refused():
    with (
        backend("numba"),
        pytest.raises(ValueError, match=r"float64 is not .* \(torch.float64 \(4, 3, 6, 5\) on cpu\)"),
    ):
        steadynorm.batch_norm(SMALL_X.double(), None, None, training=True)


@pytest.mark.parametrize("name", ["reference", "numba", "torch", "auto"])
def test_every_backend_trains_the_same_layer(name):
    layer, expected = BatchNorm2d(3, activation="silu"), nn.BatchNorm2d(3)
    x, x_expected = (SMALL_X.clone().requires_grad_() for _ in range(2))
    dy = torch.randn(SMALL_X.shape, generator=torch.Generator().manual_seed(1))
    with backend(name):
        y = layer(x, residual=x)
        y.backward(dy)
    y_expected = F.silu(expected(x_expected) + x_expected)
    y_expected.backward(dy)
    torch.testing.assert_close(y, y_expected)
    torch.testing.assert_close(x.grad, x_expected.grad)
    for name_of, tensor in expected.named_parameters():
        torch.testing.assert_close(layer.get_parameter(name_of).grad, tensor.grad)
    for name_of, tensor in expected.named_buffers():
        torch.testing.assert_close(layer.get_buffer(name_of), tensor)


def test_small_tensors_do_not_pay_for_numba():
    """In a fresh process, because this one may have imported it."""
    code = (
        "import sys, torch, steadynorm\n"
        "steadynorm.BatchNorm1d(4)(torch.randn(8, 4)).sum().backward()\n"
        "assert 'numba' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_kernel_of_the_reference_has_a_door():
    kernels = {"moments", "transform", "transform_sums", "transform_grad"}
    for module in (registration, reference, _numba):
        assert kernels <= set(module.__all__)


@pytest.mark.parametrize(
    "watch",
    [
        lambda look: make_fx(look)(SMALL_X),
        lambda look: torch.func.vmap(look)(SMALL_X[None]),
        lambda look: torch.jit.trace(look, SMALL_X, check_trace=False),
        lambda look: look(SMALL_X.as_subclass(type("Wrapped", (torch.Tensor,), {}))),
        lambda look: torch.enable_grad()(look)(SMALL_X),
    ],
    ids=["tracer", "transform", "script", "subclass", "autograd"],
)
def test_kernels_are_called_directly_only_where_no_one_observes(watch):
    seen = []

    def look(x):
        seen.append(registration.kernels_for(x))
        return x * 1

    with torch.no_grad():
        look(SMALL_X)
        watch(look)
    assert seen[0] is reference
    assert all(kernels is registration for kernels in seen[1:])
    assert len(seen) > 1


def arguments_of(name, dtype=torch.float32):
    x = SMALL_X.to(dtype)
    numbers = [tensor.to(torch.promote_types(dtype, torch.float32)) for tensor in NUMBERS]
    return {
        "moments": (x,),
        "transform": (x, *numbers[:3], x.flip(0), "relu"),
        "transform_sums": (x.flip(1), x, *numbers[:3], None, "silu"),
        "transform_grad": (x.flip(1), x, *numbers[:3], x.flip(0), "relu", *numbers[3:]),
    }[name]


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("name", ["moments", "transform", "transform_sums", "transform_grad"])
def test_the_registered_operations_keep_torchs_contract(name, dtype, channels_last):
    """Schema, fake kernel, autograd registration and tracing, by torch's own checks."""
    form = torch.channels_last if channels_last else torch.contiguous_format
    arguments = [
        each.contiguous(memory_format=form) if isinstance(each, torch.Tensor) and each.dim() == 4 else each
        for each in arguments_of(name, dtype)
    ]
    torch.library.opcheck(getattr(torch.ops.steadynorm, name).default, tuple(arguments))


@pytest.mark.parametrize("name", ["moments", "transform", "transform_sums", "transform_grad"])
def test_the_door_gives_what_the_reference_gives(name):
    ours, expected = (getattr(module, name)(*arguments_of(name)) for module in (registration, reference))
    torch.testing.assert_close(ours, expected, rtol=0, atol=0)


def doubles(*shapes):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_() for shape in shapes]


def test_moments_are_differentiable_by_themselves():
    assert torch.autograd.gradcheck(registration.moments, doubles((5, 3, 4)))
    assert torch.autograd.gradgradcheck(registration.moments, doubles((5, 3, 4)))


@pytest.mark.parametrize("with_residual", [False, True])
def test_a_transform_is_differentiable_by_itself(with_residual):
    shapes = [(5, 3, 4), (3,), (3,), (3,)] + [(5, 3, 4)] * with_residual
    function = (
        (lambda *a: registration.transform(*a, "silu"))
        if with_residual
        else (lambda *a: registration.transform(*a, None, "silu"))
    )
    assert torch.autograd.gradcheck(function, doubles(*shapes))


def test_a_derivative_too_many_is_refused():
    x, *numbers = doubles((5, 3, 4), (3,), (3,), (3,))
    gradient = torch.autograd.grad(registration.transform(x, *numbers, None, "silu").sum(), x, create_graph=True)[0]
    with pytest.raises(NotImplementedError, match="must be the last derivative"):
        gradient.sum().backward()


class Block(nn.Module):
    """A norm between two other operations, as models have it."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = BatchNorm2d(4, activation="relu")

    def forward(self, x):
        h = self.conv(x)
        return self.norm(h, residual=h) * 2


def train(model, x):
    y = model(x)
    y.square().sum().backward()
    return y.detach()


@compiles
@pytest.mark.parametrize("name", ["aot_eager", pytest.param("inductor", marks=needs_a_compiler)])
def test_a_training_model_compiles_in_one_graph_that_holds_our_operations(name):
    torch.manual_seed(0)
    eager, model = Block(), Block()
    model.load_state_dict(eager.state_dict())
    compiled = torch.compile(model, fullgraph=True, backend=name)
    torch.testing.assert_close(train(compiled, SMALL_X), train(eager, SMALL_X))
    for ours, expected in zip(
        [*model.parameters(), *model.buffers()], [*eager.parameters(), *eager.buffers()], strict=True
    ):
        torch.testing.assert_close(ours, expected)
        if ours.requires_grad:
            torch.testing.assert_close(ours.grad, expected.grad, rtol=1e-4, atol=1e-5)


@compiles
def test_a_layer_compiles_no_more_often_than_torchs():
    """On both sides of what is small, too: the size is looked at when an operation runs."""

    def compilations(norm):
        torch._dynamo.reset()
        counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
        compiled = torch.compile(nn.Sequential(norm, nn.ReLU()), fullgraph=True, backend=counter, dynamic=True)
        for batch in (4, 7, smallest_for_numba(SMALL_X, fused=True)):
            compiled(torch.randn(batch, 3, 2, 2)).sum().backward()
        return counter.frame_count

    assert compilations(BatchNorm2d(3)) == compilations(nn.BatchNorm2d(3))


@compiles
def test_a_compiled_channels_last_model_is_not_copied_into_another_layout():
    model = nn.Sequential(BatchNorm2d(3, activation="relu"))
    x = SMALL_X.contiguous(memory_format=torch.channels_last)
    graphs = []

    def look(graph, inputs):
        graphs.append(graph)
        return graph

    from torch._dynamo.backends.common import aot_autograd

    torch._dynamo.reset()
    y = torch.compile(model, fullgraph=True, backend=aot_autograd(fw_compiler=look))(x)
    targets = [str(node.target) for graph in graphs for node in graph.graph.nodes if node.op == "call_function"]
    assert [target for target in targets if "steadynorm" in target] == [
        "steadynorm.moments.default",
        "steadynorm.transform.default",
    ]
    assert not [target for target in targets if "clone" in target or "contiguous" in target]
    assert y.is_contiguous(memory_format=torch.channels_last)


def test_tracers_see_operations_not_constants():
    graph = make_fx(lambda x: registration.transform(x, *NUMBERS[:3], None, "relu"))(SMALL_X)
    assert "steadynorm.transform" in graph.code
    with torch.no_grad():
        graph = make_fx(lambda x: steadynorm.batch_norm(x, None, None, training=True) * 1)(BIG)
    assert "steadynorm.moments" in graph.code


def test_autocast_changes_no_dtype():
    layer = BatchNorm2d(3)
    with torch.autocast("cpu", torch.bfloat16), backend("reference"):
        for x in (SMALL_X, SMALL_X.bfloat16()):
            assert layer(x).dtype == nn.BatchNorm2d(3)(x).dtype == x.dtype
        assert registration.transform(SMALL_X, *NUMBERS[:3], None, None).dtype == torch.float32


def test_vmap_of_a_layer_in_evaluation_is_torchs():
    layer = BatchNorm2d(3, activation="relu").eval()
    xs = torch.stack([SMALL_X, SMALL_X + 1])
    torch.testing.assert_close(torch.func.vmap(layer)(xs), torch.stack([layer(x) for x in xs]))


def test_grad_of_a_layer_in_evaluation_is_torchs():
    layer = BatchNorm2d(3, activation="relu").eval()
    gradient = torch.func.grad(lambda x: layer(x).square().sum())(SMALL_X)
    x = SMALL_X.clone().requires_grad_()
    layer(x).square().sum().backward()
    torch.testing.assert_close(gradient, x.grad)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:.torch.jit.*deprecated:DeprecationWarning")
@pytest.mark.parametrize("tool", ["trace", "export"])
def test_a_record_of_a_large_training_batch_holds_torchs_own_batch_norm(tool):
    layer, x = BatchNorm2d(8), torch.randn(64, 8, 32, 32)
    assert choose_backend(x, fused=False) == "numba"
    if tool == "trace":
        recorded = {node.kind() for node in torch.jit.trace(layer, x, check_trace=False).inlined_graph.nodes()}
    else:
        program = torch.export.export(layer, (x,), strict=False)
        recorded = {str(node.target).replace(".", "::").rpartition("::")[0] for node in program.graph.nodes}
    assert "aten::batch_norm" in recorded
