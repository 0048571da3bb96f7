"""Progress of long work: a bar on a terminal, a line now and then in a log file."""

import logging
import sys
import time
from collections.abc import Iterable, Iterator, Sized
from typing import TypeVar

__all__ = ["track"]

T = TypeVar("T")

SECONDS_BETWEEN_LINES = 15.0

logger = logging.getLogger(__name__)


def track(items: Iterable[T], *, label: str, total: int | None = None) -> Iterator[T]:
    """Yield `items` unchanged and in order, while showing how far the work is.

    Args:
        items: anything that can be iterated; with ``concurrent.futures.as_completed(...)`` give `total` too.
        label: what is being done, as a noun ("fingerprint", "preprocessing ACDC").
        total: number of items, where `items` does not know its length.

    When standard error is a terminal a tqdm bar is drawn on it; else a line is logged (level INFO) at most
    every 15 seconds, and nothing at all for work that is done sooner.
    """
    count = len(items) if total is None and isinstance(items, Sized) else total
    if sys.stderr.isatty():
        from tqdm import tqdm

        yield from tqdm(items, desc=label, total=count, dynamic_ncols=True, leave=False)
        return
    yield from _logged(items, label, count)


def _logged(items: Iterable[T], label: str, total: int | None) -> Iterator[T]:
    start = last = time.monotonic()
    for done, item in enumerate(items):
        now = time.monotonic()
        if now - last >= SECONDS_BETWEEN_LINES and done:
            last = now
            if total:
                left = (now - start) / done * (total - done)
                logger.info("%s: %d of %d, about %.0f s left", label, done, total, left)
            else:
                logger.info("%s: %d done", label, done)
        yield item
