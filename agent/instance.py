"""What belongs to one agent outside its process, by its state directory: files, pins, names, the flows process.

A note under /run/gatehouse says which state directories there are, so that `gatehouse cleanup --all` finds them.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from agent.config import Config
from agent.config.handover import Shown
from agent.datapath.pins import Pins, instance_name

NOTES = Path("/run/gatehouse/agents")


class Instance:
    """`settings`: of an agent that runs, as people are shown them."""

    def __init__(self, state_dir: Path, settings: Sequence[Shown] = ()) -> None:
        self.settings = settings
        self.state_dir = state_dir.resolve()
        self.name = instance_name(self.state_dir)
        self.short_name = self.name.rpartition("-")[2]
        """Part of the names of pods' network namespaces."""
        self.state = self.state_dir / "state.json"
        self.last_good = self.state_dir / "last-good"
        self.pods = self.state_dir / "pods"
        self.node = self.state_dir / "node.json"
        self.traces = self.state_dir / "traces.json"
        self.big_tcp = self.state_dir / "bigtcp.json"
        """Limits of the node's devices from before."""
        self.agent_socket = self.state_dir / "agent.sock"
        self.flows_socket = self.state_dir / "flows.sock"
        self.flows_log = self.state_dir / "flows.log"
        self.envoy = self.state_dir / "envoy"
        """Envoy works in it, as a user of its own. See agent.privileges."""
        self.xds_socket = self.envoy / "xds.sock"
        self.access_log_socket = self.envoy / "accesslog.sock"
        self.envoy_socket = self.envoy / "admin" / "envoy.sock"
        """Its admin interface."""
        self.envoy_log = self.state_dir / "envoy.log"
        self.dns_socket = self.state_dir / "dns.sock"
        self.dns_log = self.state_dir / "dns.log"
        self.dns_names = self.state_dir / "names.json"
        self.wireguard_log = self.state_dir / "wireguard.log"
        self.encrypting = self.state_dir / "encrypting"

    def order(self, helper: str) -> Path:
        """What the container of a helper is to run. Envoy's is where its user can read it."""
        return self.envoy / "helper.json" if helper == "envoy" else self.state_dir / f"{helper}.helper.json"

    @property
    def pins(self) -> Pins:
        """Mounts bpffs where it is not mounted. Raises mounts.Unmet."""
        return Pins.of(self.name)

    def remove_other_pins(self, source_hashes: Iterable[str]) -> None:
        """Pins of earlier versions, and of units that are not used any more, once nothing that stays needs them."""
        self.pins.remove_others([self.pins.maps, *map(self.pins.programs, source_hashes)])

    def flows_command(self, config: Config) -> list[str]:
        options = {
            "--state-dir": str(self.state_dir),
            "--pin-dir": str(self.pins.maps),
            "--node": config.node,
            "--records": str(config.flows_ring),
            "--log-format": config.log_format,
            "--log-level": config.log_level,
        }
        words = [word for option in options.items() for word in option]
        words += ["--l7-unredacted"] if config.l7_unredacted else []
        return [sys.executable, "-m", "agent.flows.process", *words]

    def dns_command(self, config: Config) -> list[str]:
        options = {
            "--state-dir": str(self.state_dir),
            "--pin-dir": str(self.pins.maps),
            "--log-format": config.log_format,
            "--log-level": config.log_level,
        }
        return [sys.executable, "-m", "agent.dns.process", *(word for option in options.items() for word in option)]

    def note(self) -> None:
        NOTES.mkdir(parents=True, exist_ok=True)
        (NOTES / self.name).write_text(str(self.state_dir))

    def forget(self) -> None:
        (NOTES / self.name).unlink(missing_ok=True)


def noted() -> Iterator[Instance]:
    """Of every agent on this machine that was not cleaned up after."""
    for note in sorted(NOTES.glob("*")) if NOTES.is_dir() else ():
        yield Instance(Path(note.read_text()))
