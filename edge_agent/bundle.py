"""Installing a bundle so that the device always has a whole, verified one. No torch and no onnxruntime here.

    <state>/bundles/<id>/            the bundle's files and `verification.json`; id: the manifest's hash, shortened
    <state>/bundles/<id>-2/          the same bundle again, where the files of the first were found spoilt
    <state>/bundles/.incoming-*/     being installed
    <state>/active/<task letter>     link to the bundle that serves this task
    <state>/previous/<task letter>   link to the one before it

A bundle takes over its tasks one by one, each by the atomic replacement of one link, after its files were hashed,
flushed, and run against the bundle's own reference in a child process. What no link names is removed.
One installation at a time: each removes what others have not linked yet.
"""

from __future__ import annotations

import hashlib
import itertools
import logging
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec

from models.bundle import MANIFEST, FileEntry, Manifest, ManifestError, Verification, read_manifest

log = logging.getLogger(__name__)
VERIFICATION = "verification.json"
_ID_DIGITS = 16
_INCOMING = ".incoming-"
_PLAIN_NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,63}")
_MAX_MANIFEST_BYTES = 1024 * 1024
_BLOCK_BYTES = 1024 * 1024
_VERIFY_TIMEOUT_S = 300.0


class BundleError(Exception):
    """A bundle that was not installed; whatever was active before still is. The text says why."""


@dataclass(frozen=True, slots=True)
class InstalledBundle:
    """A bundle on this device."""

    path: Path
    manifest: Manifest
    manifest_sha256: str
    verification: Verification


def install(files: Mapping[str, Path], manifest_path: Path, state_dir: Path) -> InstalledBundle:
    """Check, copy, verify and activate a bundle whose `files` (by name) lie anywhere.

    Installing the same bundle again is safe, verifies it again, and replaces files of it that were spoilt on the disk.
    Raises BundleError, and leaves everything as it was.
    """
    with _translated(f"install a bundle below {state_dir}"):
        bundles = state_dir / "bundles"
        bundles.mkdir(parents=True, exist_ok=True)
        data = _bounded(manifest_path)
        manifest = _checked_manifest(data, files)
        sha256 = hashlib.sha256(data).hexdigest()
        incoming = Path(tempfile.mkdtemp(prefix=_INCOMING, dir=bundles))
        try:
            _copy_in(manifest, data, files, incoming)
            verification = _verified(incoming)
            _write_durably(incoming / VERIFICATION, msgspec.json.encode(verification))
            _flush_folder(incoming)
            final = _place(incoming, bundles, sha256[:_ID_DIGITS])
        finally:
            shutil.rmtree(incoming, ignore_errors=True)
        for letter in manifest.task_set:
            _activate(state_dir, letter, final)
        clean_leftovers(state_dir)
        return InstalledBundle(final, manifest, sha256, verification)


def active_bundles(state_dir: Path) -> dict[str, InstalledBundle]:
    """The active bundle of each task, by its letter; tasks may share one. Raises BundleError for a damaged one."""
    active = state_dir / "active"
    with _translated(f"read the active bundles below {state_dir}"):
        names = sorted(link.name for link in active.iterdir() if link.is_symlink()) if active.is_dir() else []
        paths = {name: (active / name).resolve() for name in names if not name.startswith(".")}
        bundles = {path: _installed(path) for path in set(paths.values())}
        return {name: bundles[path] for name, path in paths.items()}


def clean_leftovers(state_dir: Path) -> None:
    """Remove what a crash left behind and bundles that no link names; for the agent's start. Raises BundleError."""
    bundles = state_dir / "bundles"
    with _translated(f"clean up below {state_dir}"):
        kept = set()
        for kind in ("active", "previous"):
            folder = state_dir / kind
            for link in folder.iterdir() if folder.is_dir() else ():
                if link.name.startswith(".") or not link.exists():
                    link.unlink()
                else:
                    kept.add(link.resolve().name)
        for entry in bundles.iterdir() if bundles.is_dir() else ():
            if entry.name not in kept:
                shutil.rmtree(entry)


