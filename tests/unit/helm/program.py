"""Where helm is."""

from __future__ import annotations

import os

from tests.cluster import tools
from tests.cluster.folders import find_folders
from tests.cluster.lifecycle import is_required


def find_helm() -> str | None:
    """Return its path; it is built where the cluster is demanded, and None where there is none."""
    folders = find_folders()
    found = tools.find_helm(folders)
    if found is None and is_required(os.environ):
        found = tools.ensure_tools(folders) / "helm"
    return None if found is None else str(found)
