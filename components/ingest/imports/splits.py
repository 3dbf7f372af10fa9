"""Which split of a data set a file belongs to, by its name, as Hugging Face's `datasets` finds it out. Pure."""

from __future__ import annotations

import re

TRAIN = "train"
_NAMES = {
    TRAIN: ("train", "training"),
    "validation": ("validation", "valid", "dev", "val"),
    "test": ("test", "testing", "eval", "evaluation"),
}
_SPLIT = {name: split for split, names in _NAMES.items() for name in names}


def split_of(name: str) -> str:
    """Return the split of a file; what names none is for training.

    The file's own name counts before its folders': ``data/test-00000-of-00001.parquet`` and ``test/part.arrow`` are of
    the split ``test``, ``contest.parquet`` is of none.
    """
    for part in reversed(name.lower().split("/")):
        found = [_SPLIT[word] for word in re.split(r"[\W_\d]+", part) if word in _SPLIT]
        if found:
            return found[0]
    return TRAIN
