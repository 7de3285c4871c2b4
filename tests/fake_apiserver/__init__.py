"""A small API server in this process: enough of Kubernetes' HTTP rules for the client and the informer, plus the faults
that a real one shows once a month and a test needs now.

It stores documents, counts one resourceVersion over all collections, serves paged lists and watches with bookmarks, answers
conflicts, preconditions and unknown versions as the real one does, and takes server-side apply as a plain merge (ownership
of fields is not tracked). It checks no schema. What it does not know it refuses, loudly.
"""

from tests.fake_apiserver.server import FakeApiServer, Fault

__all__ = ["FakeApiServer", "Fault"]
