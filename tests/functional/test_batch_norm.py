import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from steadynorm import batch_norm
from steadynorm.ops.reference import ACTIVATIONS
from tests.support import oracle
from tests.support.backends import each_backend  # noqa: F401 (a fixture for all that follow)
from tests.support.cases import each_case, make_inputs
from tests.support.versions import skip_before

each_activation = pytest.mark.parametrize("activation", [None, *ACTIVATIONS])
TORCH = {None: lambda pre: pre, "relu": F.relu, "leaky_relu": F.leaky_relu, "silu": F.silu}


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def buffers(channels: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    return drawn(channels, seed=11), drawn(channels, seed=12).abs() + 0.5


@st.composite
def strided_inputs(draw: st.DrawFn) -> torch.Tensor:
    """Float64 of 2 to 5 dimensions whose strides come from a permutation and a slicing."""
    shape = draw(st.lists(st.integers(1, 4), min_size=2, max_size=5))
    order = draw(st.permutations(range(len(shape))))
    steps = draw(st.lists(st.integers(1, 3), min_size=len(shape), max_size=len(shape)))
    stored = torch.empty([shape[dim] * steps[dim] for dim in order], dtype=torch.float64)
    stored.normal_(generator=torch.Generator().manual_seed(draw(st.integers(0, 99))))
    back = sorted(range(len(order)), key=order.__getitem__)
    return stored.permute(back)[tuple(slice(None, None, step) for step in steps)]


@given(strided_inputs(), st.booleans())
@settings(deadline=None, max_examples=50)
def test_any_shape_and_strides_give_torchs_result_and_gradients(x, contiguous_dy):
    channels = x.shape[1]
    assume(x.numel() > channels)
    weight, bias = drawn(channels, seed=1).double(), drawn(channels, seed=2).double()
    dy = drawn(*x.shape, seed=3).double()
    dy_strided = dy if contiguous_dy else dy.mT.contiguous().mT
    results = []
    # torch gets contiguous copies: where x looks both contiguous and channels_last its own dx is wrong.
    for function, like in ((batch_norm, x), (F.batch_norm, x.clone(memory_format=torch.contiguous_format))):
        leaves = [like.detach().requires_grad_(), weight.clone().requires_grad_(), bias.clone().requires_grad_()]
        statistics = torch.zeros(channels).double(), torch.ones(channels).double()
        y = function(leaves[0], *statistics, *leaves[1:], True, 0.3)
        results.append([y, *torch.autograd.grad(y, leaves, dy_strided if function is batch_norm else dy), *statistics])
    for ours, native in zip(*results, strict=True):
        torch.testing.assert_close(ours, native, rtol=1e-9, atol=1e-9)


@each_case
@pytest.mark.parametrize("momentum", [0.1, 0, 1, 1.0])
def test_running_estimates_follow_as_torchs_do(case, momentum):
    x = make_inputs(case).x
    wide = torch.promote_types(x.dtype, torch.float32)
    native = [tensor.to(wide) for tensor in buffers(x.shape[1])]
    start = [oracle.to_numpy(tensor) for tensor in native]
    ours = [tensor.clone() for tensor in native]
    F.batch_norm(x, *native, training=True, momentum=momentum)
    batch_norm(x, *ours, training=True, momentum=momentum)
    batch = oracle.batch_norm(x)
    for name, before, now, now_native, new in zip(
        ("mean", "var"), start, ours, native, (batch.mean, batch.var_unbiased), strict=True
    ):
        expected = (1 - momentum) * before + momentum * new
        oracle.assert_as_accurate_as(native=now_native, ours=now, oracle=expected, what=f"running {name}")


def test_two_values_update_the_running_variance_with_the_unbiased_one():
    mean, var = torch.zeros(1), torch.zeros(1)
    batch_norm(torch.tensor([[1.0], [5.0]]), mean, var, training=True, momentum=0.5)
    assert (mean.item(), var.item()) == (1.5, 4.0)


def test_momentum_none_averages_batches_equally():
    mean, var = torch.full((2,), 1e5), torch.full((2,), 1e5)
    batches = [drawn(8, 2, seed=seed) * seed for seed in range(1, 4)]
    for seen, x in enumerate(batches, start=1):
        batch_norm(x, mean, var, training=True, momentum=None, num_batches_tracked=torch.tensor(seen))
    torch.testing.assert_close(mean, torch.stack([x.mean(0) for x in batches]).mean(0))
    torch.testing.assert_close(var, torch.stack([x.var(0) for x in batches]).mean(0))


def test_momentum_none_needs_the_number_of_batches():
    with pytest.raises(ValueError, match="momentum=None averages all batches and needs num_batches_tracked"):
        batch_norm(drawn(4, 3), *buffers(), training=True, momentum=None)


@pytest.mark.parametrize("momentum", [-0.1, 1.5])
def test_a_momentum_outside_zero_to_one_is_refused(momentum):
    with pytest.raises(ValueError, match=rf"weight of the new batch, in \[0, 1\], got {momentum}"):
        batch_norm(drawn(4, 3), *buffers(), training=True, momentum=momentum)


@each_activation
@pytest.mark.parametrize("with_residual", [False, True], ids=["plain", "residual"])
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_residual_and_activation_are_torchs_separate_operations(training, activation, with_residual):
    results = []
    for ours in (True, False):
        x, residual, weight, bias = (
            drawn(*shape, seed=seed).double().requires_grad_()
            for seed, shape in enumerate([(4, 3, 5), (4, 3, 5), (3,), (3,)])
        )
        arguments = (x, *(tensor.double() for tensor in buffers()), weight, bias, training)
        added = residual if with_residual else None
        if ours:
            y = batch_norm(*arguments, residual=added, activation=activation)
        else:
            pre = F.batch_norm(*arguments)
            y = TORCH[activation](pre + residual if with_residual else pre)
        wanted = [x, weight, bias] + [residual] * with_residual
        results.append([y, *torch.autograd.grad(y, wanted, drawn(4, 3, 5, seed=8).double())])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_a_residual_of_another_dtype_leaves_the_inputs_dtype(training, dtype):
    other = torch.bfloat16 if dtype == torch.float32 else torch.float32
    x, residual = drawn(4, 3).to(dtype), drawn(4, 3, seed=1).to(other)
    assert batch_norm(x, *buffers(), training=training, residual=residual, activation="relu").dtype == dtype


def test_a_residual_of_a_wider_dtype_is_added_before_rounding():
    x, residual = drawn(64, 3).bfloat16(), drawn(64, 3, seed=1)
    exact = torch.from_numpy(oracle.batch_norm(x, residual=residual).y)
    assert torch.equal(batch_norm(x, *buffers(), training=True, residual=residual), exact.bfloat16())


def test_parameters_in_half_precision_train_beside_float32_estimates():
    """torch's own function refuses the mixture."""
    x, weight, bias = drawn(8, 3).bfloat16(), drawn(3, seed=1).bfloat16(), drawn(3, seed=2).bfloat16()
    y = batch_norm(x, *buffers(), weight, bias, training=True)
    torch.testing.assert_close(y, batch_norm(x, *buffers(), weight.float(), bias.float(), training=True))


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("shape", [(1, 3), (4, 1), (4, 3, 1)], ids=str)
def test_a_residual_of_another_shape_is_refused(training, shape):
    with pytest.raises(RuntimeError, match=r"residual must have the input's shape \(4, 3\), got"):
        batch_norm(drawn(4, 3), *buffers(), training=training, residual=drawn(*shape))


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_no_argument_but_the_running_estimates_is_changed(training):
    x, residual, weight, bias = drawn(4, 3, seed=1), drawn(4, 3, seed=2), drawn(3, seed=3), drawn(3, seed=4)
    before = [tensor.clone() for tensor in (x, residual, weight, bias)]
    batch_norm(x, *buffers(), weight, bias, training, residual=residual, activation="relu")
    assert all(map(torch.equal, before, (x, residual, weight, bias)))


def test_evaluation_changes_no_running_estimate():
    mean, var = buffers()
    batch_norm(drawn(4, 3), mean, var, momentum=1.0)
    assert torch.equal(mean, buffers()[0])
    assert torch.equal(var, buffers()[1])


def test_evaluation_of_known_numbers():
    y = batch_norm(torch.tensor([[5.0]]), torch.tensor([1.0]), torch.tensor([3.0]), eps=1.0)
    assert y.item() == 2.0


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_an_unknown_activation_is_refused(training):
    with pytest.raises(ValueError, match="one of 'relu', 'leaky_relu', 'silu' or None, got 'gelu'"):
        batch_norm(drawn(4, 3), *buffers(), training=training, activation="gelu")


def skip_torchs_before_it_checked_eps(function):
    if function is F.batch_norm:
        skip_before((2, 13), "it does not check eps")


@pytest.mark.parametrize("function", [batch_norm, F.batch_norm], ids=["ours", "torch"])
class TestRefusalsWeShareWithTorch:
    @pytest.mark.parametrize("shape", [(1, 3), (1, 3, 1), (1, 3, 1, 1)], ids=str)
    def test_one_value_per_channel_in_training(self, function, shape):
        with pytest.raises(ValueError, match="Expected more than 1 value per channel when training"):
            function(drawn(*shape), *buffers(), training=True)

    @pytest.mark.parametrize("eps", [0.0, -1e-5])
    def test_eps_must_be_positive_in_training(self, function, eps):
        skip_torchs_before_it_checked_eps(function)
        with pytest.raises(ValueError, match=f"eps must be positive during training, but got {eps}"):
            function(drawn(4, 3), *buffers(), training=True, eps=eps)

    def test_eps_must_not_be_negative_in_evaluation(self, function):
        skip_torchs_before_it_checked_eps(function)
        with pytest.raises(ValueError, match="eps must be non-negative, but got -1e-05"):
            function(drawn(4, 3), *buffers(), eps=-1e-5)

    def test_eps_may_be_zero_in_evaluation(self, function):
        y = function(torch.tensor([[3.0]]), torch.tensor([1.0]), torch.tensor([4.0]), eps=0.0)
        assert y.item() == 1.0

    @pytest.mark.parametrize("position", range(4), ids=["running_mean", "running_var", "weight", "bias"])
    @pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
    def test_a_tensor_that_has_not_one_number_per_channel(self, function, position, training):
        arguments = [torch.ones(3) for _ in range(4)]
        arguments[position] = torch.ones(4)
        with pytest.raises(RuntimeError, match=r"should contain 3 elements|same size as input's channel"):
            function(drawn(4, 3), *arguments, training)

    @pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
    def test_float64_input_beside_float32_parameters(self, function, training):
        with pytest.raises(RuntimeError, match=r"float64|[Dd]ouble|mixed dtype"):
            function(drawn(4, 3).double(), *buffers(), torch.ones(3), torch.zeros(3), training)

    def test_integers_in_training(self, function):
        with pytest.raises(RuntimeError):
            function(torch.ones(4, 3, dtype=torch.int64), *buffers(), training=True)


@each_activation
def test_an_empty_batch_gives_an_empty_result_and_zero_gradients(activation):
    x, residual = torch.empty(0, 3, 4, requires_grad=True), torch.empty(0, 3, 4, requires_grad=True)
    weight, bias = torch.ones(3, requires_grad=True), torch.ones(3, requires_grad=True)
    mean, var = buffers()
    y = batch_norm(x, mean, var, weight, bias, True, residual=residual, activation=activation)
    assert y.shape == (0, 3, 4)
    gradients = torch.autograd.grad(y, [x, residual, weight, bias], torch.empty(0, 3, 4))
    assert [tuple(gradient.shape) for gradient in gradients] == [(0, 3, 4), (0, 3, 4), (3,), (3,)]
    assert not gradients[2].any()
    assert not gradients[3].any()
    assert torch.equal(mean, buffers()[0])
    assert torch.equal(var, buffers()[1])


def test_training_without_running_estimates_needs_none():
    x = drawn(5, 3)
    torch.testing.assert_close(batch_norm(x, None, None, training=True), F.batch_norm(x, None, None, training=True))


@pytest.mark.parametrize("fault", [float("nan"), float("inf")])
def test_a_batch_with_a_fault_corrupts_the_running_estimates_of_its_channel_only(fault):
    x = drawn(5, 3)
    x[2, 1] = fault
    mean, var = buffers()
    batch_norm(x, mean, var, training=True)
    assert mean.isfinite().tolist() == [True, False, True]
    assert var.isfinite().tolist() == [True, False, True]


def test_following_the_batch_is_no_part_of_the_graph():
    mean, var = (tensor.requires_grad_() for tensor in buffers())
    batch_norm(drawn(5, 3).requires_grad_(), mean, var, training=True)
    assert mean.is_leaf
    assert var.is_leaf
    assert not torch.equal(mean, buffers()[0])


def test_input_without_channels_is_refused():
    with pytest.raises(IndexError, match=r"input must have shape \(N, C, \.\.\.\), got \(3,\)"):
        batch_norm(torch.zeros(3), None, None, training=True)
