"""The test cluster for people and make: `python -m tests.cluster up`, `down`, `image`, `load`, `tools`, `clean`.

Results go to stdout (a path, an image's name), so that a script can use them; progress and errors go to stderr. Exit codes: 0 done,
1 could not be done (the message says why), 2 wrong use, 130 interrupted.
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Callable, Sequence
from types import FrameType

from .folders import find_folders
from .image import IMAGE, ensure_image
from .lifecycle import NAME, clean, ensure_cluster, load_image, remove_cluster
from .processes import ClusterError
from .tools import ensure_tools


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one sub-command and return the exit code."""
    options = _parser().parse_args(arguments)
    run: Callable[[argparse.Namespace], None] = options.run
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        run(options)
    except ClusterError as exc:
        print(f"error: {exc}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; the next run continues", file=sys.stderr)
        return 130
    return 0


def _interrupt(number: int, frame: FrameType | None) -> None:
    """Treat SIGTERM (a CI job that is cancelled) as Ctrl-C: programs under way are ended, half-made things deleted."""
    raise KeyboardInterrupt


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.cluster", description="A real Kubernetes for the tests and demos of Aether.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    up = _add(commands, "up", _up, "make the cluster, or find that it works; print the path of its kubeconfig")
    up.add_argument("--keep", action="store_true", help="keep it when a test run ends, until `down` or `clean`")
    down = _add(commands, "down", _down, "delete the cluster, and stop a Docker engine that was started here and is idle")
    down.add_argument("--unless-kept", action="store_true", help="do nothing if `up --keep` asked to keep it")
    load = _add(commands, "load", _load, "build the image and load it into the cluster; print the name for pods")
    for command in (up, down, load):
        command.add_argument("--name", default=NAME, help=f"the kind cluster's name (default: {NAME})")
    image = _add(commands, "image", _image, "build the image of this checkout; print its name")
    for command in (load, image):
        command.add_argument("--tag", default=IMAGE, help=f"the image's name (default: {IMAGE})")
    _add(commands, "tools", _tools, "find or build kind, kubectl and helm; print the folder for PATH")
    clean_up = _add(commands, "clean", _clean, "delete all clusters made here and stop a Docker engine started here")
    clean_up.add_argument("--all", action="store_true", help="also remove images, caches, tools and the engine's state")
    return parser


def _add(commands: argparse._SubParsersAction[argparse.ArgumentParser], name: str, run: Callable[[argparse.Namespace], None], text: str) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=text, description=text)
    parser.set_defaults(run=run)
    return parser


def _up(options: argparse.Namespace) -> None:
    print(ensure_cluster(options.name, keep=options.keep).kubeconfig)


def _down(options: argparse.Namespace) -> None:
    remove_cluster(options.name, unless_kept=options.unless_kept)


def _load(options: argparse.Namespace) -> None:
    cluster = ensure_cluster(options.name)
    print(load_image(cluster, ensure_image(options.tag) if cluster.is_kind else options.tag))


def _image(options: argparse.Namespace) -> None:
    print(ensure_image(options.tag))


def _tools(options: argparse.Namespace) -> None:
    print(ensure_tools(find_folders()))


def _clean(options: argparse.Namespace) -> None:
    clean(everything=options.all)


if __name__ == "__main__":
    sys.exit(main())
