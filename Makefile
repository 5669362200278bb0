# Gatehouse's commands. Each sets up what it needs on a fresh Debian 12 machine (as root); a second run starts in seconds.
#
#   make demo     a small cluster-in-a-box: policies enforced on real traffic
#   make test     every test (ARGS="-k name" to choose; ARGS="--judgements 200000" for a longer differential test)
#   make check    ruff, mypy --strict, import contracts
#   make bench    speed and size, as ratios within one run
#   make kernels  every program, packet table, and encryption by the kernel's WireGuard on Debian's 6.1 and 6.12 kernels,
#                 in QEMU: an hour or more for each (KERNELS=6.12 ARGS="-k test_pods" to choose)
#   make image    the container image (IMAGE=name:tag), with docker or buildah, whichever is there
#   make insns    instructions per BPF program, as this kernel's verifier counts them
#   make lock     choose newer Python packages and pin them
#   make clean    remove what the above made in this folder, and anything a demo or test left on the machine

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

DEBIAN := python3 python3-venv python3-bpfcc linux-libc-dev iproute2 procps iputils-ping make gcc libc6-dev \
          containernetworking-plugins wireguard-go wireguard-tools
BENCH_DEBIAN := util-linux
KERNELS ?= 6.1 6.12
KERNEL_TESTS := tests/bpf tests/agent/encryption tests/netns/test_encryption_datapath.py \
                $(addprefix tests/cluster/test_kube_encryption,.py _changes.py _ways.py) \
                $(patsubst %,tests/agent/datapath/test_%.py,apply bytecode cgroup devices maps network programs sockets tc)
PY := .venv/bin/python
JOBS ?= auto
ARGS ?=

IMAGE ?= gatehouse:dev
IMAGE_BUILDER ?= $(shell command -v docker || command -v buildah)
IMAGE_ARGS ?=

.PHONY: help demo test check bench kernels insns image lock clean setup

help:
	@sed -n '3,13{s/^#   //;p}' Makefile

# One stamp for the packages, one for the venv: make redoes what changed, and nothing else.
.venv/debian: Makefile
	@missing=$$(for p in $(DEBIAN) $(BENCH_DEBIAN); do dpkg-query -W -f='$${Status}' $$p 2>/dev/null | grep -q ' installed' || echo $$p; done); \
	if [ -n "$$missing" ]; then \
	  [ "$$(id -u)" = 0 ] || { echo "set-up: run as root, or install first:" $$missing >&2; exit 1; }; \
	  echo "set-up: installing Debian packages:" $$missing; \
	  apt-get -qq update; DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends $$missing >/dev/null; \
	fi
	@mkdir -p .venv; touch $@

.venv/python: requirements.lock pyproject.toml | .venv/debian
	@[ -x $(PY) ] || { echo "set-up: making .venv (with Debian's bcc visible)"; /usr/bin/python3 -m venv --system-site-packages .venv; }
	@echo "set-up: installing pinned Python packages"
	@$(PY) -m pip install -q --disable-pip-version-check --require-hashes -r requirements.lock 2> >(grep -v ^WARNING >&2)
	@$(PY) -m pip install -q --disable-pip-version-check --no-deps --no-build-isolation -e . 2> >(grep -v ^WARNING >&2)
	@touch $@

# The CNI plugin, which an agent puts where container runtimes look for it.
agent/cni/plugin/gatehouse-cni: $(wildcard agent/cni/plugin/*.[ch]) agent/cni/build.py | .venv/python
	@$(PY) -m agent.cni.build $@

setup: .venv/debian .venv/python agent/cni/plugin/gatehouse-cni

demo: setup
	@.venv/bin/gatehouse demo $(ARGS)

test: setup
	@echo "test: running everything on $(JOBS) workers (ARGS=\"-k name\" to choose)"
	@$(PY) -m pytest -q -n $(JOBS) --dist worksteal $(ARGS)

check: setup
	@echo "check: ruff"; .venv/bin/ruff check .; .venv/bin/ruff format --check .
	@echo "check: mypy --strict"; .venv/bin/mypy; git ls-files '*conftest.py' | xargs -n 1 .venv/bin/mypy
	@echo "check: import contracts"; .venv/bin/lint-imports --no-logo 2>/dev/null || .venv/bin/lint-imports

bench: setup
	@PYTHONPATH=tests:tests/bpf $(PY) -m bench $(ARGS)

kernels: setup
	@for k in $(KERNELS); do echo "kernels: Debian's $$k, emulated"; \
	  tests/kernels/vm.py --kernel $$k --memory 4096 --timeout 10800 -- tests/kernels/run $(PY) $(KERNEL_TESTS) $(ARGS) || exit 1; done

insns: setup
	@$(PY) -m agent.datapath.programs --stats

image:
	@[ -n "$(IMAGE_BUILDER)" ] || { echo "image: neither docker nor buildah is here: install one" >&2; exit 1; }
	@echo "image: building $(IMAGE) with $(notdir $(IMAGE_BUILDER))"
	@$(IMAGE_BUILDER) $(if $(filter buildah,$(notdir $(IMAGE_BUILDER))),bud,build) -t $(IMAGE) \
	  --build-arg REVISION=$$(git rev-parse HEAD 2>/dev/null || echo unknown) $(IMAGE_ARGS) .

lock: .venv/debian
	@/usr/bin/python3 -m venv build/lock && build/lock/bin/pip install -q pip-tools 2> >(grep -v ^WARNING >&2)
	@build/lock/bin/python -m piptools compile -q --extra dev --generate-hashes --allow-unsafe --strip-extras --upgrade \
	  --no-emit-index-url --no-emit-find-links --no-emit-trusted-host -o requirements.lock pyproject.toml

clean:
	@if [ -x .venv/bin/gatehouse ] && [ "$$(id -u)" = 0 ]; then .venv/bin/gatehouse cleanup --all; fi
	@rm -rf .venv build *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
