"""Every verb on models that hold no numbers yet: a clear error, or a refusal by name."""

import copy

import pytest
import torch
from torch import nn

from steadynorm import surgery
from tests.support.layers import randomize_

pytestmark = pytest.mark.filterwarnings("ignore:Lazy modules")
X = torch.randn(4, 3, 5, 5)
LAZY = r"must hold numbers to be run, got uninitialized parameters \(\d+\): '0\.weight'.* Run the model on a batch"
META = r"must hold numbers to be run, got tensors on the meta device \(\d+\): '4\.weight'.* Load the weights first"


def network(first=nn.Conv2d):
    made = first(3, 4, 1) if first is nn.Conv2d else first(4, 1)
    model = nn.Sequential(made, nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))
    for each in (model[1], model[3], model[4]):
        randomize_(each)
    return model.eval()


def lazy_norm():
    model = network()
    model[1] = nn.LazyBatchNorm2d().eval()
    return model


def on_meta():
    model = network()
    model[4].to("meta")
    return model


def statistics():
    return {name: each for name, each in network().state_dict().items() if "running" in name}


RUNS = {
    "fold_": lambda model: surgery.fold_(model, X),
    "strip_bias_": lambda model: surgery.strip_bias_(model, X),
    "recalibrate_": lambda model: surgery.recalibrate_(model, [X]),
    "convert_": lambda model: surgery.convert_(model, "group_norm", batches=[X]),
}
EXAMPLES = {
    "convert_": lambda model: surgery.convert_(model, "batch_norm", example=X),
    "freeze_": lambda model: surgery.freeze_(model, example=X),
    "from_sync_": lambda model: surgery.from_sync_(nn.SyncBatchNorm.convert_sync_batchnorm(model), example=X),
}
LOOKS = {
    "convert_": lambda model: surgery.convert_(model, "batch_norm"),
    "convert_ to group_norm": lambda model: surgery.convert_(model, "group_norm"),
    "freeze_": surgery.freeze_,
    "from_sync_": lambda model: surgery.from_sync_(nn.SyncBatchNorm.convert_sync_batchnorm(model)),
    "load_statistics_": lambda model: surgery.load_statistics_(model, statistics()),
    "copy_statistics_": lambda model: surgery.copy_statistics_(network(), model),
    "repair_statistics_": lambda model: surgery.repair_statistics_(corrupted(model)),
}
STRUCTURAL = ("convert_", "convert_ to group_norm", "freeze_", "from_sync_")


def corrupted(model):
    for place in (1, 4):
        variance = getattr(model[place], "running_var", None)
        if not isinstance(variance, torch.nn.parameter.UninitializedBuffer):
            variance[0] = -1
    return model


@pytest.mark.parametrize("verb", RUNS)
@pytest.mark.parametrize(
    ("make", "message"),
    [(lambda: network(nn.LazyConv2d), LAZY), (lazy_norm, LAZY.replace("0", "1", 1)), (on_meta, META)],
    ids=["lazy convolution", "lazy norm", "meta"],
)
def test_a_verb_that_runs_the_model_says_what_is_missing(make, message, verb):
    model = make()
    classes = [type(each) for each in model]
    with pytest.raises(ValueError, match=f"{verb}: the model {message}"):
        RUNS[verb](model)
    assert [type(each) for each in model] == classes  # a run would have given the lazy ones their parameters


def test_buffers_alone_may_be_what_is_missing():
    lazy, meta = network(), network()
    lazy[1] = nn.LazyBatchNorm2d(affine=False).eval()
    meta[4].running_var = meta[4].running_var.to("meta")
    named = r"uninitialized parameters \(2\): '1\.running_mean', '1\.running_var'\. Run"
    for model, what in ((lazy, named), (meta, r"tensors on the meta device \(1\): '4\.running_var'\. Load")):
        with pytest.raises(ValueError, match=what):
            surgery.recalibrate_(model, [X])


@pytest.mark.parametrize(("count", "rest"), [(3, r"\. Load"), (4, r", \.\.\.\. Load")])
def test_three_tensors_that_hold_nothing_are_named(count, rest):
    model = nn.Sequential(nn.BatchNorm2d(3))
    for name in ("weight", "bias")[: count - 2]:
        setattr(model[0], name, nn.Parameter(getattr(model[0], name).to("meta")))
    for name in ("running_mean", "running_var"):
        setattr(model[0], name, getattr(model[0], name).to("meta"))
    with pytest.raises(ValueError, match=rf"meta device \({count}\): ('0\.\w+'(, )?){{3}}{rest}"):
        surgery.recalibrate_(model, [X])


@pytest.mark.parametrize("verb", EXAMPLES)
@pytest.mark.parametrize(("make", "message"), [(lambda: network(nn.LazyConv2d), LAZY), (on_meta, META)])
def test_an_example_is_not_run_on_what_holds_no_numbers(make, message, verb):
    with pytest.raises(ValueError, match=message):
        EXAMPLES[verb](make())


@pytest.mark.parametrize("verb", [each for each in LOOKS if each != "from_sync_"])
def test_a_lazy_norm_is_refused_by_name_and_the_other_changed(verb):
    change = LOOKS[verb](lazy_norm())
    assert [each.name for each in change.changed] == ["4"]
    assert [each.name for each in change.refused] == ["1"]
    assert "has not seen its first batch" in change.refused[0].why


@pytest.mark.parametrize("verb", LOOKS)
def test_a_lazy_convolution_is_in_nobodys_way(verb):
    change = LOOKS[verb](network(nn.LazyConv2d))
    assert [each.name for each in change.changed] == ["1", "4"]


@pytest.mark.parametrize("verb", LOOKS)
def test_a_norm_on_meta_changes_its_class_there_and_takes_no_numbers(verb):
    change = LOOKS[verb](on_meta())
    structural = verb in STRUCTURAL
    assert [each.name for each in change.changed] == (["1", "4"] if structural else ["1"])
    assert [each.name for each in change.refused] == ([] if structural else ["4"])
    assert all("on the meta device, which holds no numbers" in each.why for each in change.refused)


def test_no_snapshot_is_taken_of_a_norm_on_meta():
    message = r"statistics_of: statistics must hold numbers, got '4': its .* meta device"
    with pytest.raises(ValueError, match=message):
        surgery.statistics_of(on_meta())
    for name in ("running_mean", "running_var"):
        model = network()
        setattr(model[4], name, getattr(model[4], name).to("meta"))
        with pytest.raises(ValueError, match=message):
            surgery.statistics_of(model)


@pytest.mark.parametrize("make", [lazy_norm, on_meta, lambda: network(nn.LazyConv2d)])
def test_parameter_groups_need_no_numbers(make):
    model = make()
    groups = surgery.param_groups(model, 0.1)
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))


@pytest.mark.parametrize("verb", [surgery.fold_, surgery.strip_bias_])
@pytest.mark.parametrize("tolerance", [-1.0, float("nan")])
def test_a_tolerance_that_is_none_is_refused(verb, tolerance):
    model = network()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=f"{verb.__name__}: tolerance must be at least 0, got {tolerance}"):
        verb(model, X, tolerance=tolerance)
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)


@pytest.mark.parametrize("passes", [0, 1.5, float("nan"), float("inf")])
def test_a_number_of_passes_that_is_none_is_refused(passes):
    with pytest.raises(ValueError, match=f"passes must be at least 1 and a whole number, got {passes}"):
        surgery.recalibrate_(network(), [X], passes=passes)
