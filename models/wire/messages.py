"""Every message of protocol 1. Tensors and records never ride in messages: they are blobs, named by `BlobRef`.

Direction is fixed by the topic (see `topics`); the codec rejects a message that does not belong on its topic.
All figures are SI; losses and affinities are sums and counts where they are averaged later, so that weights are exact.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from models.wire.job import JobSpec, TrainSettings, UpdateDtype

Sha256 = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]
Identifier = Annotated[str, Meta(pattern=r"^[a-zA-Z0-9][a-zA-Z0-9_.-]{0,63}\Z")]
Count = Annotated[int, Meta(ge=0)]
#: What is added up: a million of the largest still make a number that MessagePack holds.
Amount = Annotated[int, Meta(ge=0, le=2**44)]
Phase = Literal["train", "affinity", "communicate", "wait", "evaluate"]
EnergyState = Literal["measured", "calibrated", "estimated", "partial", "missing"]
JobState = Literal["submitted", "merging", "training", "continuing", "exporting", "deployed", "failed", "cancelled"]
Reason = Annotated[str, Meta(max_length=1000)]
Flag = Annotated[str, Meta(max_length=64)]
#: An X25519 public key, a seed of a mask, or the SHA-256 by which one is known again.
Bytes32 = Annotated[bytes, Meta(min_length=32, max_length=32)]
Voucher = Annotated[bytes, Meta(max_length=4096)]
#: Most agents whose updates are masked together: what they send each other grows with the square of it.
MOST_MASKED = 32


class Part(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Base of the structs that ride inside messages."""


class Message(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="type"):
    """Base of the messages themselves; the tag is the class's name."""


class BlobRef(Part, frozen=True):
    """A content-addressed blob: SHA-256 of the whole and of each chunk, so that a bad chunk is known on arrival."""

    sha256: Sha256
    size_bytes: Count
    chunk_bytes: Annotated[int, Meta(ge=1024)]
    chunks: tuple[Annotated[bytes, Meta(min_length=32, max_length=32)], ...]


class OrderKey(Part, frozen=True, gc=False):
    """Names one order; everything about it is idempotent by this key."""

    job: Identifier
    split: Identifier
    round: Count
    agent: Identifier
    attempt: Count
    kind: Literal["train", "evaluate", "deploy", "unmask"]


class PhaseEnergy(Part, frozen=True):
    """Joules of one phase of one order, and where they come from. `energy_j` is None when nothing could be said.

    How far to trust it: `coverage` is the share of the duration that the joules stand for, `uncertainty_j` how far
    they may be off to both sides, `max_gap_s` the longest time between two of the `n_samples` readings behind them.
    None: not told (an older agent) or not known. `flags` name what happened meanwhile ("throttled", "suspended").
    """

    phase: Phase
    duration_s: float
    cpu_s: float
    energy_j: float | None
    state: EnergyState
    source: str
    scope: str
    reason: str = ""
    coverage: Annotated[float, Meta(ge=0, le=1)] | None = None
    uncertainty_j: Annotated[float, Meta(ge=0)] | None = None
    n_samples: Amount = 0
    max_gap_s: Annotated[float, Meta(ge=0)] | None = None
    flags: Annotated[tuple[Flag, ...], Meta(max_length=32)] = ()


class TaskLoss(Part, frozen=True):
    """Summed loss of one task over `samples` samples."""

    task: str
    loss_sum: float
    samples: Amount


class AffinitySums(Part, frozen=True):
    """Sum over `batches` probed batches of affinity[source, target] (MAS, step 2); tasks in the order's order."""

    batches: Amount
    sums: tuple[tuple[float, ...], ...]


