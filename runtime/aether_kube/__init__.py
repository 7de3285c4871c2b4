"""Aether's link to the Kubernetes API: calls, server-side apply and one small informer.

The operator and the runtime pods use the same code. Configuration and credentials come from the official `kubernetes`
package; calls and watches are raw aiohttp with orjson, since generated clients and kopf cost 10 to 100 times the CPU an
event. No aiohttp or kubernetes exception leaves this package: all become errors of `aether_api.errors`.

    documents   JSON as the API server speaks it, and safe ways to read it
    kinds       resource kinds and the paths of their objects
    connection  where the API server is and how to prove who we are
    answers     pure: which error of ours a refusal is
    client      one call at a time, each with a deadline
    store       pure: what a list or a watch event changes
    watch       pure: bytes of a watch to lines, lines to events
    backoff     pure: how long to wait after failures
    informer    list, watch, reconnect, list again
    apply       compare before write
    lease       pure: who leads
    leader      campaigns for a Lease, renews it, and ends the work when it is lost
    conditions  conditions that keep their transition time
    kube_events Kubernetes Events, counted instead of repeated
    probe_server what the kubelet's probes ask
"""
