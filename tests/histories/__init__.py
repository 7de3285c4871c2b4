"""Histories: what happened to an actor under faults, and whether it is what was promised.

`bank` is the example's model and its commands, `faults` a log that loses acks, refuses and waits, `world` live actors on
such a log, `invariants` the promises that every history keeps.
"""
