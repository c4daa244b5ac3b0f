"""Models with scripted or traced parts: what is inside stays and is named, the rest is operated on."""

import pytest
import torch
from torch import nn

from steadynorm import surgery
from tests.support.layers import drawn, randomize_

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
X = drawn(4, 3, 5, 5, dtype=torch.float32)


class Square(nn.Module):
    def forward(self, x):
        return x * x


def block():
    return randomize_(nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)), seed=7).eval()


PARTS = {
    "scripted activation": lambda: torch.jit.script(Square()),
    "scripted block": lambda: torch.jit.script(block()),
    "traced block": lambda: torch.jit.trace(block(), torch.randn(2, 4, 5, 5)),
}
VERBS = {
    "convert_": lambda model: surgery.convert_(model, "batch_norm"),
    "convert_ with batches": lambda model: surgery.convert_(model, "group_norm", batches=[X]),
    "from_sync_": lambda model: surgery.from_sync_(nn.SyncBatchNorm.convert_sync_batchnorm(model)),
    "fold_": lambda model: surgery.fold_(model, X),
    "strip_bias_": lambda model: surgery.strip_bias_(model, X),
    "freeze_": surgery.freeze_,
    "recalibrate_": lambda model: surgery.recalibrate_(model, [X]),
    "load_statistics_": lambda model: surgery.load_statistics_(model, model.state_dict()),
}


def network(part):
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), PARTS[part](), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))
    for place in (0, 1, 3, 4):
        randomize_(model[place], seed=place)
    return model.eval()


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("verb", VERBS)
def test_a_verb_changes_all_but_the_script_and_names_what_is_inside(verb, part):
    model = network(part)
    y = model(X)
    change = VERBS[verb](model)
    assert len(change.changed) == 2
    assert [each.name for each in change.refused if each.name] == ([] if "activation" in part else ["2.1"])
    assert all("script" in each.why for each in change.refused if each.name)
    if verb in ("convert_", "from_sync_", "fold_", "strip_bias_", "freeze_"):
        torch.testing.assert_close(model(X), y, rtol=1e-5, atol=1e-5)
    assert torch.equal(change.undo()(X), y)


@pytest.mark.parametrize("part", PARTS)
def test_statistics_and_parameter_groups_are_taken_beside_a_script(part):
    model = network(part)
    groups = surgery.param_groups(model, 0.1)
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))
    if "block" in part:
        with pytest.warns(UserWarning, match=r"'2\.1' are not taken: it is a script"):
            found = surgery.statistics_of(model)
    else:
        found = surgery.statistics_of(model)
    assert {key.rpartition(".")[0] for key in found} == {"1", "4"}


def test_what_a_script_reads_is_not_folded_away():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm, self.square = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), torch.jit.script(Square())
            self.linear = nn.Conv2d(4, 4, 1)
            self.second = nn.BatchNorm2d(4)

        def forward(self, x):
            y = self.conv(x)
            return self.second(self.linear(self.norm(y) + self.square(y)))

    model = Twice().eval()
    for _ in range(3):  # until the script is compiled and fuses
        model(X)
    change = surgery.fold_(model, X)
    assert [each.name for each in change.refused] == ["norm"]
    assert "script" in change.refused[0].why


def test_a_script_as_the_root_is_refused():
    with pytest.raises(TypeError, match=r"before the model is wrapped or compiled, got RecursiveScriptModule\."):
        surgery.freeze_(torch.jit.script(block()))
