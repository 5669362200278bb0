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
    if _is_child("flows", config, instance):
        return Supervisor("flows", command, instance.flows_socket, instance.flows_log)
    return _elsewhere("flows", instance, command, instance.flows_socket)


def dns(config: Config, instance: Instance) -> Kept:
    """Root's, without root's capabilities: see agent.privileges."""
    command = instance.dns_command(config)
    if _is_child("dns", config, instance):
        return Supervisor("dns", command, instance.dns_socket, instance.dns_log, reduced(user=ROOT))
    return _elsewhere("dns", instance, command, instance.dns_socket, user=ROOT)


def envoy(config: Config, instance: Instance, command: Sequence[str], user: int) -> Kept:
    """Started in its own folder, as `user`."""
    if _is_child("envoy", config, instance):
        return Supervisor(
            "envoy", command, instance.envoy_socket, instance.envoy_log, reduced(user), folder=instance.envoy
        )
    return _elsewhere("envoy", instance, command, instance.envoy_socket, user=user, folder=instance.envoy)


def _is_child(name: str, config: Config, instance: Instance) -> bool:
    """Then no container is to run it: an earlier agent may have said so."""
    if config.helpers == "containers":
        return False
    instance.order(name).unlink(missing_ok=True)
    return True


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
