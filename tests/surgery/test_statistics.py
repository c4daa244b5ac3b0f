"""Running statistics taken out of a model, put into one, and those of several made one."""

import copy
import re

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from steadynorm import layers
from steadynorm.layers.norm_add_activation import NormAddActivation
from steadynorm.surgery.statistics import copy_statistics_, load_statistics_, merge_statistics, statistics_of
from tests.support.layers import drawn, randomize_
from tests.support.surgery import Activated

KINDS = ("running_mean", "running_var", "num_batches_tracked")


def network(seed=0, norm=nn.BatchNorm1d):
    model = nn.Sequential(
        nn.Linear(3, 3), norm(3), NormAddActivation(norm(3), "relu"), nn.Sequential(nn.BatchNorm1d(3, affine=False))
    )
    randomize_(model.double(), seed=seed)
    for at, (name, each) in enumerate(model.named_buffers()):
        if name.endswith("num_batches_tracked"):
            each.fill_(seed + at)
    return model


def kept(model):
    return {key: value for key, value in model.state_dict().items() if key.endswith(KINDS)}


def assert_same(found, expected):
    torch.testing.assert_close(dict(found), dict(expected), rtol=0, atol=0, equal_nan=True)


def test_a_snapshot_has_the_keys_and_numbers_of_the_state_dict():
    model = network()
    found = statistics_of(model)
    assert list(found) == list(kept(model))
    assert list(found)[3] == "2.running_mean"
    assert_same(found, kept(model))


def test_a_snapshot_is_a_copy():
    model = network()
    found = statistics_of(model)
    before = copy.deepcopy(found)
    model(drawn(4, 3))
    assert_same(found, before)


def test_a_batch_norm_alone_has_bare_keys():
    assert list(statistics_of(nn.BatchNorm1d(3))) == list(KINDS)


def test_a_snapshot_holds_what_is_chosen_and_tracks():
    model = nn.Sequential(nn.BatchNorm1d(3), nn.BatchNorm1d(3, track_running_stats=False), nn.BatchNorm1d(3))
    assert {key.split(".")[0] for key in statistics_of(model)} == {"0", "2"}
    assert {key.split(".")[0] for key in statistics_of(model, where=lambda name, _: name != "0")} == {"2"}


def test_a_snapshot_without_an_unknown_subclass_warns_by_name():
    model = nn.Sequential(nn.BatchNorm1d(3), Activated(3))
    with pytest.warns(UserWarning, match=r"the statistics of .*Activated\(3\) '1' are not taken: it is a subclass"):
        assert len(statistics_of(model)) == 3


@pytest.mark.parametrize(
    "norm", [nn.BatchNorm1d, layers.BatchNorm1d, layers.GatedBatchNorm1d, layers.FrozenBatchNorm1d]
)
def test_loading_a_snapshot_brings_the_numbers_back_in_place(norm):
    model, snapshot = network(norm=norm), statistics_of(network(seed=50))
    tensors = [id(each) for each in model.buffers()]
    weights = copy.deepcopy(dict(model.named_parameters()))
    change = load_statistics_(model, snapshot)
    assert_same(statistics_of(model), snapshot)
    assert [id(each) for each in model.buffers()] == tensors
    assert_same(dict(model.named_parameters()), weights)
    assert [each.name for each in change.changed] == ["1", "2", "3.0"]
    assert not change.refused


def test_undo_puts_back_every_bit():
    model = network(norm=lambda channels: layers.BatchNorm1d(channels, running="self_tuned", update_every=2))
    model(drawn(5, 3))
    before = {name: each.clone() for name, each in model.named_buffers()}
    load_statistics_(model, statistics_of(network(seed=50))).undo()
    assert_same(dict(model.named_buffers()), before)
    assert model[1]._window_at == 1


