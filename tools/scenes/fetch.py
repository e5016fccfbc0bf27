"""Getting Debian's furniture package without root: `apt-get download`, then `dpkg-deb -x` into a cache folder."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from tools.scenes.catalogue import CatalogueError

PACKAGE = "sweethome3d-furniture"
_SETS = Path("usr/share/sweethome3d/furniture")
_ADVICE = (
    f"on Debian or Ubuntu run `apt-get download {PACKAGE}`, elsewhere fetch that package from a Debian mirror and "
    "unpack it, then pass its folder with --catalogue DIR"
)


def default_cache() -> Path:
    """Where downloads are kept: `$XDG_CACHE_HOME/mas-edge`, by default `~/.cache/mas-edge`."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "mas-edge"


def fetch_catalogue(cache: Path) -> Path:
    """Folder of the package's furniture sets, downloaded and unpacked on first use (about 120 MB).

    Raises CatalogueError with what to do where apt is absent or the download fails. An interrupted fetch leaves
    nothing that a later one would take for complete: the unpacked tree appears by a rename.
    """
    ready = cache / PACKAGE
    if (ready / _SETS).is_dir():
        return ready / _SETS
    missing = [tool for tool in ("apt-get", "dpkg-deb") if shutil.which(tool) is None]
    if missing:
        raise CatalogueError(f"{' and '.join(missing)} not found here, so the furniture cannot be fetched; {_ADVICE}")
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache, prefix="fetch-") as scratch:
        folder = Path(scratch)
        _run(["apt-get", "download", PACKAGE], folder)
        packages = sorted(folder.glob(f"{PACKAGE}_*.deb"))
        if not packages:
            raise CatalogueError(f"apt-get download left no {PACKAGE} package; {_ADVICE}")
        _run(["dpkg-deb", "-x", str(packages[-1]), "tree"], folder)
        if not (folder / "tree" / _SETS).is_dir():
            raise CatalogueError(f"{packages[-1].name} holds no {_SETS}; {_ADVICE}")
        try:
            os.replace(folder / "tree", ready)
        except OSError as error:
            # Another run may have finished first; its tree is as good as ours.
            if not (ready / _SETS).is_dir():
                raise CatalogueError(f"cannot keep the furniture in {ready}: {error}") from error
    return ready / _SETS


def _run(command: list[str], folder: Path) -> None:
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    except OSError as error:
        raise CatalogueError(f"cannot run {command[0]}: {error}; {_ADVICE}") from error
    if done.returncode != 0:
        reason = (done.stderr or done.stdout).strip().splitlines()
        raise CatalogueError(f"`{' '.join(command)}` failed: {reason[-1] if reason else done.returncode}; {_ADVICE}")
