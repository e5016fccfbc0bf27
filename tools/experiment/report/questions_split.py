"""The protocol's questions on the split itself (Q3, Q4, Q6). A question's docstring is the rule the page shows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tools.experiment.report.agreement import Agreement, Choice, agreement, probed_row
from tools.experiment.report.claims import Answer, Claim, Outcome, below, plain, positive
from tools.experiment.report.partitions import Ranking, Standing, ranking, score_correlation, seed_noise, standing
from tools.experiment.report.questions import cost, difference, loss, more_splits, rivals, rule_of, sweeps
from tools.experiment.report.rows import Bench, Row, final_groups
from tools.experiment.report.stats import Interval, interval, paired, same_partition

#: Regret a split may have, as a share of worst - best.
REGRET_BELOW = 0.25
#: Adjusted Rand index from which splits count as alike.
ALIKE = 0.5


def initialisation(bench: Bench) -> Answer:
    """For every k that was run both ways: the same split trained from scratch has a higher loss than from the merged
    weights, be it for the rounds that remain after the merge or for all rounds; only seeds in which both trained the
    same groups count. Controls, shown and not counted: random splits from the merged weights (the mean over their
    draws), and all-in-one with a
    restarted learning rate, each against MAS (with its rate restarted too where that was run).
    """
    claims = []
    left_out: list[str] = []
    for scratch in bench.rows_of("split-from-scratch"):
        mas = bench.row("mas", scratch.splits)
        ours = {} if mas is None else mas.losses
        both = sorted(scratch.losses.keys() & ours.keys())
        same = [seed for seed in both if mas is not None and _same_groups(scratch, mas, seed)]
        left_out += [f"{scratch.label} seed {seed}" for seed in both if seed not in same]
        found = paired({seed: scratch.losses[seed] for seed in same}, ours)
        claims.append(Claim(f"{scratch.label} > merged weights", positive(found), found))
    if not claims:
        claims.append(Claim("scratch > merged weights", "missing", None))
    claims += _controls(bench)
    remark = f"left out for different groups: {', '.join(left_out)}" if left_out else ""
    return Answer("Q3", "Initialisation", rule_of(initialisation), tuple(claims), remark, {"left_out": left_out})


def _same_groups(first: Row, second: Row, seed: int) -> bool:
    return same_partition(final_groups(first.done[seed]), final_groups(second.done[seed]))


def _controls(bench: Bench) -> list[Claim]:
    restart = bench.row("all-in-one-restart")
    claims = []
    for mas in bench.rows_of("mas"):
        draws = [row for row in bench.rows_of("random-split") if row.splits == mas.splits]
        found = paired(mean_losses(draws), mas.losses)
        many = f" (mean of {len(draws)} draws)" if len(draws) > 1 else ""
        text = f"random split{many}, merged weights > {mas.label}"
        claims.append(Claim(text, positive(found), found, deciding=False))
    for mas in [*bench.rows_of("mas"), *bench.variants("mas", "lr_restarts")]:
        claims.append(difference(f"all-in-one, rate restarted > {mas.label}", restart, mas, deciding=False))
    return [claim for claim in claims if claim.estimate is not None]


def mean_losses(rows: Sequence[Row]) -> dict[int, float]:
    """Mean total loss over rows by seed, of the seeds that all of them have."""
    losses = [row.losses for row in rows]
    shared = set.intersection(*(set(found) for found in losses)) if losses else set()
    return {seed: sum(found[seed] for found in losses) / len(losses) for seed in sorted(shared)}


def split_quality(bench: Bench) -> Answer:
    """All partitions into g groups are ranked by the measured losses of the every-group runs, for each g. The one MAS's
    score puts first among them must (a) stay below the worst beyond seed noise: the interval over seeds of its distance
    to the partition that the other seeds call the worst lies above zero; and (b) have a regret below 25 % of
    worst - best with its whole interval. Shown and not counted: the same among all partitions together, and how the
    score correlates with the loss.
    """
    ranked = ranking(bench)
    if ranked is None:
        missing: tuple[Claim, ...] = (Claim("every partition trained", "missing", None),)
        return Answer("Q4", "Split quality", rule_of(split_quality), missing)
    by_seed, correlation = score_correlation(ranked)
    figures: dict[str, Any] = {
        "partitions": len(ranked.partitions),
        "seeds": list(ranked.seeds),
        "seed_noise": seed_noise(ranked),
        "score_spearman": plain(correlation),
        "score_spearman_by_seed": {str(seed): value for seed, value in by_seed.items()},
        "lacking": list(ranked.lacking),
    }
    claims = []
    for size in (*ranked.sizes, None):
        more, told = _among(ranked, size)
        claims += more
        figures["all" if size is None else f"groups_{size}"] = told
    text = "the score ranks partitions as their losses do"
    claims.append(Claim(text, positive(correlation), correlation, "index", deciding=False))
    return Answer("Q4", "Split quality", rule_of(split_quality), tuple(claims), "; ".join(ranked.lacking), figures)


def _among(ranked: Ranking, size: int | None) -> tuple[list[Claim], dict[str, Any]]:
    """Claims and figures among the partitions into `size` groups, or (None) among all."""
    found = [standing(ranked, size, seed) for seed in ranked.seeds]
    margin, share = _over(found, lambda s: s.margin), _over(found, lambda s: s.share)
    percentile = _over(found, lambda s: s.percentile)
    name, counts = ("any number of groups" if size is None else f"{size} groups"), size is not None
    better = 0.0 if percentile is None else percentile.mean
    note = f"better than {better:.0%} of the {len(ranked.of_size(size)) - 1} others"
    claims = [
        Claim(f"{name}: chosen beats the worst", positive(margin), margin, deciding=counts),
        Claim(f"{name}: regret < 25 %", below(share, REGRET_BELOW), share, "share", counts, REGRET_BELOW, note),
    ]
    figures = {
        "percentile": plain(percentile),
        "regret": plain(_over(found, lambda s: s.regret)),
        "regret_share": plain(share),
        "margin_to_worst": plain(margin),
        "score_spearman": plain(score_correlation(ranked, size)[1]),
    }
    return claims, figures


def _over(found: Sequence[Standing], pick: Callable[[Standing], float | None]) -> Interval | None:
    values = [pick(entry) for entry in found]
    return interval([value for value in values if value is not None])


def same_split(bench: Bench) -> Answer:
    """The row that probed most rounds is asked (TAG's measuring run probes all of a training, so that late is late; of
    equals the one tagged Q6). The splits into exactly its k groups that clients alone and windows of rounds alone would
    choose are compared with the pooled one by the adjusted Rand index (0: chance, 1: the same). Clients agree, and
    early and late rounds agree, when the mean over seeds of the index is at least 0.5 and its interval lies above 0;
    each is refuted when the interval lies below 0.5.
    """
    found = agreements(bench)
    clients = interval([_adjusted(entry.by_client) for entry in found if entry.by_client])
    timely = interval([entry.early_late.adjusted for entry in found if entry.early_late is not None])
    pooled = [entry for entry in found if entry.by_window]
    steady = interval([_adjusted(entry.by_window) for entry in pooled])
    between, row = _between_seeds(found), probed_row(bench)
    claims = (
        Claim(
            "each client alone would split alike",
            alike(clients),
            clients,
            "index",
            against=ALIKE,
            note=_same_share(found),
        ),
        Claim("early rounds split as late ones", alike(timely), timely, "index", against=ALIKE),
        Claim("every window of rounds splits as all do", alike(steady), steady, "index", False, ALIKE),
    )
    figures: dict[str, Any] = {
        "row": None if row is None else row.name,
        "groups": found[0].groups if found else None,
        "adjusted_rand_clients": plain(clients),
        "adjusted_rand_early_late": plain(timely),
        "adjusted_rand_windows": plain(steady),
        "pooled_split_same_in_pairs_of_seeds": between,
        "affinity_spearman_early_late": plain(interval([e.correlation for e in found if e.correlation is not None])),
        "seeds": {str(entry.seed): _told(entry) for entry in found},
    }
    asked = f"asked was {row.label}, for splits into {found[0].groups} groups" if row is not None and found else ""
    return Answer("Q6", "Agreement on the split", rule_of(same_split), claims, asked, figures)


def agreements(bench: Bench) -> list[Agreement]:
    """The comparison for every seed of the row that is asked, split into exactly its k groups (2 where it has none)."""
    row = probed_row(bench)
    if row is None:
        return []
    every = [agreement(run, max(2, row.splits)) for _, run in sorted(row.done.items())]
    return [entry for entry in every if entry is not None]


def alike(index: Interval | None) -> Outcome:
    """Whether a mean adjusted Rand index says that splits agree; see `same_split`."""
    if index is None or index.low is None or index.high is None:
        return "missing"
    if index.mean >= ALIKE and index.low > 0:
        return "yes"
    return "no" if index.high < ALIKE else "unclear"


def _adjusted(choices: Sequence[Choice]) -> float:
    return sum(choice.adjusted for choice in choices) / len(choices)


def _same_share(found: Sequence[Agreement]) -> str:
    every = [choice.same for entry in found for choice in entry.by_client]
    return f"{sum(every)} of {len(every)} choose the very same split" if every else ""


def _between_seeds(found: Sequence[Agreement]) -> str:
    pairs = [same_partition(a.pooled, b.pooled) for i, a in enumerate(found) for b in found[i + 1 :]]
    return f"{sum(pairs)} of {len(pairs)}" if pairs else ""


def _told(entry: Agreement) -> dict[str, Any]:
    return {
        "pooled": [list(group) for group in entry.pooled],
        "rounds": [entry.windows[-1].first, entry.windows[-1].last],
        "clients_with_the_same_split": [sum(c.same for c in entry.by_client), len(entry.by_client)],
        "adjusted_rand_clients": _adjusted(entry.by_client) if entry.by_client else None,
        "early_late_same": entry.early_late.same if entry.early_late else None,
        "early_late_adjusted_rand": entry.early_late.adjusted if entry.early_late else None,
        "early_late_affinity_spearman": entry.correlation,
    }


def answers(bench: Bench) -> list[Answer]:
    """Q1 to Q8 for one bench."""
    rules = (cost, loss, initialisation, split_quality, more_splits, same_split, sweeps, rivals)
    return [rule(bench) for rule in rules]
