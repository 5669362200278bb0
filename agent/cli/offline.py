"""Manifests read without an agent: what `policy check`, `policy explain` and `plan` work on."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from agent.cli import given
from agent.cli.output import Failure
from agent.config import CONFIG_VARIABLE, Config, check
from agent.objects import Pod
from agent.settings import node_config
from agent.sources import yaml_reader
from agent.sources.documents import YamlSource, split
from agent.sources.items import Written
from agent.sources.manifest import parse, unreadable
from agent.sources.slices import derive
from agent.sources.tree import Tree
from agent.sources.watches import Watches
from agent.sources.yaml_reader import BadYaml
from agent.world.namespaces import METADATA_NAME
from agent.world.world import World
from policies.facts import Namespaces, PodFacts
from policies.model import SERVICE_ACCOUNT, ContainerPort, Origin


def files(paths: Iterable[Path]) -> Iterator[Path]:
    """Files as given; of a folder, those an agent would read. Raises Failure."""
    for path in paths:
        if path.is_dir():
            watches = Watches(path)
            try:
                yield from (path / name for name in sorted(watches.scan()))
            finally:
                watches.close()
        elif path.exists():
            yield path
        else:
            raise Failure(f"{path} is not there: name a manifest or a folder of manifests")


def read(paths: Iterable[Path]) -> Tree:
    tree = Tree()
    for path in files(paths):
        try:
            tree.put(parse(path.read_bytes(), str(path)))
        except OSError as error:
            tree.put(unreadable(str(path), f"cannot be read: {error.strerror}"))
    return tree


def documents(paths: Iterable[Path]) -> Iterator[Written]:
    """Every object as it is written, of lists one by one; what cannot be read is left out."""
    for path in files(paths):
        try:
            for chunk in split(path.read_bytes(), str(path)):
                document = yaml_reader.read(chunk.text)
                if document is None or not isinstance(document.value, dict):
                    continue
                first = chunk.before + 1
                items = document.value.get("items")
                if not (isinstance(items, list) and str(document.value.get("kind")).endswith("List")):
                    source = YamlSource(document.value, chunk.text)
                    yield Written(source, Origin(str(path), first + document.line), chunk.before)
                    continue
                lines = document.items if len(document.items) == len(items) else [document.line] * len(items)
                for index, (item, line) in enumerate(zip(items, lines, strict=True)):
                    source = YamlSource(item, chunk.text, f"items[{index}].")
                    yield Written(source, Origin(str(path), first + line), chunk.before)
        except (OSError, BadYaml):
            continue  # `read` says what is wrong


OF_A_CLUSTER = frozenset(
    {"source", "kubeconfig", "pods", "cni_conf_dir", "cni_bin_dir", "cni_chain", "ipam", "pool", "pool_block_bits"}
)
"""Settings that say where an agent's objects, pods and addresses come from: here they come from the manifests."""


def config_of(folder: Path) -> Config:
    """As an agent of these manifests would be started with this environment."""
    file = os.environ.get(CONFIG_VARIABLE)
    resolved = given.gathered(Path(file) if file else None, {"manifests": str(folder)}, without=OF_A_CLUSTER)
    check(resolved)
    return resolved.config


def world_of(tree: Tree, config: Config) -> World:
    """The world as a new agent would have it, addresses included."""
    world = World(node_config(config), derive)
    world.apply_all(tree.settle())
    return world


def namespaces(world: World) -> Namespaces:
    """Labels of each namespace that is declared or has a pod."""
    used = {state.pod.ref.namespace for state in world.pods}
    declared = {name: namespace.labels for name, namespace in world.namespaces.items()}
    return {name: {METADATA_NAME: name, **declared.get(name, {})} for name in used | declared.keys()}


def facts(pod: Pod) -> PodFacts:
    ports = frozenset(ContainerPort(p.name, p.protocol, p.number) for p in pod.ports if p.name)
    labels = {**pod.labels, SERVICE_ACCOUNT: pod.service_account}
    return PodFacts(pod.ref.namespace, pod.ref.name, labels, ports)
