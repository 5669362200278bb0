"""Who keeps the helpers running, as the settings say: the agent, or containers of their own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from agent.config import Config
from agent.helpers.elsewhere import Elsewhere
from agent.helpers.order import Order, boot_id
from agent.instance import Instance
from agent.privileges import ROOT, reduced
from agent.supervisor import Kept, Supervisor


def flows(config: Config, instance: Instance) -> Kept:
    command = instance.flows_command(config)
    if config.helpers == "children":
        return Supervisor("flows", command, instance.flows_socket, instance.flows_log)
    return _elsewhere("flows", instance, command, instance.flows_socket)


def dns(config: Config, instance: Instance) -> Kept:
    """Root's, without root's capabilities: see agent.privileges."""
    command = instance.dns_command(config)
    if config.helpers == "children":
        return Supervisor("dns", command, instance.dns_socket, instance.dns_log, reduced(user=ROOT))
    return _elsewhere("dns", instance, command, instance.dns_socket, user=ROOT)


def envoy(config: Config, instance: Instance, command: Sequence[str], user: int) -> Kept:
    """Started in its own folder, as `user`."""
    if config.helpers == "children":
        return Supervisor(
            "envoy", command, instance.envoy_socket, instance.envoy_log, reduced(user), folder=instance.envoy
        )
    return _elsewhere("envoy", instance, command, instance.envoy_socket, user=user, folder=instance.envoy)


def _elsewhere(
    name: str,
    instance: Instance,
    command: Sequence[str],
    socket: Path,
    *,
    user: int | None = None,
    folder: Path = Path("/"),
) -> Elsewhere:
    """`user`: with few privileges, as this one; None: with all the container has."""
    order = Order(
        boot=boot_id(),
        command=tuple(command),
        socket=str(socket),
        needs=() if name == "envoy" else (str(instance.pins.maps),),
        reduced=user is not None,
        user=user or ROOT,
        folder=str(folder),
    )
    return Elsewhere(name, order, instance.order(name))
