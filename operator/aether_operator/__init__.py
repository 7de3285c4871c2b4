"""The operator: it decides which runtime pod holds which actor, and keeps pods, statuses and histories in line with that.

    settings    what the environment says
    planning    pure: who is alive, who holds what, what must change
    manifests   pure: what a pool is made of in Kubernetes
    cluster     observe, execute, repeat: the informers, NATS and the API server
    handlers    kopf's shell: process, probes, and the checks of ActorModel and ActorPool
    crdgen      the CRDs, generated from `aether_api`

One direction: `handlers` know `cluster`, which knows `planning` and `manifests`, which know nobody.
"""
