import math
from collections.abc import Callable, Iterator
from dataclasses import fields, replace

import numpy as np
import pytest
import torch

from steadynorm.statistics.moments import Moments
from steadynorm.statistics.self_tuned import SelfTuned

MOMENTA = 0.5 ** np.arange(11)
COUNT = 64


def moments(mean: np.ndarray, var_unbiased: np.ndarray, count: int, dtype: torch.dtype = torch.float64) -> Moments:
    var = var_unbiased * (count - 1) / count
    return Moments(mean=torch.tensor(mean, dtype=dtype), var=torch.tensor(var, dtype=dtype), count=count)


def follow(batches: list[Moments]) -> list[SelfTuned]:
    """The states before the first batch, and after each."""
    states = [SelfTuned.begin(len(batches[0].mean), dtype=batches[0].mean.dtype)]
    for batch in batches:
        states.append(states[-1].follow(batch))
    return states


def drawn(steps: int, channels: int, *, seed: int, counts: tuple[int, ...] = (COUNT,)) -> list[Moments]:
    """Batches around a mean that walks and a variance that grows; channels differ in scale."""
    random = np.random.default_rng(seed)
    scale = np.exp(random.normal(size=channels))
    mean = np.cumsum(random.normal(size=(steps, channels)), 0) * 0.1 + random.normal(size=(steps, channels))
    var = random.chisquare(COUNT, size=(steps, channels)) * np.linspace(1, 2, steps)[:, None] / COUNT
    return [moments(mean[t] * scale, var[t] * scale**2, counts[t % len(counts)]) for t in range(steps)]


def around(truth: np.ndarray, noise: np.ndarray) -> list[Moments]:
    """Batches of variance 1 whose mean is off the truth by the noise, both (T, C) and in units of a mean's noise."""
    truth, noise, var = truth / math.sqrt(COUNT), noise / math.sqrt(COUNT), 1 + 0.1 * noise[::-1]
    return [moments(truth[t] + noise[t], var[t], COUNT) for t in range(len(truth))]


def walk(rate: float | np.ndarray, steps: int, channels: int, random: np.random.Generator) -> np.ndarray:
    return np.cumsum(random.normal(size=(steps, channels)) * np.broadcast_to(np.sqrt(rate), (steps, 1)), 0)


def jumps(steps: int, channels: int, random: np.random.Generator) -> np.ndarray:
    level = np.zeros((steps, channels))
    for start in random.choice(steps, 6, replace=False):
        level[start:] = 3 * random.normal(size=channels)
    return level


