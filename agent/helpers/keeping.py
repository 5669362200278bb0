"""Who keeps the helpers running, as the settings say: the agent, or containers of their own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from agent.config import Config
from agent.helpers.elsewhere import Elsewhere
from agent.helpers.names import Name
from agent.helpers.order import Order, boot_id
from agent.instance import Instance
from agent.privileges import ROOT, reduced
from agent.supervisor import Kept, Supervisor


def flows(config: Config, instance: Instance) -> Kept:
    command = instance.flows_command(config)
    if _is_child(Name.FLOWS, config, instance):
        return Supervisor(Name.FLOWS, command, instance.flows_socket, instance.flows_log)
    return _elsewhere(Name.FLOWS, instance, command, instance.flows_socket, (instance.pins.maps,))


def dns(config: Config, instance: Instance) -> Kept:
    """Root's, without root's capabilities: see agent.privileges."""
    command = instance.dns_command(config)
    if _is_child(Name.DNS, config, instance):
        return Supervisor(Name.DNS, command, instance.dns_socket, instance.dns_log, reduced(user=ROOT))
    return _elsewhere(Name.DNS, instance, command, instance.dns_socket, (instance.pins.maps,), user=ROOT)


def envoy(config: Config, instance: Instance, command: Sequence[str], user: int) -> Kept:
    """Started in its own folder, as `user`."""
    if _is_child(Name.ENVOY, config, instance):
        return Supervisor(
            Name.ENVOY, command, instance.envoy_socket, instance.envoy_log, reduced(user), folder=instance.envoy
        )
    return _elsewhere(Name.ENVOY, instance, command, instance.envoy_socket, user=user, folder=instance.envoy)


def wireguard(config: Config, instance: Instance, command: Sequence[str], socket: Path, needs: Sequence[Path]) -> Kept:
    """The program behind a WireGuard device."""
    if _is_child(Name.WIREGUARD, config, instance):
        return Supervisor(Name.WIREGUARD, command, socket, instance.wireguard_log)
    return _elsewhere(Name.WIREGUARD, instance, command, socket, needs)


def _is_child(name: Name, config: Config, instance: Instance) -> bool:
    """Then no container is to run it: an earlier agent may have said so."""
    if config.helpers == "containers":
        return False
    instance.order(name).unlink(missing_ok=True)
    return True


def _elsewhere(
    name: Name,
    instance: Instance,
    command: Sequence[str],
    socket: Path,
    needs: Sequence[Path] = (),
    *,
    user: int | None = None,
    folder: Path = Path("/"),
) -> Elsewhere:
    """`user`: with few privileges, as this one; None: with all the container has."""
    order = Order(
        boot=boot_id(),
        command=tuple(command),
        socket=str(socket),
        needs=tuple(map(str, needs)),
        reduced=user is not None,
        user=user or ROOT,
        folder=str(folder),
    )
    return Elsewhere(name, order, instance.order(name))
