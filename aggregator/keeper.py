"""Which blobs the aggregator has and serves: those that orders name, and jobs' records, until nothing needs them.

A blob that the coordinator lets go may be in work all the same: two jobs alike make the same bytes, and an update
that is being looked at, or a model that is just being made, is named by an event that is still to come. So blobs go
when the work in hand is done, and only if nothing needs them then.
"""

from __future__ import annotations

import logging
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from models.link.transfer import BlobExchange
from models.wire.blobstore import BlobStore, BlobStoreError
from models.wire.chunks import make_ref
from models.wire.messages import BlobRef, DeployOrder, EvaluateOrder, TrainOrder, UnmaskOrder
from models.wire.topics import Topics

log = logging.getLogger(__name__)
#: Records that stay on offer; whoever asked for an older one asks again.
RECORDS_KEPT = 16
#: Stands for blobs whose names are not known yet: the outcome of work.
_OUTCOME = ""


class Keeper:
    """Offers blobs of `store` and lets them go. `live` names those that something outstanding needs."""

    def __init__(
        self, store: BlobStore, exchange: BlobExchange, topics: Topics, live: Callable[[], Collection[str]]
    ) -> None:
        self._store, self._exchange, self._topics, self._live = store, exchange, topics, live
        self._at_work: Counter[str] = Counter()
        self._let_go: set[str] = set()
        self._records: deque[str] = deque()

    @property
    def folder(self) -> Path:
        """Where files that a process needs for itself may be. It is on a real disk, as temporary files may not be, and
        emptied at the next start.
        """
        return self._store.incoming

    def offer_for(self, order: TrainOrder | EvaluateOrder | DeployOrder | UnmaskOrder) -> None:
        """Serve every blob that an order names; many orders share one blob, which is published once for all."""
        if isinstance(order, UnmaskOrder):
            return
        files = [file.blob for file in order.files] if isinstance(order, DeployOrder) else []
        for blob in (order.manifest if isinstance(order, DeployOrder) else order.base, *files):
            self._exchange.offer(blob, self._topics.download(blob.sha256))

    def keep_record(self, record: bytes) -> BlobRef:
        """Keep and serve a job's record, in place of the oldest of many. Raises BlobStoreError, BlobError."""
        ref = make_ref(record)
        self._store.put_bytes(record)
        self._exchange.offer(ref, self._topics.download(ref.sha256))
        if ref.sha256 not in self._records:
            self._records.append(ref.sha256)
        if len(self._records) > RECORDS_KEPT:
            self.forget((self._records.popleft(),))
        return ref

    @contextmanager
    def at_work(self, sha256: str = _OUTCOME) -> Iterator[None]:
        """Keep this blob during the body, and afterwards if it is needed then; without a name, keep all blobs."""
        self.hold(sha256)
        try:
            yield
        finally:
            self.release(sha256)

    def hold(self, sha256: str) -> None:
        """Keep this blob, and what there is of it, until `release` was called as often."""
        self._at_work[sha256] += 1

    def release(self, sha256: str) -> None:
        """Let a blob that was held go, unless it is needed."""
        self._at_work[sha256] -= 1
        if not self._at_work[sha256]:
            del self._at_work[sha256]
        self.forget((sha256,) if sha256 else ())

    def forget(self, sha256s: Collection[str]) -> None:
        """Let these blobs go, now or when the work in hand is done, unless they are needed."""
        self._let_go.update(sha256s)
        if not self._let_go or _OUTCOME in self._at_work:
            return
        needed = {*self._live(), *self._at_work, *self._records}
        going, self._let_go = self._let_go - needed, self._let_go & set(self._at_work)
        for sha256 in going:
            self._exchange.forget(sha256)
            try:
                self._store.discard(sha256)
            except BlobStoreError as error:
                log.warning("a blob stays here: %s", error)

    def clean(self) -> None:
        """Remove what the process before this one left behind. Raises BlobStoreError."""
        self._store.clean_incoming()
        self._store.prune(self._live(), 0)
