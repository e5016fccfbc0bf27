"""How far a grid is and when it will end, from predicted FLOPs and the speed measured so far. Pure: no clock."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from tools.experiment.plan import RunPlan

RunStanding = Literal["waiting", "running", "done", "diverged", "failed"]
#: A run that has closed all the rounds it was expected to is still not done.
_MOST = 0.99


@dataclass(frozen=True, slots=True)
class RunLine:
    """One run of the grid. `flops` and `rounds_expected` are predictions; `ended_s` is how long it took."""

    label: str
    flops: float
    rounds_expected: float
    standing: RunStanding = "waiting"
    rounds: int = 0
    began_s: float = 0.0
    took_s: float = 0.0
    text: str = ""

    @property
    def share(self) -> float:
        """How much of it is done, 0..1, by rounds."""
        if self.standing == "running":
            return min(_MOST, self.rounds / self.rounds_expected) if self.rounds_expected else 0.0
        return 0.0 if self.standing == "waiting" else 1.0


@dataclass(frozen=True, slots=True)
class Board:
    """All runs in their order; `slots` run at once."""

    lines: tuple[RunLine, ...]
    slots: int

    def with_line(self, index: int, **changes: object) -> Board:
        """The board with one line changed."""
        line = replace(self.lines[index], **changes)  # type: ignore[arg-type]
        return Board((*self.lines[:index], line, *self.lines[index + 1 :]), self.slots)

    @property
    def ended(self) -> int:
        """How many runs have ended, in whatever way."""
        return sum(line.standing in ("done", "diverged", "failed") for line in self.lines)

    def left_s(self, now_s: float) -> float | None:
        """Seconds until the last run ends; None while no speed is known.

        Only runs that were trained here tell a speed: not those that failed, since they did less than was predicted.
        """
        telling = [line for line in self.lines if line.standing in ("done", "running") and line.share > 0]
        spent_s = sum(line.took_s if line.standing == "done" else now_s - line.began_s for line in telling)
        done = sum(line.flops * line.share for line in telling)
        if not done or not spent_s:
            return None
        speed = done / spent_s
        left = [line.flops * (1 - line.share) / speed for line in self.lines if line.standing in ("waiting", "running")]
        return max(max(left, default=0.0), sum(left) / self.slots)


def board_of(plans: Sequence[RunPlan], slots: int) -> Board:
    """The board before anything runs."""
    lines = []
    for plan in plans:
        rounds = plan.predicted.work.get("rounds", 0.0) if plan.predicted is not None else float(plan.spec.rounds)
        flops = plan.predicted.flops.total if plan.predicted is not None else float(plan.spec.rounds)
        lines.append(RunLine(f"{plan.row}, seed {plan.seed}", flops, rounds))
    return Board(tuple(lines), slots)
