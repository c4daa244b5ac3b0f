"""The list of kinds of norm, and what is derived from it."""

import inspect
from pathlib import Path

import pytest

from steadynorm import layers
from steadynorm.lab.normalizations import NORMALIZATIONS
from steadynorm.layers.kinds import BATCH_NORMS, KINDS

OURS = {name: kind for name, kind in BATCH_NORMS.items() if kind.ours}


def shown(kind):
    """A row of the table in docs/family.md."""
    classes = [cls.__name__ for cls in kind.classes.values()]
    name = classes[0].removesuffix("1d") if len(classes) == 3 else classes[0]
    return f"| `{name}` | `{kind.name}` | {kind.training} | {kind.evaluation} | {kind.purpose} |"


def test_the_table_in_the_docs_is_the_list():
    text = (Path(__file__).parents[2] / "docs" / "family.md").read_text()
    assert "\n".join(map(shown, OURS.values())) in text


def test_every_layer_is_of_a_kind():
    named = {name for name in layers.__all__ if name[0].isupper() and name != "NormAddActivation"}
    assert named == {cls.__name__ for kind in OURS.values() for cls in kind.classes.values()}


@pytest.mark.parametrize("name", OURS)
def test_a_kind_is_an_arm_where_it_has_a_2d_layer(name):
    layer = KINDS[name].class_for(2)
    assert (name in NORMALIZATIONS) == (layer is not None)
    if layer is not None:
        assert type(NORMALIZATIONS[name].build(8)) is layer


@pytest.mark.parametrize("name", OURS)
def test_classes_take_as_many_dimensions_as_they_are_listed_for(name):
    for dimensions, cls in KINDS[name].classes.items():
        assert cls.__name__.endswith(f"{dimensions}d" if dimensions else "Norm")


@pytest.mark.parametrize("name", OURS)
def test_options_are_what_the_constructors_take_beyond_torchs(name):
    options = KINDS[name].options()
    assert {"nonfinite": "propagate", "update_every": 1, "running": "exponential"}.items() <= options.items()
    for cls in KINDS[name].classes.values():
        assert options.keys() <= inspect.signature(cls).parameters.keys()
    assert not {"eps", "momentum", "bias", "activation", "device"} & options.keys()


@pytest.mark.parametrize("name", OURS)
def test_what_needs_statistics_is_refused_without(name):
    cls = next(iter(KINDS[name].classes.values()))
    options = {key: 1 for key, value in KINDS[name].options().items() if key == "ghost_batch_size"}
    if KINDS[name].needs_statistics:
        with pytest.raises(ValueError, match=rf"{cls.__name__}: there must be .*, got track_running_stats=False"):
            cls(3, track_running_stats=False, **options)
    else:
        cls(3, track_running_stats=False, **options)