def test_a_whole_state_dict_is_taken_and_what_is_no_statistic_named_in_one_line():
    model, state = network(), network(seed=50).state_dict()
    change = load_statistics_(model, state)
    assert_same(statistics_of(model), {key: value for key, value in state.items() if key.endswith(KINDS)})
    assert [each.what for each in change.refused] == ["6 other keys (0.weight, 0.bias, 1.weight, ...)"]


def test_what_does_not_fit_is_refused_by_name_and_stays():
    model, snapshot = network(), statistics_of(network(seed=50))
    before = statistics_of(model)
    del snapshot["1.running_var"], snapshot["3.0.num_batches_tracked"]
    snapshot["2.running_mean"] = torch.zeros(4)
    snapshot["9.running_mean"] = torch.zeros(3)
    change = load_statistics_(model, snapshot)
    assert [(each.name, each.why) for each in change.refused] == [
        ("1", "1.running_var missing."),
        ("2", "of another shape: running_mean (4,) for (3,)."),
        ("9", "unexpected: the model has no such batch norm."),
    ]
    found = statistics_of(model)
    for key, value in found.items():
        expected = snapshot if key.startswith("3") and key in snapshot else before
        assert torch.equal(value, expected[key]), key


def test_layers_that_are_not_chosen_keep_theirs_without_a_word():
    model, snapshot = network(), statistics_of(network(seed=50))
    before = statistics_of(model)
    change = load_statistics_(model, snapshot, where=lambda name, module: name == "1")
    assert not change.refused
    found = statistics_of(model)
    assert torch.equal(found["1.running_mean"], snapshot["1.running_mean"])
    assert torch.equal(found["2.running_mean"], before["2.running_mean"])


def test_a_layer_without_running_statistics_that_gets_some_is_named():
    model = nn.Sequential(nn.BatchNorm1d(3, track_running_stats=False), nn.BatchNorm1d(3))
    change = load_statistics_(model, statistics_of(nn.Sequential(nn.BatchNorm1d(3), nn.BatchNorm1d(3))))
    assert "has no running statistics, but 0.running_mean is given" in change.refused[0].why
    assert len(change.changed) == len(change.refused) == 1


