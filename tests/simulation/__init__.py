"""A deterministic simulation of whole clusters: the production core under a virtual clock, a simulated NATS server, and faults.

Everything of a run comes from its seed: when what is sent, which link is cut, who is killed or paused. So a failure is run
again by its seed alone, as often as it takes (FoundationDB and TigerBeetle's VOPR test in this way).

What is real: runtimes with all their parts, the clients, the event bus, nats-py with the fast layer, and the bytes of the NATS protocol.
What is simulated: the event loop's clock (`loop`), TCP (`network`), the server (`server`, which passes the same contract tests as
nats-server), the operator and Kubernetes (`operator`), and the people who send commands (`clients`).

    python -m tests.simulation --seeds 1-1000     # runs many, keeps traces of those that fail under build/simulation
    python -m tests.simulation --seeds 17 --trace # shows what happened

`failing_seeds.txt` holds seeds that once failed; they run always.
"""
