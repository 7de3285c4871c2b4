"""The benches of the actor runtime: what it does, beside what is possible and beside what others do.

Every figure is a ratio of two sides that were measured in turns in one run (A B A B ...), since machines differ and drift.
`bench.catalogue` lists the benches; `python -m bench` (or `make bench`) runs them and prints one JSON line for each
comparison. docs/performance.md explains the limits.
"""
