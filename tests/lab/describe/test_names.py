"""What arms are called."""

from steadynorm.lab.describe.names import few_arms, pair


def test_the_pair_is_batch_norm_ours_first_and_no_normalization():
    assert pair({"torch_batch_norm": 1, "batch_norm": 2, "none": 3}) == (2, 3)
    assert pair({"torch_batch_norm": 1, "layer_norm": 2}) == (1, None)


def test_few_arms_are_named_and_many_counted():
    assert few_arms(["none"]) == "no normalization"
    assert few_arms(["none", "layer_norm"]) == "no normalization and layer norm"
    assert few_arms(["none", "layer_norm", "batch_norm"]) == "3 arms"
    assert few_arms(["none", "layer_norm"], most=1) == "2 arms"
