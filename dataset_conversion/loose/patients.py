"""Which cases are of one patient, where folders say so."""

import re
from collections import Counter
from collections.abc import Sequence
from itertools import takewhile

from dataset_conversion.loose.arrange import Arranged

__all__ = ["patients_of"]

LEAST_FOLDERS = 3
MOST_CASES = 30
"""In one folder, on average; more are no visits of a patient."""


def patients_of(cases: Sequence[Arranged]) -> dict[str, str]:
    """Return the patient of each case if all lie in numbered folders, and several in some of them; else none.

    ``p1/a/t1.nii`` and ``p1/b/t1.nii`` are two scans of p1; folders like ``benign/`` are no patients.
    """
    folders = [case.scans[0].parts[:-1] for case in cases]
    levels = zip(*folders, strict=False)
    depth = sum(1 for _ in takewhile(lambda level: len(set(level)) == 1, levels))
    names = ["/".join(parts[depth : depth + 1]) for parts in folders]
    counts = Counter(names)
    is_patient = all(re.search(r"\d", name) for name in counts)
    several = max(counts.values()) > 1 and len(cases) <= MOST_CASES * len(counts)
    if not is_patient or not several or len(counts) < LEAST_FOLDERS:
        return {}
    return {case.id: name for case, name in zip(cases, names, strict=True)}