class BoardInfo(Part, frozen=True):
    """What a board says of itself at one instant; None and "" where it does not say.

    `throttled` names what slows it down at this instant (at the end of an order: or did at any look during it),
    `events` what has happened since it was started: an event that was not there before an order happened during it.
    `clocks`: "pinned" to one frequency, or "free".
    """

    power_mode: Annotated[str, Meta(max_length=64)] = ""
    temperature_c: float | None = None
    throttled: Annotated[tuple[Flag, ...], Meta(max_length=32)] = ()
    undervoltage: bool = False
    battery_percent: float | None = None
    clocks: Annotated[str, Meta(max_length=64)] = ""
    events: Annotated[tuple[Flag, ...], Meta(max_length=32)] = ()


class BudgetInfo(Part, frozen=True):
    """What a device may still spend. `refuses`: why it takes no order at all at present ("": it does).

    `again_after_s`: when it is worth asking again, counted from the message. `spent_j` is of the device's own day.
    `spent_state` says how well that is known: what an order under way may take is estimated.
    """

    refuses: Reason = ""
    again_after_s: Annotated[float, Meta(ge=0)] = 0.0
    joules_per_day: float | None = None
    spent_j: float = 0.0
    spent_state: EnergyState = "missing"


class Declined(Part, frozen=True):
    """An order that was not begun because the device cannot afford it. `predicted_j`: what it would have cost."""

    again_after_s: Annotated[float, Meta(ge=0)]
    predicted_j: float | None = None


class MaskedMember(Part, frozen=True):
    """One of the agents whose updates are masked together, with the key and the voucher that it told of itself."""

    agent: Identifier
    key: Bytes32
    voucher: Voucher = b""


class Masking(Part, frozen=True):
    """How the updates of one attempt at a round are masked, the same in the orders of all its agents.

    `members` are all of them, sorted by name; shares of `threshold` of them open a mask. An agent's update, scaled down
    to the L2 norm `clip_norm` if that is above 0, times its samples (1 if it is clipped) over `weight`, is sent in
    steps of a 2**31th of `bound`, beyond which no value of an update may be (`models.masking.fixed`). `terms` is the
    hash of all else that is the same in their orders (`models.masking.agreement.terms_of`).
    """

    attempt: Count
    members: Annotated[tuple[MaskedMember, ...], Meta(min_length=1, max_length=MOST_MASKED)]
    threshold: Annotated[int, Meta(ge=1)]
    bound: Annotated[float, Meta(gt=0)]
    weight: Annotated[int, Meta(ge=1)]
    terms: Bytes32
    clip_norm: Annotated[float, Meta(ge=0)] = 0.0


class MaskShares(Part, frozen=True):
    """What goes with a masked update, so that its masks can be taken off without its agent (`models.masking.shares`).

    `boxes[i]` is for member i alone: its shares of this agent's seeds, sealed. `commitments[i]` is the SHA-256 of the
    seed that this agent has with member i, and at its own place that of the seed which it has alone.
    """

    boxes: Annotated[tuple[Annotated[bytes, Meta(max_length=2048)], ...], Meta(max_length=MOST_MASKED)]
    commitments: Annotated[tuple[Bytes32, ...], Meta(max_length=MOST_MASKED)]


class Capabilities(Part, frozen=True):
    """What a device brings to a job. `val_samples` are pictures of its training buildings that it does not train on.

    `board` and `budget` are those of the moment at which it said so. `masking_key` is the X25519 public key by which
    others mask their updates together with its own; b"" where it does not. `masking_voucher`: that it is this
    device's, where it has an identity (`models.masking.vouching`).
    """

    labels: tuple[str, ...]
    train_samples: Amount
    test_samples: Amount
    energy_source: str
    energy_state: EnergyState
    cores: Count
    memory_bytes: Count
    val_samples: Amount = 0
    board: BoardInfo | None = None
    budget: BudgetInfo | None = None
    masking_key: Annotated[bytes, Meta(max_length=32)] = b""
    masking_voucher: Voucher = b""


# --- both ways -------------------------------------------------------------------------------------------------


