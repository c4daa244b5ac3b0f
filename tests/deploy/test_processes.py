import sys
from types import SimpleNamespace

import numpy as np
import pytest

from steadynorm.deploy.processes import Server
from steadynorm.deploy.serving import worker
from steadynorm.reporting.failure import UserError

DOUBLING = "def load(path, threads):\n    {first}\n    return lambda images: 2 * images\n"


def serve(tmp_path, first="pass", **how):
    (tmp_path / "serving.py").write_text(DOUBLING.format(first=first))
    return Server(tmp_path / "model", serving=str(tmp_path / "serving.py"), threads=2, **how)


@pytest.mark.parametrize("module", ["steadynorm", "steadynorm.layers", "tests.support.poison"])
def test_what_is_served_cannot_import_this_package_nor_what_lies_beside_it(tmp_path, module):
    with pytest.raises(UserError, match="model: fails in a separate process: ModuleNotFoundError: "):
        serve(tmp_path, f"import {module}")
    serve(tmp_path, f"import {module}", own=True).close()


def test_threads_are_told_to_the_runtime_and_to_the_process(tmp_path):
    serve(tmp_path, "import os; assert (threads, os.environ['OMP_NUM_THREADS']) == (2, '2')").close()


def test_what_a_library_prints_is_no_answer(tmp_path):
    with serve(tmp_path, "print('loading')") as server:
        assert server.load_ms >= 0


@pytest.mark.parametrize("batch", [1, 2, 3, 100])
def test_every_image_is_answered_in_its_order(tmp_path, batch):
    images = np.arange(5 * 12, dtype=np.float32).reshape(5, 3, 2, 2)
    np.save(tmp_path / "x.npy", images)
    with serve(tmp_path) as server:
        asked = {"images": str(tmp_path / "x.npy"), "outputs": str(tmp_path / "y.npy"), "batch": batch}
        assert server.ask("predict", **asked) == {"images": 5}
    assert np.array_equal(np.load(tmp_path / "y.npy"), 2 * images)


def test_so_many_requests_are_timed(tmp_path):
    np.save(tmp_path / "x.npy", np.zeros((2, 3, 2, 2), dtype=np.float32))
    with serve(tmp_path, "import time") as server:
        answer = server.ask("time", images=str(tmp_path / "x.npy"), batch=5, requests=4, warm_up=3)
    assert len(answer["ms"]) == 4 and all(0 < each < 1000 for each in answer["ms"])


@pytest.mark.parametrize(("system", "unit"), [("darwin", 2**20), ("freebsd", 2**10), ("win32", None)])
def test_the_memory_of_a_process_is_in_the_units_of_its_system(monkeypatch, system, unit):
    monkeypatch.setattr(worker.Path, "exists", lambda self: False)
    monkeypatch.setattr(worker.sys, "platform", system)
    usage = SimpleNamespace(RUSAGE_SELF=0, getrusage=lambda who: SimpleNamespace(ru_maxrss=3 * (unit or 1)))
    monkeypatch.setitem(sys.modules, "resource", usage if unit else None)
    assert worker.peak_mib() == (3 if unit else None)


def test_ctrl_c_while_an_artifact_loads_ends_its_process(tmp_path, monkeypatch):
    started = []

    def interrupted(self):
        started.append(self.process)
        raise KeyboardInterrupt

    monkeypatch.setattr(Server, "_read", interrupted)
    with pytest.raises(KeyboardInterrupt):
        serve(tmp_path, "import time; time.sleep(60)")
    assert started[0].returncode is not None


def test_what_a_library_writes_to_standard_error_is_not_shown(tmp_path, capfd):
    serve(tmp_path, "import sys; print('loading', file=sys.stderr, flush=True)").close()
    assert capfd.readouterr().err == ""


def test_a_process_that_has_ended_is_one_line(tmp_path):
    with serve(tmp_path) as server:
        server.process.kill()
        server.process.wait()
        with pytest.raises(UserError, match=r"^model: the process that served it ended with status -9\.$"):
            server.ask("predict", images="x", outputs="y", batch=1)
