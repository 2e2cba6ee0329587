"""Progress bars on the terminal."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def progress_bar(total: int, description: str, unit: str) -> Iterator[Callable[[int], None]]:
    """Yield a function that advances a progress bar, which is shown on terminals only."""
    from tqdm import tqdm

    with tqdm(total=total, desc=description, unit=unit, disable=not sys.stderr.isatty()) as bar:
        yield lambda count: bar.update(count) and None


@contextmanager
def image_progress(total: int) -> Iterator[Callable[[float], None]]:
    """A progress bar in images a second, which can advance by fractions of an image."""
    from tqdm import tqdm

    layout = "{desc}: {percentage:3.0f}%|{bar}| {n:.1f}/{total} [{elapsed}<{remaining}, {rate_fmt}]"
    with tqdm(
        total=total,
        desc="images",
        unit="image",
        disable=not sys.stderr.isatty(),
        bar_format=layout,
    ) as bar:
        yield lambda count: bar.update(count) and None
