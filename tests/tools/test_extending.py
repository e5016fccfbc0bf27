"""The example package of docs/extending.md, installed and used from outside as the document says."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parent.parent.parent
EXAMPLE = ROOT / "docs" / "examples" / "mas-example"
DOCUMENT = ROOT / "docs" / "extending.md"
RUN_MAS = [sys.executable, "-c", "from tools.cli.main import run; run()"]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What an installer writes about the package, from its pyproject.toml."""
    project = msgspec.toml.decode((EXAMPLE / "pyproject.toml").read_bytes())["project"]
    folder = tmp_path_factory.mktemp("site")
    info = folder / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    lines = []
    for group, entries in project["entry-points"].items():
        lines += [f"[{group}]", *(f"{name} = {value}" for name, value in entries.items())]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n")
    return folder


def _run(command: list[str], folder: Path, *extra: Path) -> str:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (*extra, ROOT))), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def _documented() -> list[list[str]]:
    """The commands of the document's first block, word by word."""
    block = re.search(r"```sh\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL)
    assert block is not None
    return [shlex.split(line) for line in block[1].replace("\\\n", " ").splitlines() if line.strip()]


@pytest.mark.slow
def test_what_the_package_adds_is_found_beside_what_is_built_in(site: Path, tmp_path: Path) -> None:
    code = (
        "import json; from models.networks import NETWORKS; from models.tasks import TASKS, parse_tasks\n"
        "from edge_agent.datasets import DATASETS; from aggregator.schemes import schemes\n"
        "print(json.dumps([list(NETWORKS), list(DATASETS), list(schemes()), parse_tasks('nbw')]))"
    )
    networks, datasets, found, tasks = json.loads(_run([sys.executable, "-c", code], tmp_path, site, EXAMPLE))
    assert networks[-1] == "mini"
    assert "pi" in networks
    assert datasets == ["taskonomy", "shelf"]
    assert found[-1] == "in-order"
    assert "mas" in found
    assert tasks == ["normal", "brightness", "warmth"]
    alone = json.loads(_run([sys.executable, "-c", code.replace("nbw", "n")], tmp_path))
    assert alone == [networks[:-1], ["taskonomy"], found[:-1], ["normal"]]


@pytest.mark.slow
def test_the_documented_commands_train_export_and_infer(site: Path, tmp_path: Path) -> None:
    install, make_data, simulate, infer = _documented()
    assert install[:2] == ["pip", "install"]
    assert (ROOT / install[2]).resolve() == EXAMPLE.resolve()
    _run([sys.executable, *make_data[1:]], tmp_path, site, EXAMPLE)
    simulate[simulate.index("--rounds") + 1] = "2"
    told = json.loads(_run([*RUN_MAS, *simulate[1:], "--workers", "1", "--json"], tmp_path, site, EXAMPLE))
    assert told["state"] == "done"
    record = json.loads((tmp_path / "run" / "record.json").read_bytes())
    groups = {split["split"]: split["tasks"] for split in record["splits"]}
    assert groups == {"bw": ["brightness", "warmth"], "a": ["rgb"]}
    assert set(record["losses"]) == {"brightness", "warmth", "rgb"}

    Image.fromarray(np.full((20, 30, 3), 128, np.uint8)).save(tmp_path / "PICTURE.png")
    said = _run([*RUN_MAS, *infer[1:]], tmp_path)  # on a device that does not have the package
    assert re.search(r"^brightness: -?\d\S* of white$", said, re.MULTILINE)
    assert re.search(r"^warmth: (warm|cold) \d+%, (warm|cold) \d+%$", said, re.MULTILINE)
    assert np.load(tmp_path / "predictions" / "warmth.npy").shape == (2,)


@pytest.mark.slow
def test_an_agent_with_the_package_trains_and_tests_on_its_format(site: Path, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        """
import json
from pathlib import Path

from edge_agent.config import DataConfig
from edge_agent.inventory import take_inventory
from edge_agent.trainer.perform import Workbench
from edge_agent.trainer.samples import Stock
from edge_agent.trainer.protocol import Setup
from edge_agent.trainer.spans import SpanRecorder
from mas_example.make_data import make
from models.networks import build_network, export_state
from models.wire.chunks import make_ref
from models.wire.job import TrainSettings
from models.wire.messages import EvaluateOrder, OrderKey, TrainOrder

make(Path("shelf"))
tasks = ("brightness", "warmth", "rgb")
held = take_inventory(DataConfig("shelf", ("north",), ("west",), "shelf"))
stock = Stock(Setup("shelf", ("north",), ("west",), 1, 2**26, "shelf"))
base, bench = export_state(build_network("mini", tasks, 32, seed=0)), Workbench()

def train(state, round_):
    settings = TrainSettings(epochs=8, batch_size=8, lr=0.01)
    key = OrderKey("job", "merged", round_, "agent", 0, "train")
    order = TrainOrder(key, tasks, "mini", 32, make_ref(b""), 1, settings, 0, "fp32", 0.1, 60.0)
    _, update = bench.train(order, state, stock.samples("train", tasks, 32, 0.1), SpanRecorder(), lambda *_: None)
    return {name: state[name] + value for name, value in update.items()}

def evaluate(state):
    order = EvaluateOrder(OrderKey("job", "merged", 0, "agent", 0, "evaluate"), tasks, "mini", 32, make_ref(b""), 8,
                          0.1, 60.0)
    done = bench.evaluate(order, state, stock.samples("test", tasks, 32, 0.1), SpanRecorder(), lambda *_: None)
    return {loss.task: loss.loss_sum / loss.samples for loss in done.losses}

print(json.dumps([held.labels, held.train_samples + held.val_samples, held.test_samples,
                  evaluate(base), evaluate(train(train(base, 0), 1))]))
"""
    )
    labels, trained_on, tested_on, before, after = json.loads(
        _run([sys.executable, str(script)], tmp_path, site, EXAMPLE)
    )
    assert labels == ["rgb", "brightness", "warmth"]
    assert (trained_on, tested_on) == (40, 40)
    assert {task for task in before if after[task] < before[task]} == {"brightness", "warmth", "rgb"}, (before, after)
