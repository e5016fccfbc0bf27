"""What a round knows while it is under way, and what is left of it in the record. Frozen, as the rest of the state."""

from __future__ import annotations

import math
from typing import Literal

import msgspec

from aggregator.affinity import Matrix
from models.energy import EnergySummary, EnergyTotal
from models.masking.agreement import Masks
from models.wire.messages import BlobRef, BoardInfo, Masking, MaskShares, UnmaskReport


class DroppedAgent(msgspec.Struct, frozen=True):
    """An agent whose order of this round came to nothing, and why. `diverged`: its training was not finite.

    `spared`: it declined; of each agent only its last such word is kept, however often it was asked.
    """

    agent: str
    reason: str
    diverged: bool = False
    spared: bool = False


#: Entries of one agent that a round or an evaluation under way keeps: one that comes and goes may do so for weeks.
MAX_DROPPED_EACH = 20


def noted(dropped: tuple[DroppedAgent, ...], entry: DroppedAgent) -> tuple[DroppedAgent, ...]:
    """`dropped` with one more entry, of which the agent's oldest goes if it has many. Diverged ones are counted: they
    stay. An agent that declines again and again, as a hot board does for hours, is there once for that.
    """
    if entry.spared:
        dropped = tuple(old for old in dropped if not (old.spared and old.agent == entry.agent))
    same = [index for index, each in enumerate(dropped) if each.agent == entry.agent and not each.diverged]
    if len(same) >= MAX_DROPPED_EACH:
        dropped = (*dropped[: same[0]], *dropped[same[0] + 1 :])
    return (*dropped, entry)


class LateUpdate(msgspec.Struct, frozen=True):
    """An update that came after its order was closed, over how many samples, and why it does not count."""

    agent: str
    samples: int
    reason: str


class LossSum(msgspec.Struct, frozen=True):
    """Summed loss over `samples` samples."""

    loss_sum: float = 0.0
    samples: int = 0


class Contribution(msgspec.Struct, frozen=True, gc=False):
    """One update that counts in a round. The blob itself is in the store.

    `staleness`: how many models were made between the one it began with and the one it counts for (0 unless buffered).
    """

    agent: str
    update_sha256: str
    samples: int
    staleness: int = 0

    @property
    def weight(self) -> float:
        """Its weight in the average: its samples, the fewer the more it is behind (FedBuff, section 5)."""
        return self.samples / math.sqrt(1 + self.staleness)


class AgentAffinity(msgspec.Struct, frozen=True):
    """One client's affinity of one round: sums `[source, target]` over its `batches` probed batches."""

    agent: str
    batches: int
    sums: Matrix


class AgentBoards(msgspec.Struct, frozen=True):
    """How an agent's board was at the start and at the end of an order, and what of it makes figures doubtful."""

    agent: str
    start: BoardInfo
    end: BoardInfo
    flags: tuple[str, ...] = ()


class MaskedRound(msgspec.Struct, frozen=True):
    """One attempt at a round whose updates come masked, from its first order until the sum is open.

    `shares` came with the updates that are here, by agent. Then `asked` are those with an open order to help to take
    the masks off, `answers` what others said, and `failures` counts what came to nothing, by agent. `tried` answers did
    not open the seeds that those in `bad` dealt. `opened` are the masks that are left on the sum.
    """

    masking: Masking
    shares: dict[str, MaskShares] = {}
    asked: tuple[str, ...] = ()
    answers: dict[str, UnmaskReport] = {}
    failures: dict[str, int] = {}
    tried: int = 0
    bad: tuple[str, ...] = ()
    opened: Masks | None = None


