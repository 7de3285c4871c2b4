"""A NATS server in memory, at the bytes of its protocol: core NATS, and of JetStream what Aether uses.

It counts as a stand-in because it passes the tests that nats-server itself passes: `tests/contract` and the tests of inboxes,
schedules and the JetStream calls run against both.

Without faults it does everything at once, in order. A `Hazards` object makes it behave as a cluster of three does at its worst:
writes under way, elections, replicas that are behind, messages that are lost between servers.
"""
