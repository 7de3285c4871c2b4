"""A kubeconfig for an API server that asks for no certificate."""

from __future__ import annotations

from pathlib import Path

import yaml


def write_kubeconfig(folder: Path, *, server: str = "http://127.0.0.1:1234/", token: str = "secret") -> Path:
    """Write a kubeconfig of two contexts, of which `one` is the current one."""
    file = folder / "kubeconfig"
    content = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "one",
        "clusters": [{"name": "one", "cluster": {"server": server}}, {"name": "two", "cluster": {"server": "http://two:80"}}],
        "users": [{"name": "one", "user": {"token": token}}],
        "contexts": [{"name": name, "context": {"cluster": name, "user": "one"}} for name in ("one", "two")],
    }
    file.write_text(yaml.safe_dump(content))
    return file
