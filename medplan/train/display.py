"""Progress of training: a bar on a terminal, a line now and then elsewhere."""

import logging
import sys
import time

__all__ = ["Display"]

logger = logging.getLogger(__name__)

SECONDS_BETWEEN_LINES = 30.0


class Display:
    """Shows finished steps out of all, and the time that is left.

    Args:
        num_steps: over all phases.
        first: steps that were finished before.
        shows: False on ranks that should keep quiet.
    """

    def __init__(self, num_steps: int, *, first: int, shows: bool) -> None:
        self._num_steps, self._first, self._shows = num_steps, first, shows
        self._start = self._last = time.monotonic()
        self._bar = None
        if shows and sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(total=num_steps, initial=first, unit="step", dynamic_ncols=True, leave=False)

    def step(self, done: int) -> None:
        """Say that `done` steps are finished."""
        if self._bar is not None:
            self._bar.update(done - self._bar.n)
            return
        now = time.monotonic()
        if self._shows and now - self._last >= SECONDS_BETWEEN_LINES:
            self._last = now
            seconds = (now - self._start) / (done - self._first) * (self._num_steps - done)
            logger.info("step %d of %d, about %s left", done, self._num_steps, _readable(seconds))

    def losses(self, means: dict[str, float]) -> None:
        """Show the latest losses beside the bar."""
        if self._bar is not None:
            self._bar.set_postfix({name: f"{value:.3g}" for name, value in list(means.items())[:4]})

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()


def _readable(seconds: float) -> str:
    minutes = int(seconds // 60)
    if minutes < 2:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"
