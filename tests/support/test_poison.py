import pytest
import torch

from tests.support.poison import nan_filled_memory


@pytest.mark.parametrize(
    "allocate",
    [
        lambda: torch.empty(7),
        lambda: torch.empty_like(torch.zeros(3, 2)),
        lambda: torch.zeros(1).new_empty(5),
        lambda: torch.empty_strided((4,), (2,)),
        lambda: torch.empty(5, dtype=torch.bfloat16),
    ],
    ids=["empty", "empty_like", "new_empty", "empty_strided", "bfloat16"],
)
def test_unwritten_memory_is_nan(allocate):
    with nan_filled_memory():
        assert allocate().isnan().all()


def test_deterministic_mode_comes_back_after_an_exception():
    assert not torch.are_deterministic_algorithms_enabled()
    with pytest.raises(KeyError), nan_filled_memory():
        assert torch.are_deterministic_algorithms_enabled()
        raise KeyError
    assert not torch.are_deterministic_algorithms_enabled()