class BlobWant(Message, frozen=True):
    """Asks the holder of a blob for the chunks in `missing` (half-open index ranges)."""

    sha256: Sha256
    missing: tuple[tuple[Count, Count], ...]


class BlobAck(Message, frozen=True):
    """The blob has arrived whole and its hash is right; the holder may forget it."""

    sha256: Sha256


class Chunk(Message, frozen=True):
    """One chunk of a blob, on the blob's own topic."""

    sha256: Sha256
    index: Count
    data: bytes


# --- agent -> aggregator ---------------------------------------------------------------------------------------


class Presence(Message, frozen=True):
    """Retained state of an agent or of the aggregator; the last will carries `online=False`."""

    sender: Identifier
    online: bool
    boot: str
    version: str
    capabilities: Capabilities | None = None


class Progress(Message, frozen=True):
    """How far an order is; for people, never for decisions."""

    key: OrderKey
    phase: Phase
    done: Count
    total: Count
    power_w: float | None = None
    power_state: EnergyState = "missing"


class Telemetry(Message, frozen=True):
    """What a device's meter saw since it told last, and how its board is; for those who watch, never for decisions.

    `until_s`: the end of that time on the device's own monotonic clock. `idle`: no order was worked on in it.
    """

    sender: Identifier
    boot: str
    until_s: float
    idle: bool
    energy: PhaseEnergy
    board: BoardInfo | None = None


class TrainReport(Message, frozen=True):
    """A finished train order. `update` is the delta to the base; the aggregator fetches it.

    `train_s`: seconds of training, affinity probes included. `bytes_up`: the update's size as it is offered, for at
    the time of the report none of it has been sent; chunks sent again are not counted. `bytes_down`: chunks of the
    base as they arrived, repeated ones included; 0 when it was here already. `loss_weights`: where GradNorm has left
    the tasks' weights, in the order's order of tasks; empty otherwise. `boards`: the board at its start and its end.
    `masked`: the update is masked, and this is what opens it together with those of the others.
    """

    key: OrderKey
    update: BlobRef
    samples: Amount
    losses: tuple[TaskLoss, ...]
    affinity: AffinitySums | None
    skipped: tuple[str, ...]
    skipped_total: Amount
    energy: tuple[PhaseEnergy, ...]
    bytes_up: Amount
    bytes_down: Amount
    train_s: float
    loss_weights: tuple[float, ...] = ()
    boards: Annotated[tuple[BoardInfo, ...], Meta(max_length=2)] = ()
    masked: MaskShares | None = None


class EvaluateReport(Message, frozen=True):
    """Losses of a model on the pictures that the order names. `boards`: the board at its start and its end."""

    key: OrderKey
    samples: Amount
    losses: tuple[TaskLoss, ...]
    skipped: tuple[str, ...]
    skipped_total: Amount
    energy: tuple[PhaseEnergy, ...]
    bytes_up: Amount
    bytes_down: Amount
    boards: Annotated[tuple[BoardInfo, ...], Meta(max_length=2)] = ()


class DeployReport(Message, frozen=True):
    """A bundle that is installed, verified and active on the agent."""

    key: OrderKey
    bundle_sha256: Sha256
    onnx_max_abs_err: float
    inference_ms: float
    energy: tuple[PhaseEnergy, ...]
    bytes_up: Amount
    bytes_down: Amount


class UnmaskReport(Message, frozen=True):
    """An agent's part in taking the masks off a sum: shares of 32 bytes, zeros where what it was sent was not sound.

    `selfs[i]` is of the seed that survivor i has alone; `pairs[j]`, of lost member j, are those of the seeds that it
    has with the survivors, one after the other.
    """

    key: OrderKey
    selfs: Annotated[tuple[Annotated[bytes, Meta(max_length=32)], ...], Meta(max_length=MOST_MASKED)]
    pairs: Annotated[tuple[Annotated[bytes, Meta(max_length=32 * MOST_MASKED)], ...], Meta(max_length=MOST_MASKED)]


