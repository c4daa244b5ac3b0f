from dataclasses import replace

from steadynorm.lab.report.method import training_method
from tests.support.records import record


def test_how_many_workers_shared_the_batches_is_said_where_there_were_several():
    alone = record([])
    shared = replace(alone, resolved=alone.resolved | {"workers": 4})
    assert "worker" not in training_method(alone)[0]
    assert "on cpu in bfloat16, on 4 workers that share each batch evenly. " in training_method(shared)[0]
