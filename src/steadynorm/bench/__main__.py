"""``python -m steadynorm.bench``: the bench alone, which needs no package of the lab but tyro."""

import sys
from importlib.util import find_spec

if find_spec("tyro") is None:
    sys.exit("steadynorm: not installed: tyro. Run: pip install tyro")

from steadynorm.bench.commands import COMMANDS, SUMMARY
from steadynorm.commands import run_command

if __name__ == "__main__":
    run_command(COMMANDS, prog="python -m steadynorm.bench", description=SUMMARY)
