import pytest
import torch

from steadynorm.statistics import cumulative, exponential

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


def as_number(batches: int) -> int:
    return batches


@pytest.mark.parametrize("counter", [as_number, torch.tensor], ids=["number", "tensor"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_cumulative_is_the_plain_average(counter, dtype):
    batches = BATCHES.to(dtype)
    running = torch.full((3,), 1e6, dtype=dtype)
    for seen, batch in enumerate(batches, start=1):
        running = cumulative(running, batch, batches=counter(seen))
    tolerance = 8 * torch.finfo(dtype).eps
    torch.testing.assert_close(running, batches.mean(0), rtol=tolerance, atol=tolerance)


def test_the_first_batch_replaces_the_initial_value_exactly():
    new = cumulative(torch.tensor([0.3]), torch.tensor([0.7]), batches=torch.tensor(1))
    assert torch.equal(new, torch.tensor([0.7]))


@pytest.mark.parametrize(
    "update",
    [lambda r, b: exponential(r, b, momentum=0.3), lambda r, b: cumulative(r, b, batches=torch.tensor(3))],
    ids=["exponential", "cumulative"],
)
def test_updating_changes_neither_argument(update):
    running, batch = torch.ones(2), torch.full((2,), 5.0)
    update(running, batch)
    assert running.tolist() == [1.0, 1.0]
    assert batch.tolist() == [5.0, 5.0]


@pytest.mark.parametrize(
    "update",
    [lambda r, b: exponential(r, b, momentum=0.3), lambda r, b: cumulative(r, b, batches=3)],
    ids=["exponential", "cumulative"],
)
def test_nan_stays_nan_in_its_own_channel(update):
    new = update(torch.ones(2), torch.tensor([float("nan"), 1.0]))
    assert new.isnan().tolist() == [True, False]


def test_a_batch_in_a_wider_dtype_widens_the_result():
    running, batch = torch.ones(2, dtype=torch.bfloat16), torch.full((2,), 1.001)
    result = exponential(running, batch, momentum=0.5)
    assert result.dtype == torch.float32
    torch.testing.assert_close(result, torch.full((2,), 1.0005))


def test_the_result_can_be_written_in_place():
    running = torch.zeros(3)
    exponential(running, torch.ones(3), momentum=0.25, out=running)
    assert running.tolist() == [0.25] * 3
