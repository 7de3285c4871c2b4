"""NATS as Aether uses it: one connection, JetStream calls, the streams of a namespace, and a client for commands.

nats-py carries the connection (TLS, authentication, reconnect); on top of it lies a thin layer whose hot paths are
synchronous and callback based. No exception of nats-py leaves this package: callers meet only `aether_api.errors`.
"""
