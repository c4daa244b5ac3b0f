from dataclasses import dataclass
from pathlib import Path

import pytest
import tyro

from steadynorm.reporting.failure import UserError
from steadynorm.reporting.flags import as_config, check_values, command_of


@dataclass(frozen=True, kw_only=True)
class Flags:
    source: tyro.conf.Positional[str]
    batch_size: tuple[int, ...] = (1, 8)
    compare: bool = False
    rate: float = 0.1
    data_dir: Path | None = None
    out: Path | None = None
    json: bool = False
    given: tuple[str, ...] = ()


def test_the_command_has_the_flags_that_decide_what_is_computed() -> None:
    config = Flags(source="a b", batch_size=(2, 4), compare=True, data_dir=Path("d"), out=Path("x"), json=True)
    assert command_of("bench x", config) == "steadynorm bench x 'a b' --batch-size 2 4 --compare --data-dir d"
    assert command_of("x", Flags(source="a")) == "steadynorm x a"


def test_a_default_that_was_given_is_repeated() -> None:
    assert command_of("x", Flags(source="a", given=("--rate",))) == "steadynorm x a --rate 0.1"


def test_a_configuration_is_stored_as_json_has_it() -> None:
    stored = as_config(Flags(source="a", data_dir=Path("d"), out=Path("x")))
    assert stored == {"source": "a", "batch_size": [1, 8], "compare": False, "rate": 0.1, "data_dir": "d"}


def test_a_list_has_a_value_and_none_twice() -> None:
    check_values("batch_size", (1, 2))
    check_values("batch_size", (), may_be_empty=True)
    with pytest.raises(UserError, match=r"^--batch-size: at least one value is needed\.$"):
        check_values("batch_size", ())
    with pytest.raises(UserError, match=r"^--batch-size: every value may appear once, got 1 2 1\.$"):
        check_values("batch_size", (1, 2, 1), may_be_empty=True)
