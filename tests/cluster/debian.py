"""Makes Docker images from Debian's packages alone, for machines that can reach a package mirror but no image registry.

debootstrap unpacks a minimal system into a scratch folder, which is imported as an image of one layer; the image appears
only when it is complete.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from .engine import PACKAGES, install_packages
from .folders import Folders
from .pins import DEBIAN, DEBIAN_PYTHON_IMAGE, PYTHON_PACKAGES
from .processes import ClusterError, attempt, ended, step, work
from .scratch import scratch_folder

LABEL: Final = "one.flowmade.aether.made-from"
"""The label, on every image made here, with the fingerprint of what it was made from; `clean --all` finds images by it."""

NOISE: Final = ("var/cache/apt", "var/lib/apt/lists", "usr/share/doc", "usr/share/man", "usr/share/locale", "usr/share/info")
"""Folders that nothing in a container reads: half of a minimal Debian's size beside Python."""


def fingerprint(*parts: str | bytes) -> str:
    """Return a short hash of everything that decides an image's content."""
    return hashlib.sha256(b"\0".join(part.encode() if isinstance(part, str) else part for part in parts)).hexdigest()[:16]


def is_made_from(image: str, print_of_parts: str) -> bool:
    """Tell whether an image is there and was made from exactly these parts."""
    answer = attempt("docker", "image", "inspect", "--format", f'{{{{index .Config.Labels "{LABEL}"}}}}', image)
    return answer.returncode == 0 and answer.stdout.strip() == print_of_parts


def ensure_python_image(folders: Folders) -> str:
    """Return an image with Debian's Python, made now unless it is there."""
    if not has_python_image():
        with step(f"making {DEBIAN_PYTHON_IMAGE} from Debian's packages"):
            make_image(DEBIAN_PYTHON_IMAGE, PYTHON_PACKAGES, _python_parts(), folders)
    return DEBIAN_PYTHON_IMAGE


def has_python_image() -> bool:
    """Tell whether the image with Debian's Python is in the engine, as it would be made now."""
    return is_made_from(DEBIAN_PYTHON_IMAGE, _python_parts())


def make_image(image: str, packages: Sequence[str], made_from: str, folders: Folders) -> None:
    """Import a minimal Debian with these packages as an image.

    Raises:
        ClusterError: debootstrap is missing or failed.
    """
    if shutil.which("debootstrap") is None:
        install_packages(PACKAGES, folders)
    with scratch_folder(folders.work, "debian") as root:
        _unpack(root, packages, folders)
        import_folder(image, root, labels={LABEL: made_from}, changes=('CMD ["python3"]',) if "python3" in packages else ())


def import_folder(image: str, folder: Path, *, labels: dict[str, str], changes: Sequence[str] = ()) -> None:
    """Import a folder as an image of one layer.

    Raises:
        ClusterError: tar or the engine failed.
    """
    options = [word for change in (*changes, *(f"LABEL {name}={value}" for name, value in labels.items())) for word in ("--change", change)]
    tar = subprocess.Popen(["tar", "-C", str(folder), "--numeric-owner", "-c", "."], stdout=subprocess.PIPE)
    with ended(tar):
        result = subprocess.run(["docker", "import", *options, "-", image], stdin=tar.stdout, capture_output=True, text=True, check=False)
        if result.returncode != 0 or tar.wait() != 0:
            raise ClusterError(f"importing {image} failed: {result.stderr.strip()}")


def _python_parts() -> str:
    return fingerprint(DEBIAN, *PYTHON_PACKAGES, *NOISE)


def _unpack(root: Path, packages: Sequence[str], folders: Folders) -> None:
    mirror = [os.environ["DEBIAN_MIRROR"]] if "DEBIAN_MIRROR" in os.environ else []
    work("debootstrap", "--variant=minbase", f"--include={','.join(packages)}", DEBIAN, root, *mirror, log=folders.log("debootstrap"))
    root.chmod(0o755)  # of the image's own root folder, whatever our umask is
    for name in NOISE:
        shutil.rmtree(root / name, ignore_errors=True)
    python = root / "usr/bin/python"
    if (root / "usr/bin/python3").is_symlink() and not python.exists():
        python.symlink_to("python3")
