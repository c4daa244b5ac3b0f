"""When the batches are looked at, to see whether there are enough."""

from itertools import islice

from steadynorm.surgery.estimation.estimate import FEWEST_BATCHES, _rounds


def test_after_the_first_few_batches_each_look_is_an_eighth_further():
    assert list(islice(_rounds(), 12)) == [FEWEST_BATCHES, *[1] * 8, 2, 2, 2]
