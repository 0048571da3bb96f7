"""Randomness as a pure function of names and counters, so that there is no generator state to save.

Element i of phase p of a run with seed s is always drawn from ``generator(s, p, i)``: resuming at any step or
changing the number of workers, draws the same numbers.
"""

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

__all__ = ["fold_in", "generator", "seeded"]


def fold_in(*parts: int | str) -> int:
    """Return a 63-bit seed that depends on every part and on their order, equal on every machine."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def generator(*parts: int | str) -> np.random.Generator:
    """Return a NumPy generator seeded by ``fold_in(*parts)``."""
    return np.random.default_rng(fold_in(*parts))


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed the global generators of NumPy and `random` inside the block and restore them afterwards.

    Needed around libraries that draw from global state, batchgenerators among them.
    """
    numpy_state, python_state = np.random.get_state(), random.getstate()
    np.random.seed(seed % 2**32)
    random.seed(seed)
    try:
        yield
    finally:
        np.random.set_state(numpy_state)
        random.setstate(python_state)
