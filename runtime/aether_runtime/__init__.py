"""The runtime of actors: replay, decide, append, answer; one process holds many VMs.

Reading order: `ports` (what the world must offer), `core` (pure: window, history, groups, snapshots), `vm` (one live
actor), `runtime` (all of a process), `router` (calls for actors elsewhere), `reporter` (status on a budget), `adapters`.
"""
