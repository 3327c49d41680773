# Three images from one file:
#
#   docker build --target gateway -t rpiae-gateway .          HTTP, no model, no torch
#   docker build --target worker-cpu -t rpiae-worker .        the model on a CPU
#   docker build --target worker-gpu -t rpiae-worker-gpu .    the model on an NVIDIA GPU (CUDA 13)
#
# All run as user 10001 on a read-only root file system with a writable /tmp, and carry the bundle
# `stickers`; mount another one and name it in RPIAE_BUNDLE. deploy/README.md says what was tested.

# With Debian's own Python, which gets its security updates.
FROM debian:bookworm-20251117-slim AS base
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3 \
    && apt-get clean && rm -rf /var/lib/apt/lists/*
ENV PYTHONUNBUFFERED=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_ROOT_USER_ACTION=ignore


# The virtual environment that each image copies, and the package as a wheel.
FROM base AS build
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3-venv ca-certificates \
    && rm -rf /var/lib/apt/lists/* \
    && python3 -m venv /opt/rpiae
ENV PATH=/opt/rpiae/bin:$PATH
WORKDIR /src
COPY constraints.txt ./
RUN --mount=type=cache,target=/root/.cache/pip \
    pip install -c constraints.txt setuptools

FROM build AS wheel
COPY pyproject.toml README.md LICENSE ./
COPY models models
COPY training training
COPY export export
COPY service service
RUN pip wheel --no-deps --no-build-isolation -w /wheel .


# Requirements come before the package, so that a change of the code installs nothing else anew.
# What installs packages does not stay, nor do their tests and bytecode, which are a quarter of the
# gateway's packages; it starts a second later for it.
FROM build AS gateway-packages
COPY deploy/gateway.txt ./
RUN --mount=type=cache,target=/root/.cache/pip \
    pip install --no-compile -c constraints.txt -r gateway.txt
COPY --from=wheel /wheel /wheel
RUN pip install --no-compile --no-cache-dir --no-deps /wheel/*.whl \
    && pip uninstall --yes setuptools pip \
    && find /opt/rpiae -name tests -type d -prune -exec rm -r {} + \
    && python -B -c "import service.cli, service.gateways, service.api.server, service.otlp"

# torch alone first, so that what comes after it brings no other build. The default index has the
# CUDA build, which is many times larger.
FROM build AS worker-cpu-packages
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN --mount=type=cache,target=/root/.cache/pip \
    pip install -c constraints.txt --extra-index-url "$TORCH_INDEX" torch
COPY --from=wheel /wheel /wheel
RUN --mount=type=cache,target=/root/.cache/pip \
    pip install -c constraints.txt "$(echo /wheel/*.whl)[onnxruntime,tracing]" \
    && pip uninstall --yes setuptools pip

FROM build AS worker-gpu-packages
RUN --mount=type=cache,target=/root/.cache/pip \
    pip install -c constraints.txt torch
COPY --from=wheel /wheel /wheel
RUN --mount=type=cache,target=/root/.cache/pip \
    pip install -c constraints.txt "$(echo /wheel/*.whl)[gpu,tracing]" \
    && pip uninstall --yes setuptools pip


FROM base AS runtime
RUN useradd --uid 10001 --user-group --no-create-home --shell /usr/sbin/nologin rpiae
ENV PATH=/opt/rpiae/bin:$PATH \
    HOME=/tmp \
    OMP_WAIT_POLICY=PASSIVE \
    RPIAE_BUNDLE=/srv/bundles/stickers \
    RPIAE_HOST=0.0.0.0
WORKDIR /srv
USER 10001:10001
ENTRYPOINT ["rpiae"]


FROM runtime AS gateway
COPY --from=gateway-packages /opt/rpiae /opt/rpiae
# Of the model it needs the description, not the weights.
COPY bundles/stickers/manifest.json bundles/stickers/vocabulary.json bundles/stickers/
EXPOSE 8000
HEALTHCHECK --interval=5s --timeout=3s --start-period=20s --retries=3 \
    CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:8000/healthz', timeout=2)"]
CMD ["gateway"]


# Its metrics answer once the model is loaded.
FROM runtime AS worker
ENV RPIAE_METRICS_PORT=9100
COPY bundles/stickers bundles/stickers
EXPOSE 9100
HEALTHCHECK --interval=5s --timeout=3s --start-period=120s --retries=3 \
    CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:9100/metrics', timeout=2)"]
CMD ["worker"]

FROM worker AS worker-gpu
# What torch.compile builds kernels with, when a worker starts.
USER 0:0
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ python3-dev \
    && apt-get clean && rm -rf /var/lib/apt/lists/*
USER 10001:10001
ENV NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
COPY --from=worker-gpu-packages /opt/rpiae /opt/rpiae

FROM worker AS worker-cpu
COPY --from=worker-cpu-packages /opt/rpiae /opt/rpiae
