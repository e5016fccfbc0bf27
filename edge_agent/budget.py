"""What a device may spend: joules a day, and limits of its board. An order that it cannot afford is not begun.

What an order will take is foreseen from the device's own past: the most joules per picture that any of its last orders
of this kind took, times the order's pictures. For a number of tasks n that it has not had yet, the nearest greater
number it has had stands in, or the nearest smaller one m times n / m: since n tasks take a + b n, both are no less
than what it will be. The first order of its kind is taken as long as anything is left of the day: nothing is known.

What an order took is read off the meter from its start to its answer, whatever came of it: so orders that failed or
were called off count too, and waiting and the sending of an update afterwards do not. Where readings lack, what there
is stands for the rest. An order under way is in the book with what was foreseen, so that being killed is no way out.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from edge_agent.config import BudgetConfig
from edge_agent.days import Clocks, Day, first_day, follow
from models.wire.messages import (
    BoardInfo,
    BudgetInfo,
    Declined,
    DeployOrder,
    EvaluateOrder,
    OrderFailed,
    TrainOrder,
)

log = logging.getLogger(__name__)
Order = TrainOrder | EvaluateOrder | DeployOrder
_FILE = "budget.json"
#: Orders of a kind that are remembered, and kinds.
_PAST_KEPT, _KINDS_KEPT = 8, 64
#: When it is worth asking again, by what was in the way; and how far it must be from a limit to be out of the way.
HOT_S, EMPTY_S, UNDERVOLTAGE_S = 120.0, 1800.0, 600.0
COOLER_C, FULLER_PERCENT = 3.0, 3.0


class BudgetError(Exception):
    """A book that cannot be read or written; the text says what to do."""


class Kind(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Orders whose joules per picture compare: `work` is "train", "train+probe", "evaluate" or "deploy"."""

    work: str
    network: str
    size: int
    tasks: int


