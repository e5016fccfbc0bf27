"""In which order blocks run: randomised by a seed, and balanced, so that no scheme has the cool mornings.

Williams' design (E. J. Williams, Aust. J. Sci. Res. A 2, 1949): every scheme is in every place equally often and
follows every other equally often, over n repeats for an even number n of schemes and 2n for an odd one.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Place:
    """One block: `scheme` in repeat `repeat`, as the `position`-th of that repeat; all count from 0."""

    repeat: int
    position: int
    scheme: str

    @property
    def folder(self) -> str:
        """The name of its folder; folders sort as the blocks ran."""
        return f"r{self.repeat:03d}-{self.position}-{self.scheme}"


def blocks(schemes: Sequence[str], repeats: int, seed: int) -> list[Place]:
    """Every block in its order. The first repeats do not depend on how many follow."""
    found: list[Place] = []
    square = williams(len(schemes))
    for repeat in range(repeats):
        cycle, row = divmod(repeat, len(square))
        rng = random.Random(f"{seed}/{cycle}")  # a string's seed is hashed the same everywhere
        names = rng.sample(list(schemes), len(schemes))
        rows = rng.sample(square, len(square))
        found += [Place(repeat, position, names[index]) for position, index in enumerate(rows[row])]
    return found


def williams(count: int) -> list[list[int]]:
    """Rows of the design for `count` treatments 0, 1, ..."""
    first = [0]
    low, high = 1, count - 1
    while len(first) < count:
        first.append(low)
        low += 1
        if len(first) < count:
            first.append(high)
            high -= 1
    rows = [[(value + shift) % count for value in first] for shift in range(count)]
    return rows + [row[::-1] for row in rows] if count % 2 and count > 1 else rows
