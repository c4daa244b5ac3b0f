"""A process that serves one artifact and is asked what it answers, and how fast: a line of JSON in, a line out.

Run as ``python worker.py SERVING ARTIFACT THREADS [own]``, where SERVING is a file of this folder; with ``own`` the
artifact may need this package, else the package is out of its reach.
"""

import json
import runpy
import sys
import time
from pathlib import Path

import numpy as np


def main():
    """Load, say so, and answer until the input ends."""
    serving, artifact, threads, *own = sys.argv[1:]
    if not own:
        sys.modules["steadynorm"] = None  # importing it fails, as if it were not installed
    answers, sys.stdout = sys.stdout, sys.stderr  # libraries must not print into the answers

    def answer(content):
        print(json.dumps(content), file=answers, flush=True)

    try:
        start = time.perf_counter()
        predict = runpy.run_path(serving)["load"](artifact, int(threads))
        answer({"load_ms": 1e3 * (time.perf_counter() - start)})
        for line in sys.stdin:
            request = json.loads(line)
            answer(ACTIONS[request.pop("do")](predict, **request))
    except Exception as error:  # a runtime may raise anything; report it to the parent
        answer({"error": f"{type(error).__name__}: {error}"})
        raise


def predict_file(predict, *, images, outputs, batch):
    """Predict every image of a file, and write the outputs to another."""
    images = np.load(images, mmap_mode="r")
    parts = [predict(np.array(images[first : first + batch])) for first in range(0, len(images), batch)]
    np.save(outputs, np.concatenate(parts))
    return {"images": len(images)}


def time_requests(predict, *, images, batch, requests, warm_up):
    """Time requests one after the other; return milliseconds of each, and the peak memory of the process."""
    images = np.load(images, mmap_mode="r")
    inputs = [np.array(np.take(images, range(first, first + batch), axis=0, mode="wrap")) for first in range(4)]
    for index in range(warm_up):
        predict(inputs[index % 4])
    ms = []
    for index in range(requests):
        start = time.perf_counter_ns()
        predict(inputs[index % 4])
        ms.append((time.perf_counter_ns() - start) / 1e6)
    return {"ms": ms, "peak_mib": peak_mib()}


def peak_mib():
    """Return the peak memory of this program; None if the system does not tell.

    On Linux getrusage would count its parent's, from before the start.
    """
    status = Path("/proc/self/status")
    if status.exists():
        return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM")) / 1024
    try:
        import resource
    except ImportError:  # on Windows
        return None
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most / (2**20 if sys.platform == "darwin" else 2**10)  # macOS counts bytes, others KiB


ACTIONS = {"predict": predict_file, "time": time_requests}

if __name__ == "__main__":
    main()