class Shared(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.BatchNorm1d(3)
        self.second = self.first


def test_a_shared_layer_is_there_under_both_names():
    model, other = Shared(), Shared()
    randomize_(model)
    assert list(statistics_of(model)) == list(kept(model))
    change = copy_statistics_(model, other)
    assert_same(statistics_of(other), statistics_of(model))
    assert [each.name for each in change.changed] == ["first"]


def test_a_shared_layer_takes_no_two_statistics():
    statistics = statistics_of(Shared())
    statistics["second.running_var"] = torch.full((3,), 2.0)
    with pytest.raises(ValueError, match="one layer with the names first, second, for which running_var differs"):
        load_statistics_(Shared(), statistics)
    del statistics["first.running_mean"], statistics["first.running_var"]
    model = Shared()
    assert not load_statistics_(model, statistics).refused
    assert model.first.running_var[0] == 2


def test_a_bank_and_a_window_start_again():
    norm = layers.BatchNorm1d(3, running="self_tuned", update_every=2)
    for _ in range(3):
        norm(torch.randn(4, 3))
    change = load_statistics_(norm, statistics_of(nn.BatchNorm1d(3)))
    assert (int(norm._bank_step), norm._window_at) == (0, 0)
    assert "restarts" in change.changed[0].notes[0]


def test_numbers_take_the_dtype_of_the_model():
    model = nn.BatchNorm1d(3)
    load_statistics_(
        model, {key: value.double() for key, value in statistics_of(randomize_(nn.BatchNorm1d(3))).items()}
    )
    assert [each.dtype for each in model.buffers()] == [torch.float32, torch.float32, torch.int64]


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model.", "state_dict.ema_model.module."])
def test_names_behind_prefixes_are_understood_and_told(prefix):
    model, snapshot = network(), statistics_of(network(seed=50))
    change = load_statistics_(model, {prefix + name: each for name, each in snapshot.items()})
    assert_same(statistics_of(model), snapshot)
    assert change.notes == (f"names are taken without {prefix!r}",)
    assert f"note: names are taken without '{prefix}'" in repr(change)


def test_a_whole_checkpoint_is_read_and_what_lies_beside_the_model_is_named():
    model, other = network(), network(seed=50)
    change = load_statistics_(model, {"epoch": 3, "state_dict": other.state_dict(), "rng": torch.zeros(4)})
    assert_same(statistics_of(model), statistics_of(other))
    assert change.notes == ("names are taken without 'state_dict.'", "passed over beside them: rng")


@pytest.mark.parametrize(
    "counter", [torch.zeros(0), torch.tensor([-1.0]), torch.tensor([1, 2]), torch.tensor(torch.nan)]
)
def test_a_counter_that_is_no_number_stays_while_the_statistics_load(counter):
    model, snapshot = network(), statistics_of(network(seed=50))
    before = statistics_of(model)["1.num_batches_tracked"]
    change = load_statistics_(model, snapshot | {"1.num_batches_tracked": counter})
    assert_same(statistics_of(model), snapshot | {"1.num_batches_tracked": before})
    assert not change.refused
    assert bool(change.changed[0].notes) == bool(counter.numel())


def test_numpy_arrays_and_counters_of_shape_1_load():
    model, snapshot = network(), statistics_of(network(seed=50))
    arrays = {name: each.numpy() for name, each in snapshot.items()}
    load_statistics_(model, arrays | {"1.num_batches_tracked": arrays["1.num_batches_tracked"].reshape(1)})
    assert_same(statistics_of(model), snapshot)


@pytest.mark.parametrize("sequence", [list, tuple])
def test_lists_of_numbers_as_json_keeps_them_load(sequence):
    given = {"running_mean": sequence([0, 1, 2.5]), "running_var": sequence([1.0, 4.0, 9.0]), "num_batches_tracked": 3}
    norm = nn.BatchNorm1d(3)
    change = load_statistics_(norm, {"model": given})
    assert (norm.running_mean.tolist(), norm.running_var.tolist()) == ([0, 1, 2.5], [1, 4, 9])
    assert norm.num_batches_tracked == 3 and not change.refused


@pytest.mark.parametrize(
    ("given", "why"),
    [
        (torch.ones(3).to_sparse(), r"the given running_var is torch\.sparse_coo, not dense\. Make it dense"),
        (torch.nested.nested_tensor([torch.ones(3)], layout=torch.jagged), r"is nested, not dense"),
        (torch.ones(3, device="meta"), r"is on the meta device, which holds no numbers\. Load the weights first"),
    ],
)
def test_a_tensor_without_plain_numbers_is_refused_by_name(given, why):
    statistics = {"running_mean": torch.zeros(3), "running_var": given}
    for loaded in (statistics, {"model": statistics, "ema": dict(statistics)}):
        with pytest.raises(ValueError, match=why):
            load_statistics_(nn.BatchNorm1d(3), loaded)


def test_statistics_in_a_narrow_float_load():
    given = {name: torch.ones(3).to(torch.float8_e4m3fn) for name in ("running_mean", "running_var")}
    norm = nn.BatchNorm1d(3)
    load_statistics_(norm, given)
    assert norm.running_mean.tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    ("kind", "value", "why"),
    [
        (
            "running_mean",
            [0.0, torch.nan, 0.0],
            r"running_mean must be finite in torch.float64, got others in channel 1",
        ),
        (
            "running_var",
            [torch.inf, 1.0, torch.inf],
            r"running_var must be finite in .*, got others in 2 channels, the first 0",
        ),
        ("running_var", [1.0, 1.0, -1e-5], r"running_var must not be negative, got as little as -1e-05 in channel 2"),
        ("running_var", [1, 1, 1], r"running_var must be of a floating dtype, got torch.int64"),
        ("running_mean", [0.0, 1.0], r"of another shape: running_mean \(2,\) for \(3,\)"),
        ("running_mean", 0.0, r"of another shape: running_mean \(\) for \(3,\)"),
    ],
)
def test_what_cannot_be_statistics_is_refused_by_name(kind, value, why):
    model, snapshot = network(), statistics_of(network(seed=50))
    before = statistics_of(model)
    change = load_statistics_(model, snapshot | {f"2.{kind}": torch.tensor(value)})
    assert [each.name for each in change.refused] == ["2"]
    assert re.search(why, change.refused[0].why)
    assert torch.equal(statistics_of(model)[f"2.{kind}"], before[f"2.{kind}"])


