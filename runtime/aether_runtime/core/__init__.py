"""The pure heart of the runtime: values in, values out; no clock, no IO, no randomness."""
