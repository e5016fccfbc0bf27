"""What tests of all packages share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tools.broker import EmbeddedBroker


@pytest.fixture(scope="session")
def broker_url() -> Iterator[str]:
    """A real MQTT 5 broker on a free port, one for the whole session: tests use fleets and client ids of their own."""
    with EmbeddedBroker() as broker:
        yield broker.url
