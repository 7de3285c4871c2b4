"""The shell: kopf runs the process, logs in, watches the kinds that are few, and answers the probes.

models     checks ActorModels and writes what was found
pools      keeps what ActorPools are made of, and writes how they are
probes     says whether this process is well
lifecycle  starts everything under one supervisor, and ends it
"""
