"""Compare exported files with the model: on which images, in which process, and with which tolerance."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from steadynorm.deploy.formats import FORMATS
from steadynorm.deploy.processes import Server
from steadynorm.deploy.results import Artifact
from steadynorm.reporting.failure import UserError, one_line
from steadynorm.surgery.flow.trial import run

__all__ = ["TOLERANCE", "Comparison", "eager_outputs"]

TOLERANCE = 1e-4
"""Largest error of a float file, relative to the largest magnitude of an output."""
BATCH = 64


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Images and tolerances of the comparison, and how files are served."""

    scratch: Path
    """Directory in which processes exchange arrays."""
    threads: int
    """Threads of each process."""
    labels: NDArray[np.int64] | None
    """None if the model's classes are not the data's."""
    expected: NDArray[np.float32]
    """The eager model's outputs."""
    max_drop: float
    """Percentage points that quantising may cost."""

    @property
    def images(self) -> Path:
        """File with the images for every process: a float32 array."""
        return self.scratch / "images.npy"

    def serve(self, path: Path, artifact: Artifact) -> Server:
        """Serve a file in a process that cannot import this package."""
        return Server(path, serving=FORMATS[artifact.format].serving, threads=self.threads)

    def serve_eager(self, model: nn.Module) -> Server:
        """Serve a torch module in a process that may import this package.

        Raises:
            UserError: the model cannot be pickled, or not unpickled there.
        """
        path = self.scratch / "eager.pt"
        advice = "Define its class in a module that can be imported."
        try:
            torch.save(model, path)
            return Server(path, serving="eager.py", threads=self.threads, own=True)
        except OSError:
            raise
        except UserError as error:
            raise UserError(f"{error} {advice}") from error
        except Exception as error:  # a class's own __reduce__ or __getstate__ may raise anything
            raise UserError(
                f"the model cannot be pickled for a separate process: {one_line(error)}. {advice}"
            ) from error

    def answers(self, path: Path, artifact: Artifact) -> NDArray[np.float32]:
        """Return the outputs of a fresh process for the images with a file.

        Raises:
            UserError: the process fails.
        """
        outputs = self.scratch / "outputs.npy"
        with self.serve(path, artifact) as server:
            server.ask("predict", images=str(self.images), outputs=str(outputs), batch=BATCH)
        answers: NDArray[np.float32] = np.load(outputs)
        return answers

    def measured(self, artifact: Artifact, answers: NDArray[np.float32]) -> Artifact:
        """Return an artifact with its errors and its accuracy."""
        error = float(np.abs(answers - self.expected).max())
        top = answers.argmax(1)
        return replace(
            artifact,
            largest_error=error,
            relative_error=error / max(float(np.abs(self.expected).max()), 1e-30),
            agreement=float((top == self.expected.argmax(1)).mean()),
            accuracy=None if self.labels is None else float((top == self.labels).mean()),
        )

    def check(self, artifact: Artifact) -> None:
        """Check that a file's outputs agree with the model's.

        Raises:
            UserError: they do not agree.
        """
        assert artifact.relative_error is not None and artifact.agreement is not None
        if not np.isfinite(artifact.relative_error):
            raise UserError("its outputs are not finite.")
        if artifact.quantize == "none":
            if artifact.relative_error > TOLERANCE:
                raise UserError(
                    f"its outputs are off by {artifact.relative_error:.1g} of the largest, more than {TOLERANCE:g}."
                )
            return
        if artifact.accuracy is None or self.labels is None:
            drop, what = 1 - artifact.agreement, "% of the images get another class than from the model"
        else:
            drop = float((self.expected.argmax(1) == self.labels).mean()) - artifact.accuracy
            what = "points of accuracy lost"
        if round(100 * drop, 9) > self.max_drop:  # 0.01 is not quite a hundredth
            raise UserError(f"{100 * drop:.1f} {what}, more than the max drop of {self.max_drop:g}.")


def eager_outputs(model: nn.Module, images: Tensor) -> NDArray[np.float32]:
    """Return a torch module's outputs in this process."""
    outputs: NDArray[np.float32] = torch.cat([run(model, part) for part in torch.split(images, BATCH)]).numpy()
    return outputs
