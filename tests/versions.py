"""Run tests of the core under other versions of torch and Python, each in an environment of its own.

    python tests/versions.py 2.6 2.9@3.13 --tests tests/layers

runs tests/layers under torch 2.6 and this Python, then under torch 2.9 and Python 3.13. The environments are kept in
``.venv-torch<version>``. One that cannot be built is skipped with a line that says why; a failing test fails the run.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
CORE = tuple(f"tests/{room}" for room in ("statistics", "ops", "rules", "functional", "layers", "surgery"))
TOOLS = ("pytest", "pytest-timeout", "pytest-xdist", "hypothesis", "safetensors")
BOUND_TO_TORCH = ("torch", "torchao", "triton", "sympy")
"""What each torch demands in a version of its own."""


class NoEnvironment(Exception):
    """An environment cannot be had here; the message says why, in one line."""


@dataclass(frozen=True, kw_only=True)
class Version:
    """A version of torch, and of Python: None takes the one that runs this script."""

    torch: str
    python: str | None

    @classmethod
    def parse(cls, text: str) -> Version:
        """Read ``2.9`` or ``2.9@3.13``."""
        torch, _, python = text.partition("@")
        return cls(torch=torch, python=python or None)

    @property
    def folder(self) -> Path:
        return ROOT / f".venv-torch{self.torch}"

    def __str__(self) -> str:
        return f"torch {self.torch}, Python {self.python or sys.version.split()[0]}"


def find_python(version: str | None) -> str:
    """Find the interpreter of a Python version on the path or among pyenv's."""
    if version is None:
        return sys.executable
    kept = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    candidates = [shutil.which(f"python{version}"), *sorted(map(str, kept.glob(f"{version}.*/bin/python")))]
    for candidate in filter(None, candidates):  # pyenv has a command on the path for versions that are not chosen, too
        if subprocess.run([candidate, "-c", ""], capture_output=True, check=False).returncode == 0:
            return candidate
    raise NoEnvironment(f"python{version} is not installed")


def build(version: Version, *, minutes: float) -> Path:
    """Give the version's interpreter, from the environment that is there or a new one; no step may take longer."""
    python, ready = version.folder / "bin" / "python", version.folder / ".ready"
    needs = [ROOT / "pyproject.toml", ROOT / "constraints.txt", Path(__file__)]
    if ready.exists() and ready.stat().st_mtime > max(path.stat().st_mtime for path in needs):
        return python
    attempt([find_python(version.python), "-m", "venv", "--clear", str(version.folder)], minutes=minutes)
    constraints = version.folder / "constraints.txt"
    lines = (ROOT / "constraints.txt").read_text().splitlines(keepends=True)
    constraints.write_text("".join(line for line in lines if line.partition("==")[0] not in BOUND_TO_TORCH))
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-cache-dir"]
    what = ("--no-compile", "--editable", str(ROOT), f"torch=={version.torch}.*", *TOOLS)
    attempt([*pip, "--constraint", str(constraints), *what], minutes=minutes)
    ready.touch()
    return python


def attempt(command: Sequence[str], *, minutes: float) -> None:
    """Run a step of building an environment.

    Raises:
        NoEnvironment: it fails, or takes too long.
    """
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=60 * minutes)
    except subprocess.CalledProcessError as error:
        raise NoEnvironment((error.stderr or error.stdout).strip().splitlines()[-1]) from None
    except subprocess.TimeoutExpired:
        raise NoEnvironment(f"not installed within {minutes:g} minutes") from None


def run_tests(python: Path, arguments: Sequence[str]) -> int:
    """Run pytest; give its exit status."""
    quiet = ("-q", "--numprocesses", "2", "--dist", "loadfile", "-p", "no:cacheprovider")
    environment = os.environ | {"OMP_WAIT_POLICY": "passive"}
    return subprocess.run(
        [python, "-m", "pytest", *quiet, *arguments], cwd=ROOT, env=environment, check=False
    ).returncode


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("versions", nargs="+", type=Version.parse)
    parser.add_argument("--minutes", type=float, default=15, help="the longest that an environment may take to install")
    parser.add_argument(
        "--tests", nargs=argparse.REMAINDER, default=CORE, help="what pytest gets; the whole core if not given"
    )
    arguments = parser.parse_args()
    failed = False
    for version in arguments.versions:
        start = time.monotonic()
        try:
            python = build(version, minutes=arguments.minutes)
        except NoEnvironment as reason:
            print(f"{version}: skipped, no environment: {reason}", flush=True)
            continue
        print(f"{version}: environment ready after {time.monotonic() - start:.0f} s", flush=True)
        failed |= run_tests(python, arguments.tests) != 0
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
