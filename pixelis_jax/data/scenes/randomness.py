"""Seeds, strings and the partition of the string space: everything random in a scene comes from here."""

from __future__ import annotations

import hashlib
import itertools

import numpy as np

from pixelis_jax.data.scenes.scene import Split

ALPHABET = "ACDEFHKLMNPRTUWXY379"
"""Letters and digits without look-alikes (no A/4, B/8, G/6, I/1/J, O/0/Q, S/5, V/W, Z/2 pairs)."""

# Of 20 parts of the string space: a string belongs to exactly one split.
_PARTS: dict[Split, range] = {
    "train": range(0, 14), "val": range(14, 16), "test": range(16, 18), "shift": range(18, 20),
}  # fmt: skip


def generator(family: str, split: Split, index: int, seed: int) -> np.random.Generator:
    """The generator of one scene; the four arguments decide everything."""
    digest = hashlib.sha256(f"{family}/{split}/{index}/{seed}".encode()).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest[:16], "little")))


def split_of(string: str) -> Split:
    """The split that may show a string."""
    part = hashlib.sha256(string.encode()).digest()[0] % 20
    return next(split for split, parts in _PARTS.items() if part in parts)


def random_strings(rng: np.random.Generator, split: Split, count: int) -> list[str]:
    """Different strings of 4 characters that belong to a split; no two neighbours are equal, for readers merge such pairs."""
    found: list[str] = []
    while len(found) < count:
        string = "".join(ALPHABET[position] for position in rng.integers(len(ALPHABET), size=4))
        merges = any(one == two for one, two in itertools.pairwise(string))
        if not merges and split_of(string) == split and string not in found:
            found.append(string)
    return found


def pick(rng: np.random.Generator, items: tuple[str, ...], count: int) -> list[str]:
    """`count` different items in random order."""
    return [items[position] for position in rng.permutation(len(items))[:count]]
