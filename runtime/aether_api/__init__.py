"""The public contract of Aether: identities, subjects, envelopes, resource types and errors.

Everything another process, language or person may rely on is defined here and nowhere else. The package imports no
other package of the project, holds no IO and no clock, so every part can depend on it.
"""
