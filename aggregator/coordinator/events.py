"""What can happen to the coordinator. Events are journalled, so every field must survive MessagePack.

The service checks before it raises an event: that the sender of a report is the agent its key names, and that an
update was fetched, matches its hash and is like the model (else it raises `OrderFailed` instead).
"""

from __future__ import annotations

from typing import Literal

import msgspec

from models.wire import messages
from models.wire.job import JobSpec

Effect = Literal["prepare", "average", "export"]


class Event(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="event"):
    """Base of all events; the tag is the class's name."""


class AgentSeen(Event):
    """An agent is online. Another `boot` than before means that its open order is lost."""

    agent: str
    boot: str
    capabilities: messages.Capabilities


class AgentLost(Event):
    """An agent went offline, or cannot be talked to."""

    agent: str
    reason: str


class JobSubmitted(Event):
    """Start `spec` as job `job`."""

    job: str
    spec: JobSpec


class JobCancelled(Event):
    """Somebody ends the job."""

    job: str
    reason: str = ""


class ModelReady(Event):
    """The model that round `round` of the split starts from: `PrepareModel.round`, or `Average.round + 1`."""

    job: str
    split: str
    round: int
    model: messages.BlobRef


class TrainReported(Event):
    """A train order's report; its update is at hand and valid, unless `why_unwanted(state, report.key)` says why not."""

    report: messages.TrainReport


class EvaluateReported(Event):
    """An evaluate order's report."""

    report: messages.EvaluateReport


class Deployed(Event):
    """A bundle is active on an agent."""

    report: messages.DeployReport


class OrderFailed(Event):
    """The agent refuses or failed, or its update was refused here. `final`: not to be asked for this again."""

    key: messages.OrderKey
    reason: str
    final: bool = False
    energy: tuple[messages.PhaseEnergy, ...] = ()


class SplitBundle(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The exported bundle of one split."""

    split: str
    manifest: messages.BlobRef
    files: tuple[messages.BundleFile, ...]


class BundlesReady(Event):
    """All bundles of a job are exported; one for each split of the `Export`."""

    job: str
    bundles: tuple[SplitBundle, ...]


class EffectFailed(Event):
    """`PrepareModel`, `Average` or `Export` could not be done. `split` is empty for an export."""

    job: str
    split: str
    what: Effect
    reason: str


class Tick(Event):
    """Time has passed; deadlines are looked at. Needed no more often than `next_deadline(state)` says."""


class Restarted(Event):
    """The aggregator runs again after the journal was replayed: open orders are sent again with their full time.

    Its actions are those of `resume`.
    """


AnyEvent = (
    AgentSeen
    | AgentLost
    | JobSubmitted
    | JobCancelled
    | ModelReady
    | TrainReported
    | EvaluateReported
    | Deployed
    | OrderFailed
    | BundlesReady
    | EffectFailed
    | Tick
    | Restarted
)
