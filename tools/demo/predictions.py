"""What the bundles on the devices say of pictures that nobody trained on, beside the truth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edge_agent.bundle import active_bundles
from edge_agent.datasets import open_dataset, read_manifest
from edge_agent.inference import Predictor
from models.bundle import TaskOutput
from models.tasks import TASKS
from tools.infer import describe
from tools.report.pictures import Prediction

#: Examples shown in the report.
EXAMPLES = 5


def predict(state_dir: Path, data_root: Path, test: Sequence[str], tasks: Sequence[str]) -> list[Prediction]:
    """Run the bundles active in an agent's `state_dir` on a few pictures of held-out buildings.

    One result for each task that has maps; what the others say of a picture, and the truth, is in its caption.
    """
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
    outputs_of = {
        task: [predictors[task].predict(np.moveaxis(picture, 0, -1))[task] for picture in pictures] for task in tasks
    }
    captions = [f"{dataset.index[i].building}, point {dataset.index[i].point}" for i in batch.indices]
    for task in (each for each in tasks if TASKS[each].is_vector):
        told = _told(predictors[task], task, outputs_of[task], batch.targets[task])
        captions = [f"{caption}; {each}" for caption, each in zip(captions, told, strict=True)]
    predictions = []
    for task in (each for each in tasks if not TASKS[each].is_vector):
        truth = batch.targets[task]
        if not TASKS[task].is_classes:
            truth = TASKS[task].denormalise(truth.astype(np.float32))
        shown = Prediction(
            task=task,
            inputs=pictures,
            truth=truth,
            prediction=np.stack(outputs_of[task]),
            classes=classes if TASKS[task].is_classes else {},
            captions=tuple(captions),
        )
        predictions.append(shown)
    return predictions


def _told(predictor: Predictor, task: str, outputs: Sequence[npt.NDArray[Any]], truth: npt.NDArray[Any]) -> list[str]:
    """What a vector task says of each picture, and its label."""
    how = next(each for each in predictor.manifest.tasks if each.name == task)
    return [f"{task}: {describe(how, o)} (truth: {_truth(how, t)})" for o, t in zip(outputs, truth, strict=True)]


def _truth(how: TaskOutput, target: npt.NDArray[Any]) -> str:
    """A vector's label, as a dataset loads it, in the words of a prediction that is certain."""
    if how.kind == "class":
        return how.names[int(target)] if how.names else f"class {int(target)}"
    values = target.astype(np.float32)
    return describe(how, values if how.kind == "labels" else TASKS[how.name].denormalise(values))
