# The image of Aether: every part is a sub-command of `aether` (operator, runtime, ...). Builds with and without BuildKit.
#
#   docker build --tag aether:dev .                                  from the package index
#   python -m tests.cluster image                                    the same, on a base that this machine can have
#
# If build/wheels holds wheels, they alone are installed, and no index is asked.
ARG BASE_IMAGE=python:3.13-slim

FROM ${BASE_IMAGE} AS build
WORKDIR /build
# The dependencies come first: a change of our code does not install them again.
COPY requirements/build.txt requirements/image.txt build/wheel[s] wheels/
RUN set -eu; \
    from=; if ls wheels/*.whl >/dev/null 2>&1; then from="--no-index --find-links=wheels"; fi; \
    for venv in /opt/aether /opt/backend; do python3 -m venv --without-pip "$venv"; done; \
    pip() { python3 -m pip --disable-pip-version-check --python "$venv/bin/python" "$@"; }; \
    venv=/opt/backend; pip install --no-cache-dir --require-hashes $from -r wheels/build.txt; \
    venv=/opt/aether; pip install --no-cache-dir --require-hashes $from -r wheels/image.txt
COPY pyproject.toml README.md LICENSE ./
COPY operator operator
COPY runtime runtime
RUN set -eu; \
    pip() { python3 -m pip --disable-pip-version-check --python "$venv/bin/python" "$@"; }; \
    venv=/opt/backend; pip wheel --no-cache-dir --no-deps --no-build-isolation --no-index --wheel-dir dist .; \
    venv=/opt/aether; pip install --no-cache-dir --no-deps --no-index dist/*.whl

FROM ${BASE_IMAGE}
ARG VERSION=dev
LABEL org.opencontainers.image.title="aether" \
      org.opencontainers.image.description="Event-sourced actors on Kubernetes: operator, runtime and tools" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}"
# A name for the user: libraries that ask who they are (getpass, kopf) must get an answer.
RUN echo 'aether:x:65532:65532:aether:/tmp:/usr/sbin/nologin' >>/etc/passwd && echo 'aether:x:65532:' >>/etc/group
COPY --from=build /opt/aether /opt/aether
# Nothing is written below /: the root file system may be read-only. /tmp is for whoever mounts one.
ENV PATH=/opt/aether/bin:/usr/local/bin:/usr/bin:/bin \
    HOME=/tmp \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
# By number, so that Kubernetes can tell that it is not root.
USER 65532:65532
ENTRYPOINT ["aether"]
