"""The report as JSON: one entry a run, one a question, and every partition's losses and scores."""

from __future__ import annotations

import math
from typing import Any

import msgspec

from tools.experiment.report.claims import plain
from tools.experiment.report.costs import COUNTED_ARE, CURRENCIES, FLOPS_ARE, JOULES_ARE, counted_flops
from tools.experiment.report.document import Document, Section
from tools.experiment.report.published import PUBLISHED
from tools.experiment.report.rows import Bench, Row, final_groups, short, short_groups
from tools.experiment.run_record import Run


def report_json(document: Document) -> dict[str, Any]:
    """The report as plain JSON values; its `notes` say what costs contain.

    `questions` are of the first section; every section's stand under `sections`.
    """
    return {
        "experiment": document.name,
        "notes": notes(document),
        "rows": [
            _row_json(section.bench, row, run)
            for section in document.sections
            for row in section.bench.rows
            for run in row.runs
        ],
        "questions": _questions(document.sections[0]),
        "sections": [{"setup": section.bench.label, **_section_json(section)} for section in document.sections],
        "published": [
            {"scheme": e.scheme, "splits": e.splits, "gpu_hours": e.hours, "loss": e.loss} for e in PUBLISHED
        ],
        "missing": list(document.missing),
    }


def notes(document: Document) -> dict[str, str]:
    """What the keys of a row's costs contain."""
    return {
        "flops": f"{FLOPS_ARE}; counted as {COUNTED_ARE}",
        "flops_by_kind": "the same apart, and evaluation; weighting is GradNorm’s gradients (null: not recorded)",
        "energy_j": "joules of the whole run, evaluation included, as far as they are known; see energy_state",
        "costs.predicted_flops": f"{FLOPS_ARE}; from a + b n, before the run",
        "costs.counted_flops": "the same as flops",
        "costs.energy_j": JOULES_ARE,
        "costs.cpu_s": "CPU seconds of all phases but evaluation; of the whole run where there are no phases",
        **({"report": "; ".join(document.notes)} if document.notes else {}),
    }


def _row_json(bench: Bench, row: Row, run: Run) -> dict[str, Any]:
    record = run.record
    total = record.total_loss if record and run.state == "done" else None
    return {
        "row": row.name,
        "label": row.label,
        "setup": bench.label,
        "scheme": run.scheme,
        "mode": run.mode,
        "splits": [list(group) for group in final_groups(run)],
        "max_splits": row.splits or None,
        "seed": run.seed,
        "state": run.state,
        "reason": run.reason,
        "total_loss": total if total is None or math.isfinite(total) else None,
        "losses": dict(record.losses) if record and run.state == "done" else {},
        "energy_j": run.energy.energy_j,
        "energy_state": run.energy.state,
        "energy_source": run.energy.source,
        "energy_scope": run.energy.scope,
        "energy_coverage": run.energy.coverage,
        "energy_uncertainty_j": run.energy.uncertainty_j,
        "energy_flags": list(run.energy.flags),
        "energy_by_task": _by_task(run),
        "flops": counted_flops(run),
        "flops_by_kind": msgspec.to_builtins(run.flops),
        "costs": {currency.name: currency.of(run) for currency in CURRENCIES},
        "wall_s": run.wall_s,
        "cpu_s": run.cpu_s,
        "bytes_up": run.bytes_up,
        "bytes_down": run.bytes_down,
        "command": run.command,
    }


def _by_task(run: Run) -> dict[str, Any] | None:
    """Joules of each task by the run's rule, with their state; None where the record does not say."""
    costs = run.record.task_costs if run.record else None
    if costs is None:
        return None
    tasks = {task: {"energy_j": one.energy.energy_j, "state": one.energy.state} for task, one in costs.tasks.items()}
    return {"rule": costs.rule, "tasks": tasks}


def _questions(section: Section) -> dict[str, Any]:
    return {
        answer.question: {
            "title": answer.title,
            "verdict": answer.verdict,
            "reason": answer.reason,
            "rule": answer.rule,
            "figures": {
                "claims": [
                    {
                        "claim": claim.text, "outcome": claim.outcome, "deciding": claim.deciding, "unit": claim.unit,
                        "against": claim.against, "estimate": plain(claim.estimate), "note": claim.note,
                    }
                    for claim in answer.claims
                ],
                **answer.figures,
            },
        }
        for answer in section.answers
    }  # fmt: skip


def _section_json(section: Section) -> dict[str, Any]:
    ranked = section.ranked
    partitions = [] if ranked is None else [
        {
            "splits": [list(group) for group in groups], "letters": short_groups(groups),
            "losses": {str(seed): found[at] for seed, found in ranked.losses.items()},
            "scores": {str(seed): found[at] for seed, found in ranked.scores.items()},
        }
        for at, groups in enumerate(ranked.partitions)
    ]  # fmt: skip
    return {
        "tasks": {task: short([task]) for task in section.bench.tasks},
        "base": dict(section.bench.base),
        "questions": _questions(section),
        "partitions": partitions,
    }
