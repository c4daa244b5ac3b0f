"""``python -m steadynorm.bench``: the bench alone, which needs only tyro of the lab's packages."""

from steadynorm._overview import check_installed

check_installed(["tyro"], "tyro")

from steadynorm.bench.commands import COMMANDS, SUMMARY  # noqa: E402 (after the check, so that a missing package is one line)
from steadynorm.commands import run_command  # noqa: E402

if __name__ == "__main__":
    run_command(COMMANDS, prog="python -m steadynorm.bench", description=SUMMARY)