class OrderFailed(Message, frozen=True):
    """The agent refuses or could not finish an order. `final` when trying again here is of no use.

    `diverged`: training came to losses or weights that are not finite, which is the job's doing and not the agent's.
    `declined`: it was not begun, for want of joules or for the board's sake; trying again later here is of use.
    `memory`: the trainer was killed or gave up for want of memory; the same with smaller batches may do.
    """

    key: OrderKey
    reason: Reason
    final: bool = False
    energy: tuple[PhaseEnergy, ...] = ()
    diverged: bool = False
    declined: Declined | None = None
    memory: bool = False


# --- aggregator -> agent ---------------------------------------------------------------------------------------


class TrainOrder(Message, frozen=True):
    """Train `tasks` from `base` for one round; probe the affinity every `probe_every` batches (0: never).

    For GradNorm only, and else empty, in the order of `tasks`: `loss_weights` to start from (empty: ones) and
    `reference_losses`, each task's mean loss at the job's beginning (empty: those of this order's first batch).
    `masking`: the update is to be sent masked.
    """

    key: OrderKey
    tasks: tuple[str, ...]
    network: str
    size: int
    base: BlobRef
    seed: int
    settings: TrainSettings
    probe_every: Count
    update_dtype: UpdateDtype
    max_skipped_share: float
    ttl_s: float
    loss_weights: tuple[float, ...] = ()
    reference_losses: tuple[float, ...] = ()
    masking: Masking | None = None


class EvaluateOrder(Message, frozen=True):
    """Evaluate `base` on held-out buildings (`test`) or on the training buildings' pictures put aside (`val`)."""

    key: OrderKey
    tasks: tuple[str, ...]
    network: str
    size: int
    base: BlobRef
    batch_size: int
    max_skipped_share: float
    ttl_s: float
    side: Literal["test", "val"] = "test"


class BundleFile(Part, frozen=True):
    """One file of a bundle; names are plain file names."""

    name: Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9_.-]{0,63}\Z")]
    blob: BlobRef


class BundleSeal(Part, frozen=True):
    """The aggregator's signature of a bundle, which stays with it on the device (`models.trust.signing`).

    `counter` rises with every bundle that is sealed, so that an older bundle is known as such.
    """

    counter: Count
    key: Sha256
    signature: Annotated[bytes, Meta(min_length=64, max_length=64)]


class DeployOrder(Message, frozen=True):
    """Install the bundle whose manifest is `manifest`; the manifest repeats each file's hash.

    `seal` is there where the fleet's orders are signed.
    """

    key: OrderKey
    manifest: BlobRef
    files: tuple[BundleFile, ...]
    ttl_s: float
    seal: BundleSeal | None = None


class UnmaskOrder(Message, frozen=True):
    """Help to take the masks off the sum of the updates of `survivors`; the other members' updates are not in it.

    `masking` is that of the train order. `boxes[i]` is what survivor i sealed for this agent.
    """

    key: OrderKey
    masking: Masking
    survivors: Annotated[tuple[Identifier, ...], Meta(max_length=MOST_MASKED)]
    boxes: Annotated[tuple[Annotated[bytes, Meta(max_length=2048)], ...], Meta(max_length=MOST_MASKED)]
    ttl_s: float


class CancelOrder(Message, frozen=True):
    """Stop working on an order; nothing is to be reported."""

    key: OrderKey


class Refused(Message, frozen=True):
    """What the sender sent was not used, and why (an invalid update, a protocol of another version)."""

    reason: Reason
    key: OrderKey | None = None


class Sealed(Message, frozen=True):
    """Another message to an agent, signed by the aggregator (Ed25519; `models.trust.signing` says over what).

    `body` is that message as it would go by itself. `counter` rises with every message that is sealed, and none is
    taken twice; after `expires_at` (seconds since 1970) it is not taken at all. `key` is the SHA-256 of the public key.
    """

    counter: Count
    expires_at: float
    key: Sha256
    body: bytes
    signature: Annotated[bytes, Meta(min_length=64, max_length=64)]


