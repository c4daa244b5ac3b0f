import pytest
import torch

from steadynorm.statistics import Moments, exponential, update_running_, weight_of

BATCHES = torch.randn(6, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def follow(momentum: float) -> torch.Tensor:
    running = torch.ones(3, dtype=torch.float64)
    for batch in BATCHES:
        running = exponential(running, batch, momentum=momentum)
    return running


def test_momentum_is_the_weight_of_the_new_batch():
    new = exponential(torch.tensor([2.0]), torch.tensor([10.0]), momentum=0.25)
    assert new.tolist() == [4.0]


@pytest.mark.parametrize("momentum", [0.1, 0.5, 0.01])
def test_exponential_after_k_steps_weighs_batches_geometrically(momentum):
    k = len(BATCHES)
    weights = torch.tensor([momentum * (1 - momentum) ** (k - 1 - i) for i in range(k)], dtype=torch.float64)
    expected = (1 - momentum) ** k + weights @ BATCHES
    torch.testing.assert_close(follow(momentum), expected, rtol=1e-13, atol=1e-13)


def test_momentum_zero_never_moves():
    assert torch.equal(follow(0), torch.ones(3, dtype=torch.float64))


def test_momentum_one_is_the_last_batch():
    assert torch.equal(follow(1), BATCHES[-1])


@pytest.mark.parametrize("momentum", [-0.1, 1.001, float("nan")])
def test_a_momentum_outside_zero_to_one_is_refused(momentum):
    with pytest.raises(ValueError, match=rf"weight of the new batch, in \[0, 1\], got {momentum}\. A decay d"):
        exponential(torch.ones(1), torch.ones(1), momentum=momentum)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_without_momentum_all_batches_weigh_alike(dtype):
    batches = BATCHES.to(dtype)
    running = torch.full((3,), 1e6, dtype=dtype)
    for seen, batch in enumerate(batches, start=1):
        share = weight_of(1, momentum=None, tracked=torch.tensor(seen), dtype=dtype)
        running = exponential(running, batch, momentum=share)
    tolerance = 8 * torch.finfo(dtype).eps
    torch.testing.assert_close(running, batches.mean(0), rtol=tolerance, atol=tolerance)


def test_the_first_batch_replaces_the_initial_value_exactly():
    share = weight_of(1, momentum=None, tracked=torch.tensor(1), dtype=torch.float32)
    assert torch.equal(exponential(torch.tensor([0.3]), torch.tensor([0.7]), momentum=share), torch.tensor([0.7]))


@pytest.mark.parametrize("count", [3, torch.tensor(3)], ids=["number", "tensor"])
def test_several_batches_weigh_what_as_many_steps_do(count):
    steps = 1.0
    for _ in range(3):
        steps *= 1 - 0.1
    assert float(weight_of(count, momentum=0.1, tracked=None, dtype=torch.float64)) == pytest.approx(1 - steps)
    tracked = torch.tensor(12)
    assert float(weight_of(count, momentum=None, tracked=tracked, dtype=torch.float64)) == pytest.approx(3 / 12)


@pytest.mark.parametrize("momentum", [0.3, torch.tensor(0.3)], ids=["number", "tensor"])
def test_updating_changes_neither_argument(momentum):
    running, batch = torch.ones(2), torch.full((2,), 5.0)
    exponential(running, batch, momentum=momentum)
    assert running.tolist() == [1.0, 1.0]
    assert batch.tolist() == [5.0, 5.0]


def test_nan_stays_nan_in_its_own_channel():
    new = exponential(torch.ones(2), torch.tensor([float("nan"), 1.0]), momentum=0.3)
    assert new.isnan().tolist() == [True, False]


@pytest.mark.parametrize("count", [5, torch.tensor(5)], ids=["number", "tensor"])
def test_following_blends_the_mean_and_the_unbiased_variance(count):
    mean, var = torch.tensor([1.0]), torch.tensor([2.0])
    update_running_(mean, var, Moments(mean=torch.tensor([3.0]), var=torch.tensor([8.0]), count=count), momentum=0.25)
    assert mean.tolist() == [1.5]
    assert var.tolist() == [4.0]  # 0.75·2 + 0.25·8·5/4


@pytest.mark.parametrize("count", [0, torch.tensor(0)], ids=["number", "tensor"])
def test_no_values_move_nothing(count):
    mean, var, nothing = torch.tensor([1.0]), torch.tensor([2.0]), torch.tensor([float("nan")])
    update_running_(mean, var, Moments(mean=nothing, var=nothing, count=count), momentum=0.25)
    assert mean.tolist() == [1.0]
    assert var.tolist() == [2.0]


@pytest.mark.parametrize("momentum", [0.1, 0.5])
@pytest.mark.parametrize("count", [1, torch.tensor(1)], ids=["number", "tensor"])
def test_single_values_teach_the_variance_on_average(momentum, count):
    """Of 20,000 independent channels, after enough steps to forget how they began."""
    generator = torch.Generator().manual_seed(0)
    mean, var = torch.zeros(20_000, dtype=torch.float64), torch.ones(20_000, dtype=torch.float64)
    for _ in range(int(12 / momentum)):
        value = torch.randn(20_000, generator=generator, dtype=torch.float64) * 3 + 7
        update_running_(mean, var, Moments(mean=value, var=torch.zeros_like(value), count=count), momentum=momentum)
    assert mean.mean().item() == pytest.approx(7, rel=0.01)
    assert var.mean().item() == pytest.approx(9, rel=0.02)


def test_a_batch_in_a_wider_dtype_widens_the_result():
    running, batch = torch.ones(2, dtype=torch.bfloat16), torch.full((2,), 1.001)
    result = exponential(running, batch, momentum=0.5)
    assert result.dtype == torch.float32
    torch.testing.assert_close(result, torch.full((2,), 1.0005))
