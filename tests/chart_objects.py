"""What is in the manifests that the chart makes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any

from helm_process import NAMESPACE

from agent.config import Given, environment
from agent.config import file as config_file

Object = dict[str, Any]

FIELDS = {"spec.nodeName": "node-1", "metadata.namespace": NAMESPACE}
"""Of the pod, as the kubelet puts them into variables."""


def pod(objects: list[Object]) -> Object:
    """The DaemonSet's template."""
    (found,) = (one for one in objects if one["kind"] == "DaemonSet")
    template: Object = found["spec"]["template"]
    return template


def containers(objects: list[Object]) -> Iterator[Object]:
    """Those that prepare first."""
    spec = pod(objects)["spec"]
    yield from spec["initContainers"]
    yield from spec["containers"]


def container(objects: list[Object], name: str) -> Object:
    (found,) = (one for one in containers(objects) if one["name"] == name)
    return found


def capabilities(objects: list[Object], name: str) -> list[str]:
    """Of a container."""
    found: list[str] = container(objects, name)["securityContext"]["capabilities"].get("add", [])
    return found


def mounted(one: Object) -> dict[str, str]:
    """Path in the container → volume."""
    return {mount["mountPath"]: mount["name"] for mount in one.get("volumeMounts", ())}


def variables(one: Object, objects: list[Object]) -> dict[str, str]:
    """Of a container, with what the kubelet puts in."""
    found = {}
    for variable in one.get("env", ()):
        source = variable.get("valueFrom", {})
        if "fieldRef" in source:
            found[variable["name"]] = FIELDS[source["fieldRef"]["fieldPath"]]
        elif (ref := source.get("secretKeyRef")) is not None:
            (secret,) = (o for o in objects if o["kind"] == "Secret" and o["metadata"]["name"] == ref["name"])
            found[variable["name"]] = secret["stringData"][ref["key"]]
        else:
            found[variable["name"]] = variable["value"]
    return found


def layers(objects: list[Object]) -> tuple[Mapping[str, Given], Mapping[str, Given]]:
    """What the agent's file says, and its variables, for agent.config.merge."""
    agent = container(objects, "agent")
    (config,) = (one["data"] for one in objects if one["kind"] == "ConfigMap")
    given = variables(agent, objects)
    path = PurePosixPath(given["GATEHOUSE_CONFIG"])
    assert str(path) in agent["command"]
    assert mounted(agent)[str(path.parent)] == "config"
    texts = {field: Given(text, field) for field, text in environment(given).items()}
    return config_file.parse(config[path.name], str(path)), texts
