"""Files that are served without a process of their own, where that process is not what a test is about."""

import runpy
import time
import warnings

import pytest
import torch

from steadynorm.deploy.processes import SERVING, Server
from steadynorm.deploy.serving import worker


class ServerInThisProcess(Server):
    """Serves a file as ``serving/worker.py`` does; that process would import torch first."""

    def __init__(self, path, *, serving, threads, own=False):
        self.path, self.threads_before = path, torch.get_num_threads()
        start = time.perf_counter()
        with warnings.catch_warnings():  # which files of serving/ silence
            self.predict = runpy.run_path(str(SERVING / serving))["load"](str(path), threads)
        self.load_ms = 1e3 * (time.perf_counter() - start)

    def ask(self, do, **request):
        return worker.ACTIONS[do](self.predict, **request)

    def close(self):
        torch.set_num_threads(self.threads_before)


@pytest.fixture
def served_here(monkeypatch):
    """Let exports serve their files in this process; gives the class that does."""
    monkeypatch.setattr("steadynorm.deploy.comparison.Server", ServerInThisProcess)
    return ServerInThisProcess