def test_what_does_not_fit_the_layers_dtype_is_refused():
    given = {"running_mean": torch.zeros(3), "running_var": torch.full((3,), 1e39, dtype=torch.float64)}
    with pytest.raises(
        ValueError, match=r"none: .*running_var must be finite in torch.float32, got others in 3 channels"
    ):
        load_statistics_(nn.BatchNorm1d(3), given)


@pytest.mark.parametrize("statistics", [{}, {"other.running_mean": torch.zeros(3)}, {"conv.weight": torch.zeros(3)}])
def test_a_model_that_takes_nothing_raises(statistics):
    with pytest.raises(ValueError, match=r"load_statistics_: the checkpoint must have .* names, 1\.running_mean"):
        load_statistics_(network(), statistics)


def test_a_choice_of_no_layer_raises():
    with pytest.raises(ValueError, match="got none: no batch norm is chosen"):
        load_statistics_(network(), statistics_of(network()), where=lambda name, module: name == "layer1")


def test_statistics_of_a_model_without_any_are_not_copied_in_silence():
    with pytest.raises(ValueError, match=r"copy_statistics_: the checkpoint must have tensors by .* got none"):
        copy_statistics_(nn.Linear(3, 3), network())


def test_statistics_are_copied_into_and_out_of_an_average_under_an_attribute():
    class Average(nn.Module):
        def __init__(self, model):
            super().__init__()
            self.ema_model = model

    source, target = network(), network(seed=50)
    copy_statistics_(source, Average(target))
    assert_same(statistics_of(target), statistics_of(source))
    third = network(seed=90)
    copy_statistics_(Average(source), third)
    assert_same(statistics_of(third), statistics_of(source))


@pytest.mark.parametrize("wrap", [lambda model: model, AveragedModel, nn.DataParallel])
def test_statistics_are_copied_by_name_into_a_wrapped_model_too(wrap):
    source, target = network(), network(seed=50)
    target[0].weight.data.zero_()
    wrapped = wrap(target)
    inner = getattr(wrapped, "module", wrapped)
    change = copy_statistics_(source, wrapped)
    assert_same(statistics_of(inner), statistics_of(source))
    assert inner[0].weight.abs().sum() == 0
    assert change.model is wrapped


def test_a_copy_leaves_the_source_apart():
    source, target = network(), network(seed=50)
    copy_statistics_(source, target)
    before = statistics_of(source)
    target(drawn(4, 3))
    assert_same(statistics_of(source), before)


def test_what_the_source_does_not_have_is_named():
    change = copy_statistics_(nn.Sequential(nn.BatchNorm1d(3)), nn.Sequential(nn.BatchNorm1d(3), nn.BatchNorm1d(3)))
    assert [(each.name, each.why) for each in change.refused] == [("1", "1.running_mean and 1.running_var missing.")]


def clients():
    """Values of three clients of different size and mean, and the statistics that each would hold (biased)."""
    values = [drawn(size, 4, seed=size) + size for size in (5, 9, 20)]
    held = [
        {
            "n.running_mean": x.mean(0),
            "n.running_var": x.var(0, correction=0),
            "n.num_batches_tracked": torch.tensor(len(x)),
        }
        for x in values
    ]
    return values, held


def test_merged_statistics_are_those_of_all_values():
    values, held = clients()
    found, whole = merge_statistics(held, [len(x) for x in values]), torch.cat(values)
    torch.testing.assert_close(found["n.running_mean"], whole.mean(0), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found["n.running_var"], whole.var(0, correction=0), rtol=1e-12, atol=1e-12)
    assert found["n.num_batches_tracked"] == 20


