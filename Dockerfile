# The image of Aether: every part is a sub-command of `aether` (operator, runtime, ...). Builds with and without BuildKit.
#
#   docker build --tag aether:dev .          from the package index, on the default base
#   python -m tests.cluster image            the same, on a base that this machine can have
#
# If build/wheels holds wheels, they alone are installed, and no index is asked.
ARG BASE_IMAGE=python:3.13-slim

FROM ${BASE_IMAGE} AS dependencies
WORKDIR /build
COPY requirements/build.txt requirements/image.txt build/wheel[s] wheels/
# Two virtual environments without pip of their own: what the image runs with, and what builds our wheel.
RUN set -eu; \
    from=; if ls wheels/*.whl >/dev/null 2>&1; then from="--no-index --find-links=wheels"; fi; \
    install() { \
        python3 -m venv --without-pip "$1"; \
        python3 -m pip --python "$1/bin/python" install --no-cache-dir --disable-pip-version-check --require-hashes $from -r "$2"; \
    }; \
    install /opt/aether wheels/image.txt; \
    install /opt/backend wheels/build.txt

FROM dependencies AS wheel
COPY pyproject.toml README.md LICENSE ./
COPY operator operator
COPY runtime runtime
RUN python3 -m pip --python /opt/backend/bin/python wheel --no-deps --no-index --no-build-isolation --wheel-dir /dist .

FROM ${BASE_IMAGE}
LABEL org.opencontainers.image.title="aether" \
      org.opencontainers.image.description="Event-sourced actors on Kubernetes: operator, runtime and tools" \
      org.opencontainers.image.licenses="Apache-2.0"
# A name for the user: libraries that ask who they are (getpass, kopf) must get an answer.
RUN echo 'aether:x:65532:65532:aether:/tmp:/usr/sbin/nologin' >>/etc/passwd && echo 'aether:x:65532:' >>/etc/group
# A layer for the dependencies and a small one for our code: after a change only the small one is built, pushed and loaded.
COPY --from=dependencies /opt/aether /opt/aether
COPY --from=wheel /dist /dist
RUN python3 -m pip --python /opt/aether/bin/python install --no-cache-dir --disable-pip-version-check --no-deps --no-index /dist/*.whl
ARG VERSION=dev
LABEL org.opencontainers.image.version="${VERSION}"
# Nothing is written below /: the root file system may be read-only. /tmp is for whoever mounts one.
ENV PATH=/opt/aether/bin:/usr/local/bin:/usr/bin:/bin \
    HOME=/tmp \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
# By number, so that Kubernetes can tell that it is not root.
USER 65532:65532
ENTRYPOINT ["aether"]
