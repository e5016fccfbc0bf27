"""What a simulation is told before it begins, and how it holds its clients' pictures."""

from __future__ import annotations

import shutil
from pathlib import Path

import msgspec
import pytest
import torch
from simulated import SPEC, TASKS, changed, clients

from edge_agent.trainer.protocol import Setup
from edge_agent.trainer.samples import Stock, TooManyFaultsError
from models.tasks import TASKS as ALL_TASKS
from models.wire.job import TrainSettings
from tools.demo.plan import PACK
from tools.simulate.clients import Client
from tools.simulate.holdings import Holdings, View
from tools.simulate.preflight import check, faults_of

DOMAINS = ("rgb", "depth_zbuffer", "segment_semantic", "keypoints2d")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A few pictures of three buildings, to be spoilt."""
    for domain in DOMAINS:
        for building in ("alder", "birch", "maple"):
            place = tmp_path / domain / building
            place.mkdir(parents=True)
            for path in (PACK / domain / building).glob("point_[0-5]_*"):
                shutil.copyfile(path, place / path.name)
    return tmp_path


def fleet(root: Path) -> list[Client]:
    return [
        Client("one", Setup(str(root), ("alder",), (), 1, 2**26)),
        Client("two", Setup(str(root), ("birch",), ("maple",), 1, 2**26)),
    ]


def small(**settings: object) -> object:
    return changed(train=TrainSettings(batch_size=4), **settings)


def test_sound_data_and_settings_have_no_fault() -> None:
    assert faults_of(SPEC, PACK, clients()) == []


def test_every_fault_of_settings_is_named_at_once(root: Path) -> None:
    spec = small(scheme="guess", network="resnet", tasks=("depth_zbuffer", "smell"), clients_per_round=9, quorum=1.0)
    faults = check(spec, root, fleet(root))  # type: ignore[arg-type]
    said = "\n".join(faults.settings)
    for words in ("scheme 'guess'", "network 'resnet'", "task 'smell'", "9 clients of 9, but there are 2"):
        assert words in said


def test_an_unknown_setting_of_a_scheme_is_named(root: Path) -> None:
    faults = check(small(options={"depth": 3}), root, fleet(root))  # type: ignore[arg-type]
    assert any("depth" in fault for fault in faults.settings)


def test_every_fault_of_data_is_named_at_once(root: Path) -> None:
    shutil.rmtree(root / "segment_semantic" / "alder")
    broken = root / "depth_zbuffer" / "birch" / "point_1_view_0_domain_depth_zbuffer.png"
    broken.write_bytes(broken.read_bytes()[:40])
    (root / "keypoints2d" / "maple" / "point_2_view_1_domain_keypoints2d.png").unlink()
    spec = changed(tasks=(*TASKS, "keypoints2d"), train=TrainSettings(batch_size=64))
    faults = check(spec, root, fleet(root))
    assert faults.settings == ()
    said = "\n".join(faults.data)
    assert "one has no labels for segment_semantic" in said
    assert broken.name in said
    assert "point_2_view_1_domain_keypoints2d.png" in said
    for agent in ("one", "two"):
        assert any(fault.startswith(f"{agent} has ") and "fewer than a batch of 64" in fault for fault in faults.data)


def test_faults_of_several_jobs_are_told_once(root: Path) -> None:
    faults = faults_of([small(scheme="guess"), small(scheme="guess", name="again")], root, fleet(root))  # type: ignore[list-item]
    assert len(faults) == 1


def test_a_client_that_trains_on_a_test_building_is_a_fault(root: Path) -> None:
    wrong = [Client("one", Setup(str(root), ("maple",), ("maple",), 1, 2**26))]
    assert any("must not be trained on" in fault for fault in faults_of(small(), root, wrong))  # type: ignore[arg-type]


def test_nobody_to_evaluate_is_a_fault(root: Path) -> None:
    faults = faults_of(small(), root, [Client("one", Setup(str(root), ("alder", "birch"), (), 1, 2**26))])  # type: ignore[arg-type]
    assert any("held-out" in fault for fault in faults)


@pytest.mark.parametrize("side", ["train", "val", "test"])
@pytest.mark.parametrize("tasks", [("depth_zbuffer",), ("segment_semantic", "keypoints2d"), DOMAINS[1:]])
def test_a_view_of_the_whole_is_what_an_agent_reads(root: Path, side: str, tasks: tuple[str, ...]) -> None:
    setup = fleet(root)[1].setup
    held = Holdings(torch.device("cpu"), 2**28).samples(setup, side, tasks, DOMAINS[1:], 32, 0.0)  # type: ignore[arg-type]
    assert isinstance(held, View)
    read = Stock(setup).samples(side, tasks, 32, 0.0)  # type: ignore[arg-type]
    assert len(held) == len(read) == read.usable > 0
    chosen = [len(read) - 1, 0]
    ours, theirs = held.load(chosen), read.load(chosen)
    assert torch.equal(ours.rgb, theirs.rgb)
    assert list(ours.targets) == list(theirs.targets) == list(tasks)
    for task in tasks:
        assert ours.targets[task].dtype == theirs.targets[task].dtype
        assert torch.equal(ours.targets[task], theirs.targets[task])
    masked = any(ALL_TASKS[task].masked for task in tasks)
    assert (ours.mask is not None) == (theirs.mask is not None) == masked
    if ours.mask is not None and theirs.mask is not None:
        assert torch.equal(ours.mask, theirs.mask)


def test_a_client_with_broken_pictures_reads_them_as_an_agent_does(root: Path) -> None:
    setup = fleet(root)[1].setup
    broken = next((root / "depth_zbuffer" / "maple").iterdir())
    broken.write_bytes(b"")
    holdings = Holdings(torch.device("cpu"), 2**28)
    sound = holdings.samples(setup, "test", ("segment_semantic",), DOMAINS[1:], 32, 0.0)
    assert sound.skipped_total == 0, "labels that are not asked for may be broken"
    with pytest.raises(TooManyFaultsError, match=broken.name):
        holdings.samples(setup, "test", ("depth_zbuffer",), DOMAINS[1:], 32, 0.0)
    some = holdings.samples(setup, "test", ("depth_zbuffer",), DOMAINS[1:], 32, 0.5)
    assert some.skipped_total == 1
    assert some.usable == len(sound) - 1


def test_what_does_not_fit_the_memory_is_not_held(root: Path) -> None:
    one, two = (client.setup for client in fleet(root))
    picture_bytes = 4 * 32 * 32 * (4 + 1)
    few = Holdings(torch.device("cpu"), 3 * picture_bytes).samples(one, "train", TASKS[:1], TASKS[:1], 32, 0.0)
    assert not isinstance(few, View)
    holdings = Holdings(torch.device("cpu"), 15 * picture_bytes)
    for setup in (one, two, one):  # one of them at a time
        held = holdings.samples(setup, "train", TASKS[:1], TASKS[:1], 32, 0.0)
        assert isinstance(held, View)
    assert len(holdings._sets) == 1


def test_a_setup_s_own_cache_is_not_filled_beside_the_holdings(root: Path) -> None:
    setup = fleet(root)[0].setup
    changed_setup = msgspec.structs.replace(setup, cache_bytes=0)
    whole = Holdings(torch.device("cpu"), 2**28).samples(changed_setup, "train", TASKS, TASKS, 32, 0.0)
    assert isinstance(whole, View)
