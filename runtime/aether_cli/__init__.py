"""The `aether` command. Sub-commands import what they need when they run, so that `aether --help` stays fast."""
