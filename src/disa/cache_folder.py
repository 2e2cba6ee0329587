"""The cache folder, for files that disa can recreate."""

import os
import sys
from pathlib import Path


def cache_folder() -> Path:
    """The folder in the variable `DISA_CACHE`, or `disa` in the cache folder of the system."""
    chosen = os.environ.get("DISA_CACHE")
    if chosen:
        return Path(chosen)
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "disa"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "disa"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "disa"
