"""One installation for all tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.cluster.cluster import Cluster
from tests.e2e.bank import EXAMPLES, Bank, install_bank, uninstall_bank


@pytest.fixture(scope="session")
def bank(cluster: Cluster) -> Iterator[Bank]:
    """Install Aether and the bank's model."""
    uninstall_bank(Bank(cluster, "bank"))  # what a run that was killed has left: its accounts are open already
    installed = install_bank(cluster, "bank")
    installed.kubectl("apply", f"--filename={EXAMPLES / '10-account-model.yaml'}")
    yield installed
    uninstall_bank(installed)