# --- aggregator <-> its workers --------------------------------------------------------------------------------


class WorkItem(Message, frozen=True):
    """One update to fetch into the store that aggregator and workers share, and to check against its base there.

    `item` names this giving of it: an update that is given out again has another one. `deadline_s`: time for all of it.
    `masked`: the update is one that hides its values, of which names and shapes alone are looked at.
    """

    item: Identifier
    key: OrderKey
    update: BlobRef
    base_sha256: Sha256
    deadline_s: Annotated[float, Meta(gt=0)]
    masked: bool = False


class WorkAnswer(Message, frozen=True):
    """How an item stands. "taken": a worker has begun; "done": the update is in the store, or cannot be used for
    `faults`; "declined": this worker cannot do it, which says nothing about the update. `norm`: the update's L2 norm.
    """

    item: Identifier
    state: Literal["taken", "done", "declined"]
    faults: Annotated[tuple[Reason, ...], Meta(max_length=16)] = ()
    norm: Annotated[float, Meta(ge=0)] = 0.0


# --- clients <-> aggregator ------------------------------------------------------------------------------------


class SubmitJob(Message, frozen=True):
    """Start a job; answered by `JobAccepted` or `Refused`."""

    request: Identifier
    spec: JobSpec


class CancelJob(Message, frozen=True):
    """End a job; answered by `JobAccepted` or `Refused`."""

    request: Identifier
    job: Identifier


class ShowJob(Message, frozen=True):
    """Ask for a job's whole record (JSON in a blob); answered by `JobRecord` or `RequestRefused`."""

    request: Identifier
    job: Identifier


class PauseJob(Message, frozen=True):
    """Give out no more of a job's orders until it is resumed; what is under way ends and counts. `JobAccepted`."""

    request: Identifier
    job: Identifier


class ResumeJob(Message, frozen=True):
    """Go on with a paused job; answered by `JobAccepted` or `Refused`."""

    request: Identifier
    job: Identifier


class ShowFleet(Message, frozen=True):
    """Ask how each device stands (JSON in a blob); answered by `FleetRecord` or `RequestRefused`."""

    request: Identifier


class Readmit(Message, frozen=True):
    """Take a device out of quarantine before its time; answered by `DeviceAccepted` or `RequestRefused`."""

    request: Identifier
    agent: Identifier


class JobAccepted(Message, frozen=True):
    """The request was taken."""

    request: Identifier
    job: Identifier


class RequestRefused(Message, frozen=True):
    """The request was not taken; every reason at once."""

    request: Identifier
    reasons: tuple[Reason, ...]


class JobRecord(Message, frozen=True):
    """Where the asked record is."""

    request: Identifier
    job: Identifier
    record: BlobRef


class FleetRecord(Message, frozen=True):
    """Where the asked record of the fleet is (`aggregator.guard.FleetStatus` as JSON)."""

    request: Identifier
    record: BlobRef


class DeviceAccepted(Message, frozen=True):
    """What was asked for a device is done."""

    request: Identifier
    agent: Identifier


class SplitStatus(Part, frozen=True):
    """How far one split is. `losses` are the latest held-out means by task."""

    split: Identifier
    tasks: tuple[str, ...]
    round: Count
    first_round: Count
    last_round: Count
    train_loss: float | None
    test_losses: dict[str, float]


class JobStatus(Message, frozen=True):
    """Retained, so that anyone who subscribes sees every job at once.

    `replayed`: some of its joules are those of a recorded trace.
    """

    job: Identifier
    spec: JobSpec
    state: JobState
    reason: str
    splits: tuple[SplitStatus, ...]
    total_loss: float | None
    energy_j: float | None
    energy_state: EnergyState
    deployed: Count
    updated_at: float
    paused: bool = False
    replayed: bool = False
