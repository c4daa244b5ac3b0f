"""Serve artifacts in separate processes that take requests in turn."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from steadynorm.reporting.failure import UserError

__all__ = ["SERVING", "Server", "serving_snippet"]

SERVING = Path(__file__).parent / "serving"


class Server:
    """A fresh process that serves one artifact.

    It does not use multiprocessing or concurrent.futures, which pass the parent's import paths to their children: a
    file must work where this package cannot be imported.

    Args:
        path: path of the artifact.
        serving: file of ``serving/`` that loads it.
        threads: threads of each request.
        own: whether the artifact may need this package; otherwise it runs where the package cannot be imported.

    Raises:
        UserError: the artifact does not load.
    """

    def __init__(self, path: Path, *, serving: str, threads: int, own: bool = False) -> None:
        self.path = path
        # isolated: without PYTHONPATH, through which what belongs to us finds its modules
        command = [sys.executable, "-P" if own else "-I", str(SERVING / "worker.py"), str(SERVING / serving)]
        self.process = subprocess.Popen(
            [*command, str(path), str(threads), *(["own"] if own else [])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": str(threads), "PYTHONPATH": _paths()},
        )
        try:
            self.load_ms = float(self._read()["load_ms"])
        except BaseException:  # including Ctrl-C during loading
            self.close()
            raise

    def ask(self, do: str, **request: Any) -> dict[str, Any]:  # noqa: ANN401 (JSON)
        """Send a request to the process; see ``serving/worker.py``.

        Raises:
            UserError: the request failed, or the process ended.
        """
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # the answer, or its lack, says why
            self.process.stdin.write(json.dumps({"do": do} | request) + "\n")
            self.process.stdin.flush()
        return self._read()

    def close(self) -> None:
        """End the process."""
        for pipe in (self.process.stdin, self.process.stdout):
            with contextlib.suppress(OSError):
                if pipe is not None:
                    pipe.close()
        self.process.terminate()
        self.process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _read(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            status = self.process.wait()
            raise UserError(f"{self.path.name}: the process that served it ended with status {status}.")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            text = str(answer["error"]).strip().splitlines()[0][:300]
            raise UserError(f"{self.path.name}: fails in a separate process: {text.rstrip('.')}.")
        return answer


def serving_snippet(serving: str) -> str:
    """Return the source of a file that shows how a format is served."""
    return (SERVING / serving).read_text()


def _paths() -> str:
    return os.pathsep.join(path for path in sys.path if path)
