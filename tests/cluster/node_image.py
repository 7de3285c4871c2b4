"""Chooses the image that the nodes of a kind cluster run: the published one where it can be had, else our own build.

Order: what is already here (published, then built), else a pull of the published one under a deadline, else a build. A pull
that gets no first answer in time means a machine without a registry; one that progresses may take its time.
"""

from __future__ import annotations

import os
import select
import subprocess
import time
from collections.abc import Callable
from enum import StrEnum
from typing import Final

from .debian import is_made_from
from .folders import Folders
from .locks import exclusive
from .node_build import build_node_image, node_image_parts
from .pins import KUBERNETES, PUBLISHED_NODE_IMAGE
from .processes import attempt, ended, say

FIRST_ANSWER_S: Final = 45.0
"""Seconds for a registry's first answer, a few name look-ups and redirects behind a slow proxy included."""

PULL_S: Final = 1200.0
"""Seconds for a whole pull: the node image has 400 MB packed, at 3 Mbit/s."""


class Source(StrEnum):
    """Where a node image comes from."""

    PUBLISHED = "published"
    BUILT = "built"


def choose_source(*, published_is_here: bool, built_is_here: bool, can_pull: Callable[[], bool]) -> Source:
    """Return the source to use; `can_pull` is asked only if nothing is here yet."""
    if published_is_here:
        return Source.PUBLISHED
    if built_is_here:
        return Source.BUILT
    return Source.PUBLISHED if can_pull() else Source.BUILT


def ensure_node_image(folders: Folders) -> str:
    """Return the name of a node image that is in the engine now.

    Raises:
        ClusterError: it can neither be pulled nor built here.
    """
    made_from = node_image_parts()
    built = f"aether/kind-node:{KUBERNETES}-{made_from}"
    with exclusive(folders.lock("images"), "the images"):
        source = choose_source(
            published_is_here=is_present(PUBLISHED_NODE_IMAGE),
            built_is_here=is_made_from(built, made_from),
            can_pull=lambda: pull(PUBLISHED_NODE_IMAGE),
        )
        if source is Source.PUBLISHED:
            return PUBLISHED_NODE_IMAGE
        if not is_made_from(built, made_from):
            build_node_image(built, made_from, folders)
    return built


def is_present(image: str) -> bool:
    """Tell whether the engine has an image."""
    return attempt("docker", "image", "inspect", "--format", "{{.Id}}", image).returncode == 0


def pull(image: str) -> bool:
    """Pull an image; return whether that worked. An engine without a way to a registry costs at most `FIRST_ANSWER_S`."""
    name = image.partition("@")[0]
    say(f"trying to pull {name}")
    process = subprocess.Popen(["docker", "pull", image], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    with ended(process):
        is_pulled = process.stdout is not None and _reaches_end(process.stdout.fileno()) and process.wait() == 0
    say(f"{name} is pulled" if is_pulled else f"{name} cannot be pulled here")
    return is_pulled


def _reaches_end(descriptor: int) -> bool:
    """Read a pull's output to its end; False when it stays silent at first or takes too long in all."""
    begun_s = time.monotonic()
    deadline_s = begun_s + FIRST_ANSWER_S
    while select.select([descriptor], [], [], max(0.0, deadline_s - time.monotonic()))[0]:
        if not os.read(descriptor, 65536):
            return True
        deadline_s = begun_s + PULL_S
    return False
