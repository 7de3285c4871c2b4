"""Where helm is."""

from __future__ import annotations

import os
import shutil

from tests.cluster.folders import find_folders
from tests.cluster.tools import ensure_tools


def find_helm() -> str | None:
    """Return its path; it is built where the cluster is demanded, and None where there is none."""
    folders = find_folders()
    found = shutil.which("helm", path=os.pathsep.join((str(folders.bin), os.environ.get("PATH", ""))))
    if found is None and os.environ.get("AETHER_REQUIRE_CLUSTER") == "1":
        found = str(ensure_tools(folders) / "helm")
    return found
