from __future__ import annotations

import pytest

from tools.bench.simulate import BENCHMARK


@pytest.mark.slow
def test_the_smallest_form_gives_every_kind_of_row() -> None:
    rows = {row.figure: row for row in BENCHMARK.run(True)}
    (share,) = [row for figure, row in rows.items() if figure.startswith("switch + load + average")]
    assert share.bound is not None
    assert 0 < share.value < 1
    parts = [row.value for figure, row in rows.items() if figure.strip().split(",")[0] in ("switch", "load", "average")]
    assert len(parts) == 3
    assert sum(parts) <= share.value
    rates = [row for row in rows.values() if row.unit == "1/min"]
    assert len(rates) == 2
    assert all(row.value > 0 for row in rates)
    lookahead = [row for figure, row in rows.items() if figure.startswith("lookahead")]
    assert [row.figure[-5:] for row in lookahead] == ["n = 1", "n = 2"]