def early(first: float, then: float, steps: int) -> np.ndarray:
    return np.where(np.arange(steps) < steps // 2, first, then)[:, None]


Drift = Callable[[int, int, np.random.Generator], np.ndarray]
DRIFTS: dict[str, Drift] = {
    "none": lambda steps, channels, random: np.zeros((steps, channels)),
    "slow-walk": lambda steps, channels, random: walk(1e-4, steps, channels, random),
    "walk": lambda steps, channels, random: walk(1e-2, steps, channels, random),
    "fast-walk": lambda steps, channels, random: walk(1, steps, channels, random),
    "linear": lambda steps, channels, random: np.linspace(0, 0.02 * steps, steps)[:, None].repeat(channels, 1),
    "jumps": jumps,
    "fast-then-slow": lambda steps, channels, random: walk(early(1, 1e-5, steps), steps, channels, random),
    "slow-then-fast": lambda steps, channels, random: walk(early(1e-5, 1, steps), steps, channels, random),
}
each_drift = pytest.mark.parametrize("drift", DRIFTS.values(), ids=DRIFTS)


def streams(drift: Drift, *, steps: int, channels: int, seeds: int) -> Iterator[tuple[np.ndarray, list[Moments]]]:
    for seed in range(seeds):
        random = np.random.default_rng(seed)
        truth = drift(steps, channels, random)
        yield truth / math.sqrt(COUNT), around(truth, random.normal(size=truth.shape))


def statistics(batch: Moments) -> np.ndarray:
    return np.stack([batch.mean, batch.var_unbiased])


def losses(states: list[SelfTuned], batches: list[Moments]) -> np.ndarray:
    """ℓ of the README, shape (T, K, 2), of the batches after the second: before it no noise is known."""
    rows = []
    for state, batch in zip(states[2:], batches[2:], strict=False):
        scale = state.noise.numpy() / batch.count
        rows.append(((state.experts.numpy() - statistics(batch)) ** 2 / scale).mean(-1))
    return np.array(rows)


def mixed(states: list[SelfTuned], loss: np.ndarray) -> np.ndarray:
    """mix of the README, shape (T, 2)."""
    rate = math.sqrt(states[0].noise.shape[-1]) / 4
    weights = np.array([state.weights.numpy() for state in states[2 : 2 + len(loss)]])
    least = loss.min(1, keepdims=True)
    return least[:, 0] - np.log((weights * np.exp(-rate * (loss - least))).sum(1)) / rate


def least_over_paths(loss: np.ndarray, *, rate: float) -> np.ndarray:
    """Least of Σ ℓ + (ln K + ln T + M ln 2T)/h over all paths that move one place at a time, shape (2,)."""
    steps = len(loss) + 1
    move = math.log(2 * steps) / rate
    best = loss[0]
    for row in loss[1:]:
        closed = np.pad(best, ((1, 1), (0, 0)), constant_values=np.inf)
        best = row + np.minimum(best, np.minimum(closed[:-2], closed[2:]) + move)
    return best.min(0) + (math.log(len(MOMENTA)) + math.log(steps)) / rate


@each_drift
@pytest.mark.parametrize("channels", [1, 24])
def test_theorem_1_holds_on_every_stream_against_every_path(drift, channels):
    rate = math.sqrt(channels) / 4
    for _, batches in streams(drift, steps=300, channels=channels, seeds=2):
        states = follow(batches)
        loss = losses(states, batches)
        assert (mixed(states, loss).sum(0) <= least_over_paths(loss, rate=rate)).all()


@pytest.mark.parametrize("channels", [2, 24])
def test_theorem_1_holds_where_all_channels_are_alike(channels):
    random = np.random.default_rng(0)
    noise = random.normal(size=(400, 1)).repeat(channels, 1)
    batches = around(np.zeros_like(noise), noise)
    states = follow(batches)
    loss = losses(states, batches)
    assert (mixed(states, loss).sum(0) <= least_over_paths(loss, rate=math.sqrt(channels) / 4)).all()


def test_theorem_1_holds_on_data_that_are_no_noise_around_anything():
    t = np.arange(300)[:, None]
    batches = around(np.exp(t / 50) * np.sin(t), np.sin(t**2))
    states = follow(batches)
    loss = losses(states, batches)
    assert (mixed(states, loss).sum(0) <= least_over_paths(loss, rate=0.25)).all()


def with_noise(state: SelfTuned, variance: float) -> SelfTuned:
    return replace(state, noise=torch.full_like(state.noise, variance * COUNT))


@each_drift
@pytest.mark.parametrize("channels", [1, 9])
def test_theorem_2_holds_for_independent_noise_of_known_variance(drift, channels):
    steps, rate = 150, math.sqrt(channels) / 4
    stored, experts, farthest = [], [], 0.0
    for truth, batches in streams(drift, steps=steps, channels=channels, seeds=4):
        state = SelfTuned.begin(channels, dtype=torch.float64).follow(batches[0])
        for t in range(1, steps):
            state = with_noise(state, 1 / COUNT)
            distances = (state.experts[:, 0].numpy() - truth[t]) ** 2 * COUNT
            farthest = max(farthest, distances.mean(-1).max())
            experts.append(distances.mean(-1))
            stored.append(((state.estimate()[0].numpy() - truth[t]) ** 2).mean() * COUNT)
            state = state.follow(batches[t])
    theta = 1 - 1 / (2 * math.sqrt(channels))
    bound = rate * theta * farthest
    beta = (1 - math.exp(-bound)) / bound
    choosing = (math.log(len(MOMENTA)) + math.log(steps - 1)) / rate
    assert theta * beta * np.sum(stored) / 4 <= np.sum(experts, 0).min() / 4 + choosing


@each_drift
def test_the_next_batch_is_predicted_within_six_percent_of_the_best_momentum_in_hindsight(drift):
    stored, experts = 0.0, 0.0
    for _, batches in streams(drift, steps=400, channels=16, seeds=2):
        for state, batch in zip(follow(batches)[1:], batches[1:], strict=False):
            seen = statistics(batch)
            stored += ((torch.stack(state.estimate()).numpy() - seen) ** 2).mean(1)
            experts += ((state.experts.numpy() - seen) ** 2).mean(-1)
    assert (stored <= 1.06 * experts.min(0)).all()


@pytest.mark.parametrize(("slowest", "fastest", "cost"), [(-6, -4, 1.061), (-6, 4, 1.097)])
def test_a_random_walk_costs_momenta_a_factor_two_apart_what_the_readme_says(slowest, fastest, cost):
    def error(momentum: np.ndarray, walk: float) -> float:
        return ((momentum + walk / momentum) / (2 - momentum)).min()

    momenta, fine = SelfTuned.begin(1, dtype=torch.float64).momenta.flatten().numpy(), np.logspace(-4, 0, 20001)
    ratios = [error(momenta, walk) / error(fine, walk) for walk in np.logspace(slowest, fastest, 400)]
    assert cost - 0.002 < max(ratios) < cost


def test_a_linear_drift_costs_momenta_a_factor_two_apart_what_the_readme_says():
    def error(momentum: np.ndarray, drift: float) -> float:
        return (momentum / 2 + (drift / momentum) ** 2).min()

    momenta, fine = SelfTuned.begin(1, dtype=torch.float64).momenta.flatten().numpy(), np.logspace(-4, 0, 20001)
    ratios = [error(momenta, drift) / error(fine, drift) for drift in np.logspace(-4, -1, 400)]
    assert 1.12 < max(ratios) < 1.122


def expected_state(batches: list[Moments]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Experts (K, 2, C), noise (2, C) and weights (K, 2) after the batches, from their definitions, in NumPy."""
    seen, counts = np.array([statistics(b) for b in batches]), np.array([float(b.count) for b in batches])

    def experts(t: int) -> np.ndarray:
        weights = [counts[:t] * (1 - momentum) ** np.arange(t)[::-1] for momentum in MOMENTA]
        return np.array([np.average(seen[:t], axis=0, weights=weight) for weight in weights])

    def noise(t: int) -> np.ndarray:
        inverse = 1 / counts
        rows = [(seen[i] - seen[i - 1]) ** 2 / (inverse[i] + inverse[i - 1]) for i in range(1, t)]
        return np.average(rows, axis=0, weights=np.arange(1, t))

    weights = np.full((11, 2), 1 / 11)
    for t in range(2, len(batches)):
        loss = (((experts(t) - seen[t]) ** 2) * counts[t] / noise(t)).mean(-1)
        weights = weights * np.exp(-math.sqrt(seen.shape[-1]) / 4 * loss)
        weights /= weights.sum(0)
        moved = weights / (2 * (t + 1))
        weights = weights.copy()
        weights[:-1] += moved[1:] - moved[:-1]
        weights[1:] += moved[:-1] - moved[1:]
    return experts(len(batches)), noise(len(batches)), weights


def test_a_stream_with_unequal_counts_is_followed_as_the_definitions_say():
    batches = drawn(40, 5, seed=3, counts=(64, 64, 8, 2, 500))
    state = follow(batches)[-1]
    experts, noise, weights = expected_state(batches)
    np.testing.assert_allclose(state.experts, experts, rtol=1e-11, atol=1e-12)
    np.testing.assert_allclose(state.noise, noise, rtol=1e-11)
    np.testing.assert_allclose(state.weights, weights, rtol=1e-8, atol=1e-14)


def test_the_estimate_has_the_moments_of_the_weighted_experts():
    state = follow(drawn(30, 4, seed=1))[-1]
    weights, experts = state.weights.numpy(), state.experts.numpy()
    mean = weights[:, 0] @ experts[:, 0]
    var = weights[:, 1] @ experts[:, 1] + weights[:, 0] @ (experts[:, 0] - mean) ** 2
    np.testing.assert_allclose(torch.stack(state.estimate()), [mean, var], rtol=1e-13)


def test_before_the_first_batch_the_estimate_is_torchs():
    mean, var = SelfTuned.begin(3).estimate()
    torch.testing.assert_close(mean, torch.zeros(3))
    torch.testing.assert_close(var, torch.ones(3))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_after_one_batch_every_expert_is_that_batch_exactly(dtype):
    batch = moments(np.array([0.1, 1e6, -3e-7]), np.array([0.3, 1e9, 1e-12]), 129, dtype)
    state = SelfTuned.begin(3, dtype=dtype).follow(batch)
    seen = torch.stack((batch.mean, batch.var_unbiased))
    assert torch.equal(state.experts, seen.expand(11, 2, 3))


def test_after_one_batch_all_experts_weigh_the_same():
    state = SelfTuned.begin(3).follow(moments(np.full(3, 1e9), np.full(3, 1e9), COUNT, torch.float32))
    torch.testing.assert_close(state.weights, torch.full((11, 2), 1 / 11))


def test_the_slowest_expert_is_at_first_nearly_the_average_of_all():
    batches = drawn(10, 3, seed=0)
    average = np.mean([statistics(batch) for batch in batches], 0)
    np.testing.assert_allclose(follow(batches)[-1].experts[-1], average, rtol=0.02, atol=0.02)


def test_the_fastest_expert_is_the_last_batch():
    batches = drawn(10, 3, seed=0)
    np.testing.assert_allclose(follow(batches)[-1].experts[0], statistics(batches[-1]), rtol=1e-15)


@each_drift
def test_weights_are_a_distribution(drift):
    _, batches = next(streams(drift, steps=200, channels=64, seeds=1))
    weights = torch.stack([state.weights for state in follow(batches)])
    assert (weights >= 0).all()
    torch.testing.assert_close(weights.sum(1), torch.ones_like(weights[:, 0]), rtol=1e-12, atol=0)


def memory(state: SelfTuned) -> float:
    """Batches that the mean remembers, 1/momentum, as a geometric mean over the weights."""
    return float(2 ** (state.weights[:, 0] @ torch.arange(11.0, dtype=state.weights.dtype)))


def test_steady_data_are_averaged_over_long():
    _, batches = next(streams(DRIFTS["none"], steps=400, channels=32, seeds=1))
    assert memory(follow(batches)[-1]) > 100


def test_a_jump_is_followed_within_five_batches_and_forgets_the_long_memory():
    truth = np.zeros((405, 32))
    truth[400:] = 80
    states = follow(around(truth, np.random.default_rng(0).normal(size=truth.shape)))
    assert (states[-1].estimate()[0] - 10).abs().mean() < 1
    assert memory(states[400]) > 100 > 10 > memory(states[-1])


def test_mean_and_variance_have_momenta_of_their_own():
    random = np.random.default_rng(0)
    mean, var = random.normal(size=(300, 32)), np.exp(walk(0.1, 300, 32, random))
    state = follow([moments(mean[t], var[t], COUNT) for t in range(300)])[-1]
    assert state.weights[:3, 0].sum() < 0.01
    assert state.weights[:3, 1].sum() > 0.99


def test_constant_data_favour_no_expert():
    state = follow([moments(np.full(3, 0.1), np.full(3, 0.7), COUNT, torch.float32)] * 20)[-1]
    torch.testing.assert_close(state.weights, torch.full((11, 2), 1 / 11))


def test_permuting_channels_permutes_the_estimate():
    batches, order = drawn(40, 7, seed=2), torch.randperm(7, generator=torch.Generator().manual_seed(0))
    permuted = [Moments(mean=b.mean[order], var=b.var[order], count=b.count) for b in batches]
    expected = torch.stack(follow(batches)[-1].estimate())[:, order]
    torch.testing.assert_close(torch.stack(follow(permuted)[-1].estimate()), expected, rtol=1e-9, atol=1e-12)


def test_rescaled_and_shifted_channels_leave_the_weights_as_they_are():
    batches, scale = drawn(40, 3, seed=2), torch.tensor([1e-3, 1.0, 1e4], dtype=torch.float64)
    moved = [Moments(mean=b.mean * scale + 5, var=b.var * scale**2, count=b.count) for b in batches]
    torch.testing.assert_close(follow(moved)[-1].weights, follow(batches)[-1].weights, rtol=1e-5, atol=1e-9)


def one_value(channels: int) -> torch.Tensor:
    return torch.linspace(1, 2, channels, dtype=torch.float64)


@pytest.mark.parametrize("count", [1, torch.tensor(1)], ids=["number", "tensor"])
def test_one_value_leaves_every_variance_as_it_is(count):
    before = follow(drawn(20, 3, seed=0))[-1]
    after = before.follow(Moments(mean=one_value(3), var=torch.zeros(3).double(), count=count))
    assert torch.equal(after.experts[:, 1], before.experts[:, 1])


def test_one_value_counts_as_one_in_the_mean():
    batches = drawn(20, 3, seed=0)
    state = follow(batches)[-1].follow(Moments(mean=one_value(3), var=torch.zeros(3).double(), count=1))
    sums = sum(b.mean * COUNT * (1 - 2**-10) ** age for age, b in enumerate(batches[::-1], start=1)) + one_value(3)
    mass = sum(COUNT * (1 - 2**-10) ** age for age in range(1, 21)) + 1
    torch.testing.assert_close(state.experts[-1, 0], sums / mass, rtol=1e-12, atol=0)


def test_the_variance_begins_with_the_first_batch_that_has_one():
    batch = drawn(1, 3, seed=0)[0]
    state = SelfTuned.begin(3, dtype=torch.float64)
    state = state.follow(Moments(mean=one_value(3), var=torch.zeros(3).double(), count=1)).follow(batch)
    np.testing.assert_allclose(state.experts[:, 1], np.tile(statistics(batch)[1], (11, 1)), rtol=1e-13)


def test_a_batch_without_values_moves_no_expert():
    before, nothing = follow(drawn(20, 3, seed=0))[-1], torch.full((3,), math.nan, dtype=torch.float64)
    after = before.follow(Moments(mean=nothing, var=nothing, count=0))
    assert torch.equal(after.experts, before.experts)


def test_a_count_in_a_tensor_is_the_count():
    batches = drawn(30, 3, seed=4, counts=(64, 16))
    in_tensors = [Moments(mean=b.mean, var=b.var, count=torch.tensor(b.count).double()) for b in batches]
    for ours, expected in zip(follow(in_tensors)[-1].estimate(), follow(batches)[-1].estimate(), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-12)


def test_a_channel_without_values_stays_while_the_others_follow():
    batches = drawn(10, 3, seed=0)
    last = replace(batches[-1], count=torch.tensor([COUNT, 0, COUNT]).double())
    before = follow(batches[:-1])[-1]
    after = before.follow(last)
    expected = before.follow(batches[-1]).experts
    expected[:, :, 1] = before.experts[:, :, 1]
    torch.testing.assert_close(after.experts, expected, rtol=1e-13, atol=0)


def with_channel(batches: list[Moments], *, value: float) -> list[Moments]:
    """The batches with channel 1 of constant mean and no variance."""
    changed = []
    for batch in batches:
        mean, var = batch.mean.clone(), batch.var.clone()
        mean[1], var[1] = value, 0
        changed.append(replace(batch, mean=mean, var=var))
    return changed


def test_a_channel_without_variance_has_no_say():
    batches = drawn(40, 3, seed=0)
    zero, large = (follow(with_channel(batches, value=value))[-1] for value in (0.0, 1e3))
    torch.testing.assert_close(zero.weights, large.weights, rtol=1e-12, atol=1e-15)
    assert (zero.weights - 1 / 11).abs().max() > 0.1, "the other channels have none either"


def test_a_channel_without_variance_keeps_its_value():
    mean, var = follow(with_channel(drawn(40, 3, seed=0), value=0.3))[-1].estimate()
    torch.testing.assert_close(mean[1], torch.tensor(0.3, dtype=torch.float64))
    assert var[1] < 1e-30


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_value_that_is_no_number_stays_in_its_channel(bad):
    batches = drawn(40, 3, seed=0)
    batches[20].mean[1] = bad
    for statistic in follow(batches)[-1].estimate():
        assert statistic.isfinite().tolist() == [True, False, True]


def test_a_broken_channel_leaves_the_experts_of_the_others():
    batches = drawn(40, 3, seed=0)
    expected = follow(batches)[-1].experts
    batches[20].mean[1] = math.nan
    assert torch.equal(follow(batches)[-1].experts[:, :, ::2], expected[:, :, ::2])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_state_keeps_its_dtype(dtype):
    batches = [Moments(mean=b.mean.to(dtype), var=b.var.to(dtype), count=b.count) for b in drawn(5, 3, seed=0)]
    state = follow(batches)[-1]
    floating = [getattr(state, field.name).dtype for field in fields(state) if field.name != "step"]
    assert set(floating) == {dtype}
    assert state.step.dtype == torch.int64


def test_float32_is_as_good_as_float64():
    batches = drawn(300, 8, seed=0)
    narrow = [Moments(mean=b.mean.float(), var=b.var.float(), count=b.count) for b in batches]
    for ours, expected in zip(follow(narrow)[-1].estimate(), follow(batches)[-1].estimate(), strict=True):
        torch.testing.assert_close(ours.double(), expected, rtol=1e-4, atol=1e-4)


def test_steps_are_counted():
    assert follow(drawn(7, 2, seed=0))[-1].step == 7


def test_following_and_estimating_change_nothing():
    batches = drawn(5, 3, seed=0)
    state, batch = follow(batches[:-1])[-1], batches[-1]
    tensors = [getattr(state, field.name) for field in fields(state)] + [batch.mean, batch.var]
    before = [tensor.clone() for tensor in tensors]
    state.follow(batch)
    state.estimate()
    assert all(map(torch.equal, before, tensors))


def test_autocast_rounds_nothing():
    batches = [Moments(mean=b.mean.float(), var=b.var.float(), count=b.count) for b in drawn(30, 3, seed=0)]
    with torch.autocast("cpu", torch.bfloat16):
        inside = torch.stack(follow(batches)[-1].estimate())
    assert torch.equal(inside, torch.stack(follow(batches)[-1].estimate()))


@pytest.mark.parametrize("count", [COUNT, torch.tensor(COUNT)], ids=["number", "tensor"])
def test_it_compiles_into_one_graph(count):
    def step(state: SelfTuned, batch: Moments) -> tuple[SelfTuned, tuple[torch.Tensor, torch.Tensor]]:
        after = state.follow(batch)
        return after, after.estimate()

    state, batch = follow(drawn(5, 3, seed=0))[-1], replace(drawn(1, 3, seed=1)[0], count=count)
    compiled, estimate = torch.compile(step, fullgraph=True, backend="eager")(state, batch)
    expected = state.follow(batch)
    assert all(torch.equal(getattr(compiled, f.name), getattr(expected, f.name)) for f in fields(expected))
    torch.testing.assert_close(estimate, expected.estimate())


@pytest.mark.parametrize("count", [COUNT, 1, torch.tensor(COUNT, device="meta")], ids=["number", "one", "tensor"])
def test_no_value_is_read_by_the_host(count):
    nowhere = torch.empty(3, device="meta")
    state = SelfTuned.begin(3, device="meta").follow(Moments(mean=nowhere, var=nowhere, count=count))
    mean, var = state.estimate()
    assert mean.is_meta
    assert var.is_meta