def test_the_distance_of_the_means_counts():
    """timm's distribute_bn and plain federated averaging give a variance of 1 here."""
    one, other = ({"running_mean": torch.tensor([mean]), "running_var": torch.ones(1)} for mean in (-3.0, 3.0))
    assert merge_statistics([one, other])["running_var"].item() == 10


@pytest.mark.parametrize("scale", [1e308, 5e-324, 1.0])
def test_weights_count_by_their_ratios_however_large_they_are(scale):
    one, other = ({"running_mean": torch.tensor([mean]), "running_var": torch.ones(1)} for mean in (-3.0, 3.0))
    found = merge_statistics([one, other], [scale, scale])
    assert (found["running_mean"].item(), found["running_var"].item()) == (0, 10)


def test_equal_statistics_stay_bit_for_bit():
    one = statistics_of(network())
    assert_same(merge_statistics([one] * 3, [1, 2, 4]), one)


def test_merging_is_done_in_float64_and_rounded_once():
    means, variances = drawn(5, 500, dtype=torch.float32) + 30, drawn(5, 500, seed=1, dtype=torch.float32).abs()
    held = [{"running_mean": mean, "running_var": var} for mean, var in zip(means, variances, strict=True)]
    found, mean = merge_statistics(held), means.double().mean(0)
    assert torch.equal(found["running_mean"], mean.float())
    assert torch.equal(found["running_var"], (variances.double() + (means.double() - mean).square()).mean(0).float())


@pytest.mark.parametrize("form", [np.array, list])
def test_numpy_arrays_and_lists_are_merged_as_tensors(form):
    given = [{"running_mean": form([mean]), "running_var": form([1.0])} for mean in (0.0, 2.0)]
    assert {key: each.tolist() for key, each in merge_statistics(given).items()} == {
        "running_mean": [1.0],
        "running_var": [2.0],
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda one: one.pop("n.num_batches_tracked"), "the same keys, got n.num_batches_tracked in one of 0 and 1"),
        (lambda one: one.update({"n.running_mean": torch.zeros(3)}), r"shapes .* n.running_mean of \(4,\) in 0"),
        (lambda one: one["n.running_var"].fill_(torch.nan), "finite, got others in n.running_var of 1"),
        (
            lambda one: one["n.running_var"][2].fill_(-0.5),
            r"variances must not be negative, got -0\.5 in n.running_var of 1",
        ),
        (
            lambda one: one.update({"n.running_mean": torch.zeros(4, dtype=torch.int64)}),
            r"running_mean must be of a floating dtype, got torch\.int64 in n.running_mean of 1",
        ),
    ],
)
def test_statistics_that_do_not_go_together_are_refused(change, message):
    _, held = clients()
    change(held[1])
    with pytest.raises(ValueError, match=message):
        merge_statistics(held)


@pytest.mark.parametrize("key", ["n.running_mean", "n.running_var"])
def test_a_mean_without_a_variance_is_refused(key):
    with pytest.raises(ValueError, match=f"mean and variance must both be present, got {key} alone"):
        merge_statistics([{key: torch.zeros(2)}])


def test_what_is_no_statistic_is_refused():
    with pytest.raises(ValueError, match=r"only running statistics are allowed, got 0\.weight"):
        merge_statistics([network().state_dict()])


@pytest.mark.parametrize("weights", [[1, -1, 2], [0, 0, 0], [1, 2], [1, torch.nan, 1], [1, 1, torch.inf]])
def test_weights_that_are_none_are_refused(weights):
    with pytest.raises(ValueError, match=r"merge_statistics: .*weight"):
        merge_statistics(clients()[1], weights)


def test_statistics_of_nobody_are_refused():
    with pytest.raises(ValueError, match="at least one model, got none"):
        merge_statistics([])
