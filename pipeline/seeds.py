"""The one derivation of random draws: a seed for every purpose and sample, from nothing but their names.

A draw of training is a function of (run seed, purpose, epoch, sample id) or of (run seed, purpose, global step,
micro-batch index), never of rank, process, clock or earlier draws: only then does a resumed run, or one with another
number of workers, repeat it. Imports the standard library alone, because the decode child loads it at its start.
"""

from __future__ import annotations

import hashlib
import json


def derive_seed(seed: int, purpose: str, *what: int | str) -> int:
    """A 63-bit seed, as torch's and numpy's generators take it: the same on every machine and in every version.

    Args:
        purpose: what is drawn ("crop", "mask", ...), so that draws for one purpose are independent of all others.
        what: whom it is drawn for: epoch and sample id, or global step and micro-batch index.
    """
    # JSON keeps 1 and "1" apart and marks where a part ends, so that no two lists of names are one text.
    name = json.dumps([seed, purpose, *what])
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little") >> 1
