"""What a process of the operator is made of, from its start to its end.

models         checks ActorModels and writes what was found
pools          keeps what ActorPools are made of, and writes how they are
probes         says whether this process is well, and `health` answers the kubelet with it
shell          keeps kopf, which logs in and watches the kinds that are few
control_plane  what runs while this process leads
candidate      leads, or waits to lead
lifecycle      starts everything under one supervisor, and ends it
"""