class Round(msgspec.Struct, frozen=True):
    """A round under way. `open` are the agents whose order is queued or sent; `tried` all that were ever ordered.

    Received updates stay when a further attempt is made: the base is the same and nobody who contributed is asked
    again, so each counts once. `started` is False until the present attempt's orders exist.
    `deadline_at` is `deadline_s` after the last chosen agent's order was sent; replacements do not move it.
    `weights` are the reports' loss weights times their samples, summed; empty where GradNorm does not weight them.
    `rejected` are updates that came and do not count: they go when the round does, not at once, because an agent that
    trains again from the same seed makes the same bytes. `spared` are the attempts in which an agent declined for
    want of joules, or the job was paused: they are nobody's failure. `attempts` are the numbers of orders that came
    back smaller, by agent, where they are not the round's: no two orders have the same key. `energy` sums what the
    counted reports cost, `boards` are their boards. `late` came too late to count. `masked` is there where updates are
    masked; then no update outlives its attempt, and `told` are agents that can take no part in another attempt, because
    they have told shares in an earlier one, would not tell them, or have dealt such as open nothing.
    """

    round: int
    started_at: float
    attempt: int = 0
    started: bool = False
    open: tuple[str, ...] = ()
    tried: tuple[str, ...] = ()
    contributions: tuple[Contribution, ...] = ()
    losses: dict[str, LossSum] = {}
    weights: tuple[float, ...] = ()
    affinities: tuple[AgentAffinity, ...] = ()
    dropped: tuple[DroppedAgent, ...] = ()
    rejected: tuple[str, ...] = ()
    deadline_at: float | None = None
    spared: tuple[int, ...] = ()
    attempts: dict[str, int] = {}
    energy: EnergyTotal = EnergyTotal()
    boards: tuple[AgentBoards, ...] = ()
    late: tuple[LateUpdate, ...] = ()
    masked: MaskedRound | None = None
    told: tuple[str, ...] = ()


def diverged_on(current: Round) -> dict[str, str]:
    """Agents on which a round's training diverged, by their own word, with what each said last. One that says it again
    and again is one: else it could end a job alone.
    """
    return {entry.agent: entry.reason for entry in current.dropped if entry.diverged}


def has_diverged(current: Round, needed: int, asked: int) -> bool:
    """Whether a round is given up because training diverges: as many as a model needs say so, and most of the `asked`,
    so that a few that lie do not end a job whose quorum is small.
    """
    return len(diverged_on(current)) >= max(needed, asked // 2 + 1)


class Evaluation(msgspec.Struct, frozen=True):
    """An evaluation under way of the model that round `made_by` made. `final`: the job waits for it.

    `round` is the number in its orders. An order's key has no room for the side, so that of an evaluation on validation
    points is one more than its model's: a number that no test evaluation of the split has, for only the last model is
    validated.
    """

    round: int
    model: BlobRef
    final: bool
    attempt: int = 0
    started: bool = False
    open: tuple[str, ...] = ()
    asked: tuple[str, ...] = ()
    reported: tuple[str, ...] = ()
    losses: dict[str, LossSum] = {}
    samples: int = 0
    dropped: tuple[DroppedAgent, ...] = ()
    last_fault: str = ""
    side: Literal["test", "val"] = "test"
    spared: tuple[int, ...] = ()
    attempts: dict[str, int] = {}

    @property
    def made_by(self) -> int:
        """The round whose model is evaluated."""
        return self.round - (self.side == "val")


class RoundRecord(msgspec.Struct, frozen=True):
    """A closed round as the record shows it. Losses are means over samples, by task.

    `test_losses` are of the `test_samples` held-out samples of `test_agents`; all three are empty where the round's
    model was not evaluated. `val_losses` are of validation points, after the last round of a split whose scheme asks.
    `loss_weights` are the means over samples that GradNorm left, by task; `affinities` each client's of a probed round.
    Agents that were lost in its evaluation are among `dropped`, with a reason that says so. `energy` is what the
    counted train reports cost, over all their phases (None in records of older releases); `boards` are their boards,
    and `flags` what makes the round's joules or its duration doubtful. `staleness` is that of each agent's update where
    rounds are buffered. `late` are updates from its model that came too late to count, then or since.
    """

    round: int
    attempt: int
    agents: tuple[str, ...]
    samples: int
    lr: float
    train_losses: dict[str, float]
    test_losses: dict[str, float]
    wall_s: float
    dropped: tuple[DroppedAgent, ...]
    test_agents: tuple[str, ...] = ()
    test_samples: int = 0
    loss_weights: dict[str, float] = {}
    val_losses: dict[str, float] = {}
    affinities: tuple[AgentAffinity, ...] = ()
    energy: EnergySummary | None = None
    boards: tuple[AgentBoards, ...] = ()
    flags: tuple[str, ...] = ()
    staleness: tuple[int, ...] = ()
    late: tuple[LateUpdate, ...] = ()