class Past(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Joules per picture of the last orders of a kind, oldest first."""

    kind: Kind
    joules: tuple[float, ...]


class Book(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is kept over restarts. `held_j` is foreseen for the order under way.

    `declined` orders would have taken `spared_j`, as was foreseen: those of the day, and all there ever were.
    """

    day: Day
    spent_j: float = 0.0
    held_j: float = 0.0
    past: tuple[Past, ...] = ()
    declined: int = 0
    spared_j: float = 0.0
    declined_ever: int = 0
    spared_ever_j: float = 0.0


@dataclass(frozen=True, slots=True)
class Pictures:
    """How many pictures an order of each kind goes through once."""

    train: int
    test: int
    val: int

    def of(self, order: Order) -> int:
        """Pictures that `order` puts through the network; 1 for a deployment, which has no pictures of its own."""
        if isinstance(order, TrainOrder):
            return max(1, self.train * order.settings.epochs)
        if isinstance(order, EvaluateOrder):
            return max(1, self.val if order.side == "val" else self.test)
        return 1


def kind_of(order: Order) -> Kind:
    """What an order's joules depend on."""
    if isinstance(order, DeployOrder):
        return Kind("deploy", "", 0, 1)
    probing = isinstance(order, TrainOrder) and order.probe_every > 0
    work = "evaluate" if isinstance(order, EvaluateOrder) else "train+probe" if probing else "train"
    return Kind(work, order.network, order.size, len(order.tasks))


def foresee(past: Sequence[Past], kind: Kind, pictures: int) -> float | None:
    """Joules that an order of `kind` will take at most, as far as the past tells; None when it tells nothing."""
    alike = {
        each.kind.tasks: max(each.joules)
        for each in past
        if (each.kind.work, each.kind.network, each.kind.size) == (kind.work, kind.network, kind.size) and each.joules
    }
    if not alike:
        return None
    more = [n for n in alike if n >= kind.tasks]
    if more:
        return alike[min(more)] * pictures
    nearest = max(alike)
    return alike[nearest] * pictures * kind.tasks / nearest


def remember(past: tuple[Past, ...], kind: Kind, joules_per_picture: float) -> tuple[Past, ...]:
    """The past with one more order; the kind that has not come for longest is forgotten."""
    before = next((each.joules for each in past if each.kind == kind), ())
    others = tuple(each for each in past if each.kind != kind)
    return (*others, Past(kind, (*before, joules_per_picture)[-_PAST_KEPT:]))[-_KINDS_KEPT:]


def taken_j(energy_j: float | None, coverage: float) -> float | None:
    """Joules of a whole window from those of the covered share of it; None where nothing is known."""
    return energy_j / coverage if energy_j is not None and coverage > 0 else None


class Budget:
    """Keeps the book of one device. Everything it is asked is answered for the moment of asking."""

    def __init__(self, config: BudgetConfig, pictures: Pictures, clocks: Clocks, state_dir: Path) -> None:
        """Raises BudgetError when there is a book that cannot be read: to begin a new one would be a second budget."""
        self._config, self._pictures, self._clocks = config, pictures, clocks
        self._path = state_dir / _FILE
        self._hot = self._empty = False
        found = self._read()
        # An order that was under way when the agent was killed took, for all that is known, what was foreseen.
        self.book = msgspec.structs.replace(found, spent_j=found.spent_j + found.held_j, held_j=0.0)
        self._turn_page()

    @property
    def limited(self) -> bool:
        """Whether anything is limited at all."""
        return self._config != BudgetConfig()

    def blind(self, board: BoardInfo) -> tuple[str, ...]:
        """Limits that have no effect, since the board does not tell what they limit."""
        config, found = self._config, list[str]()
        if config.max_temperature_c is not None and board.temperature_c is None:
            found.append("max_temperature_c is set, but this board tells no temperature")
        if config.min_battery_percent is not None and board.battery_percent is None:
            found.append("min_battery_percent is set, but this board tells of no battery")
        return tuple(found)

    def refusal(self, order: Order, board: BoardInfo) -> OrderFailed | None:
        """Why `order` cannot be afforded now, as its answer, or None. A deployment is always taken: it is small, and
        without it what was spent on the model would be lost.
        """
        if isinstance(order, DeployOrder):
            return None
        self._turn_page()
        predicted_j = foresee(self.book.past, kind_of(order), self._pictures.of(order))
        reason, again_after_s = self._in_the_way(board)
        limit_j = self._config.joules_per_day
        if not reason and limit_j is not None and predicted_j is not None and self.spent_j + predicted_j > limit_j:
            left = f"{limit_j - self.spent_j:.0f} of the day's {limit_j:.0f} J are left"
            reason, again_after_s = f"it would take {predicted_j:.0f} J, {left}", self.book.day.left_s
        if not reason:
            return None
        book, spared_j = self.book, predicted_j or 0.0
        self._keep(
            msgspec.structs.replace(
                book,
                declined=book.declined + 1,
                spared_j=book.spared_j + spared_j,
                declined_ever=book.declined_ever + 1,
                spared_ever_j=book.spared_ever_j + spared_j,
            )
        )
        said = f"this agent cannot afford it: {reason}; it may be asked again in {again_after_s:.0f} s"
        return OrderFailed(order.key, said[:1000], declined=Declined(again_after_s, predicted_j))

    def begin(self, order: Order) -> None:
        """`order` is being worked on."""
        foreseen = foresee(self.book.past, kind_of(order), self._pictures.of(order))
        self._keep(msgspec.structs.replace(self.book, held_j=foreseen or 0.0))

    def end(self, order: Order, energy_j: float | None, whole: bool) -> None:
        """It has come to its end and took `energy_j`; None where nothing says so, and then what was foreseen counts.

        `whole`: it was done, so that it tells what another one of its kind will take.
        """
        book = self.book
        if energy_j is None or not math.isfinite(energy_j):
            taken_j, past = book.held_j, book.past
        else:
            taken_j, past = max(0.0, energy_j), book.past
            if whole:
                past = remember(past, kind_of(order), taken_j / self._pictures.of(order))
        self._turn_page()
        self._keep(msgspec.structs.replace(self.book, spent_j=self.book.spent_j + taken_j, held_j=0.0, past=past))

    @property
    def spent_j(self) -> float:
        """Joules of this day's orders, with what is foreseen for the one under way."""
        return self.book.spent_j + self.book.held_j

    def info(self, board: BoardInfo) -> BudgetInfo | None:
        """What the fleet is told; None where nothing is limited."""
        if not self.limited:
            return None
        self._turn_page()
        reason, again_after_s = self._in_the_way(board)
        return BudgetInfo(reason[:1000], again_after_s, self._config.joules_per_day, self.spent_j)

    def _in_the_way(self, board: BoardInfo) -> tuple[str, float]:
        """What keeps the device from any order at all, and how long that may last; an empty text where nothing does."""
        config, found = self._config, list[tuple[str, float]]()
        limit_j = config.joules_per_day
        if limit_j is not None and self.spent_j >= limit_j:
            found.append((f"the day's {limit_j:.0f} J are spent ({self.spent_j:.0f} J)", self.book.day.left_s))
        self._hot = _beyond(board.temperature_c, config.max_temperature_c, COOLER_C if self._hot else 0.0)
        if self._hot:
            found.append((f"{board.temperature_c or 0.0:.0f} C, the limit is {config.max_temperature_c:.0f} C", HOT_S))
        low, least = board.battery_percent, config.min_battery_percent
        self._empty = _beyond(_minus(low), _minus(least), FULLER_PERCENT if self._empty else 0.0)
        if self._empty:
            found.append((f"the battery is at {low or 0.0:.0f} %, the least is {least or 0.0:.0f} %", EMPTY_S))
        if config.refuse_undervoltage and board.undervoltage:
            found.append(("its supply's voltage is too low; use a stronger supply or a shorter cable", UNDERVOLTAGE_S))
        return "; ".join(text for text, _ in found), max((wait_s for _, wait_s in found), default=0.0)

    def _turn_page(self) -> None:
        day, new = follow(self.book.day, self._clocks)
        if new:
            self._keep(msgspec.structs.replace(self.book, day=day, spent_j=0.0, declined=0, spared_j=0.0))
        else:
            self.book = msgspec.structs.replace(self.book, day=day)

    def _keep(self, book: Book) -> None:
        self.book = book
        if not self.limited:
            return
        try:
            temporary = self._path.with_suffix(".tmp")
            temporary.write_bytes(msgspec.json.encode(book))
            os.replace(temporary, self._path)
        except OSError as error:
            log.warning("%s was not written, so a restart would not know what is spent: %s", self._path, error)

    def _read(self) -> Book:
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=Book)
        except FileNotFoundError:
            return Book(first_day(self._clocks))
        except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
            if not self.limited:
                return Book(first_day(self._clocks))
            raise BudgetError(
                f"{self._path} does not say what is spent today ({error}); remove it to begin with nothing spent"
            ) from error


def _beyond(value: float | None, limit: float | None, further: float) -> bool:
    """Whether a value is above its limit, or has not yet come down from it by `further`."""
    return value is not None and limit is not None and value > limit - further


def _minus(value: float | None) -> float | None:
    return None if value is None else -value
