"""Chromium, as the machine has it: pages of the tests' own servers are opened in it, headless."""

import shutil
import sys

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")


def program() -> str | None:
    """Where it is."""
    return next((found for name in NAMES if (found := shutil.which(name))), None)


if __name__ == "__main__":  # `python tests/chromium.py` tells it: exit code 0 if it is there
    sys.exit(program() is None)
