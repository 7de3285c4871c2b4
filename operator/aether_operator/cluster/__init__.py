"""Connects decisions with the world: what was seen becomes a snapshot, what was planned becomes calls.

records      documents of the API server to what the operator keeps of them
heartbeats   what pods say over NATS, and since when we could hear
detector     looks for pods that fell silent, and pings them
overlay      what was decided and does not show in the caches yet
observe      the informers, and the snapshot made of all the above
keyed_queue  work by name: the newest wins, failures come back later
assignments  tells pods what to hold
statuses     writes the operator's part of a status
purges       deletes the history of an actor, then lets its resource go
deletion_costs  tells Kubernetes which pods a scale-down shall take
execute      carries a plan out
reconcile    the loop: observe, plan, check, execute
"""
