"""When progress is shown."""

from __future__ import annotations

import sys


def is_shown(show: bool | None) -> bool:
    """``show`` itself; for None whether there is a terminal or a notebook to show it in."""
    return sys.stderr.isatty() or "ipykernel" in sys.modules if show is None else show
