"""What the bundles on the devices say of pictures that nobody trained on, beside the truth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from edge_agent.bundle import active_bundles
from edge_agent.datasets import open_dataset, read_manifest
from edge_agent.inference import Predictor
from models.tasks import TASKS
from tools.report.pictures import Prediction

#: Examples shown in the report.
EXAMPLES = 5


def predict(state_dir: Path, data_root: Path, test: Sequence[str], tasks: Sequence[str]) -> list[Prediction]:
    """Run the bundles active in an agent's `state_dir` on a few pictures of held-out buildings."""
    manifest = read_manifest(data_root)
    classes: Mapping[int, str] = manifest.classes if manifest else {}
    active = active_bundles(state_dir)
    loaded = {bundle.path: Predictor(bundle.path) for bundle in active.values()}
    predictors = {task: loaded[active[TASKS[task].letter].path] for task in tasks}
    size = predictors[tasks[0]].manifest.input.size
    dataset = open_dataset(data_root, test, tasks, size)
    chosen = np.linspace(0, len(dataset) - 1, num=min(EXAMPLES, len(dataset)), dtype=np.int64)
    batch = dataset.load(chosen)
    pictures = np.round(batch.rgb * 255).astype(np.uint8)
    captions = tuple(f"{dataset.index[i].building}, point {dataset.index[i].point}" for i in batch.indices)
    predictions = []
    for task in tasks:
        outputs = [predictors[task].predict(np.moveaxis(picture, 0, -1))[task] for picture in pictures]
        truth = batch.targets[task]
        if not TASKS[task].is_classes:
            truth = TASKS[task].denormalise(truth.astype(np.float32))
        shown = Prediction(
            task=task,
            inputs=pictures,
            truth=truth,
            prediction=np.stack(outputs),
            classes=classes if TASKS[task].is_classes else {},
            captions=captions,
        )
        predictions.append(shown)
    return predictions