def _installed(path: Path) -> InstalledBundle:
    try:
        data = (path / MANIFEST).read_bytes()
        verification = msgspec.json.decode((path / VERIFICATION).read_bytes(), type=Verification)
        return InstalledBundle(path, read_manifest(data), hashlib.sha256(data).hexdigest(), verification)
    except (ManifestError, msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise BundleError(f"the bundle in {path} is damaged: {error}; deploy it again") from error


def _bounded(path: Path) -> bytes:
    if path.stat().st_size > _MAX_MANIFEST_BYTES:
        raise BundleError(f"a manifest of {path.stat().st_size} bytes; at most {_MAX_MANIFEST_BYTES} are allowed")
    return path.read_bytes()


def _checked_manifest(data: bytes, files: Mapping[str, Path]) -> Manifest:
    """The manifest, after every fault of names and sizes was looked for."""
    try:
        manifest = read_manifest(data)
    except ManifestError as error:
        raise BundleError(str(error)) from error
    except UnicodeDecodeError as error:  # which msgspec lets through as it is
        raise BundleError(f"the manifest cannot be read: {error}") from error
    faults = [f"{name!r} is no plain file name" for name in files if not _PLAIN_NAME.fullmatch(name)]
    faults += [f"{name} did not come with the bundle" for name in manifest.files if name not in files]
    faults += [f"{name} is not in the manifest" for name in files if name not in manifest.files]
    for name, entry in manifest.files.items():
        if name in files and files[name].stat().st_size != entry.size_bytes:
            faults.append(f"{name} has {files[name].stat().st_size} bytes, not {entry.size_bytes}")
    if faults:
        raise BundleError("the bundle is not whole: " + "; ".join(faults))
    return manifest


def _place(incoming: Path, bundles: Path, name: str) -> Path:
    """Where the bundle lies now: a folder with the very same files if there is one, else `incoming` under a new name.

    A spoilt folder keeps its name until the links have left it, so that none of them ever points to nothing.
    """
    there = sorted(bundles.glob(f"{name}*"))
    for folder in there:
        if _is_whole(folder, incoming):
            return folder
    names = itertools.chain([name], (f"{name}-{number}" for number in itertools.count(2)))
    final = next(folder for each in names if (folder := bundles / each) not in there)
    incoming.rename(final)
    _flush_folder(bundles)
    return final


def _is_whole(folder: Path, fresh: Path) -> bool:
    """Whether `folder` still holds, byte by byte, what the verified copy in `fresh` does."""
    try:
        _installed(folder)  # its own verification is another run's, and need only be readable
        names = {path.name for path in fresh.iterdir()}
        return names == {path.name for path in folder.iterdir()} and all(
            _hash(folder / name) == _hash(fresh / name) for name in names - {VERIFICATION}
        )
    except (OSError, BundleError) as error:
        log.warning("the bundle in %s is replaced: %s", folder, error)
        return False


def _hash(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as reader:
        while block := reader.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def _copy_in(manifest: Manifest, data: bytes, files: Mapping[str, Path], folder: Path) -> None:
    wrong = [name for name, entry in manifest.files.items() if not _copied(files[name], folder / name, entry)]
    if wrong:
        raise BundleError(f"hash of {', '.join(wrong)} is not the manifest's; fetch the bundle again")
    _write_durably(folder / MANIFEST, data)


def _copied(source: Path, target: Path, entry: FileEntry) -> bool:
    """Copy and flush; whether what was written has the entry's hash."""
    digest = hashlib.sha256()
    with source.open("rb") as reader, target.open("wb") as writer:
        while block := reader.read(_BLOCK_BYTES):
            digest.update(block)
            writer.write(block)
        writer.flush()
        os.fsync(writer.fileno())
    return digest.hexdigest() == entry.sha256


def _verified(folder: Path) -> Verification:
    """Run the model in a child process, whose memory goes back and whose crash is not ours."""
    command = [sys.executable, "-m", "edge_agent.inference", "verify", str(folder)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_VERIFY_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired as error:
        raise BundleError(f"the model did not finish its check within {_VERIFY_TIMEOUT_S:g} s") from error
    if done.returncode != 0:
        said = done.stderr.strip()[-500:] or f"exit code {done.returncode}"
        raise BundleError(f"the model does not run here as it should: {said}")
    try:
        return msgspec.json.decode(done.stdout.encode(), type=Verification)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise BundleError(f"the check of the model answered with nonsense: {error}") from error


def _activate(state_dir: Path, letter: str, bundle: Path) -> None:
    """Point the link of a task at `bundle`, and remember which one it pointed at."""
    link = state_dir / "active" / letter
    before = link.resolve() if link.is_symlink() else None
    if before is not None and before.name[:_ID_DIGITS] != bundle.name[:_ID_DIGITS] and before.exists():
        _replace_link(state_dir / "previous" / letter, before)
    _replace_link(link, bundle)


def _replace_link(link: Path, bundle: Path) -> None:
    link.parent.mkdir(parents=True, exist_ok=True)
    fresh = link.with_name(f".{link.name}.new")
    fresh.unlink(missing_ok=True)
    fresh.symlink_to(Path("..") / "bundles" / bundle.name, target_is_directory=True)
    fresh.replace(link)
    _flush_folder(link.parent)


def _write_durably(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _flush_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _translated(doing: str) -> Iterator[None]:
    """OSError -> BundleError, with what was being done."""
    try:
        yield
    except OSError as error:
        raise BundleError(f"cannot {doing}: {error}; check space and permissions") from error
