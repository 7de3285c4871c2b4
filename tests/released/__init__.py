"""What released versions stored and sent, byte for byte, and that every build understands it still.

A folder for each release holds what it left behind: `streams.json` and `messages.jsonl` (its streams, on a real server), `models/`
(the resources and modules that wrote them), `expected.json` (what it said of its actors), `wire.json` (what it sent) and
`schemas.json` (what its resources could say). `python -m tests.released v1.2.3` writes the folder of a new release, and never touches
an existing one: a build that cannot read it is wrong, not the folder.
"""
