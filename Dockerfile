# The image of Gatehouse: the agent, its helper processes and the CNI plugin.     make image
#
# There is no compiler in it but the library by which the agent compiles the datapath (python3-bpfcc). wireguard-go is for
# nodes whose kernel has no WireGuard. It starts as root:
# what loads programs into the kernel has to be. Envoy then becomes user 27262 and keeps CAP_NET_RAW alone, as does the
# DNS proxy, which stays root's (agent/privileges.py).

# A dated tag and its digest: the same for everybody, until somebody changes it here.
ARG BASE=debian:bookworm-20250520-slim@sha256:90522eeb7e5923ee2b871c639059537b30521272f10ca86fdbbbb2b75a8c40cd

FROM ${BASE} AS build
RUN apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends \
      ca-certificates gcc libc6-dev python3 python3-setuptools python3-venv python3-wheel
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /src
COPY pyproject.toml requirements.lock .ci/runtime_packages.py ./
RUN python3 -m venv --system-site-packages /opt/gatehouse && \
    python3 runtime_packages.py > /tmp/runtime.lock && \
    /opt/gatehouse/bin/pip install --require-hashes --no-deps -r /tmp/runtime.lock
COPY README.md LICENSE ./
COPY agent agent
COPY policies policies
COPY l7proxy l7proxy
COPY bpf bpf
RUN python3 -m agent.cni.build && \
    /opt/gatehouse/bin/pip install --no-deps --no-build-isolation . && \
    /opt/gatehouse/bin/pip uninstall --yes pip setuptools

FROM ${BASE}
ARG BPFCC=0.26.0+ds-1
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="Gatehouse" \
      org.opencontainers.image.description="Identity-aware network security agent for Kubernetes nodes" \
      org.opencontainers.image.licenses="Apache-2.0 AND (GPL-2.0-only OR BSD-2-Clause)" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
RUN apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends \
      linux-libc-dev python3 "python3-bpfcc=${BPFCC}" wireguard-go && \
    rm -rf /var/lib/apt/lists/* /var/cache/* /var/log/* && \
    find / -xdev -type f -perm /6000 -exec chmod a-s {} + && \
    groupadd --gid 27262 gatehouse-envoy && \
    useradd --uid 27262 --gid 27262 --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin gatehouse-envoy
COPY --from=build /opt/gatehouse /opt/gatehouse
ENV PATH=/opt/gatehouse/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
ENTRYPOINT ["gatehouse"]
CMD ["--help"]
