"""The DNS proxy: `python -m agent.dns.process --state-dir DIR --pin-dir DIR`, in the node's network namespace.

Serves what dns.json in the state directory says, as soon as it runs: the agent may be away. It ends when it is told to
or its state directory is gone.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import resource
import signal
import sys
from pathlib import Path

from agent import log as logs
from agent.api.protocol import ApiError
from agent.api.server import Handler, serve
from agent.datapath import bpf
from agent.datapath.maps import MapMismatch, Maps
from agent.dns.service import Service

DESCRIPTORS = 65_536

log = logs.get("dns")


async def run(state_dir: Path, pin_dir: Path) -> None:
    """Raises ApiError where another process has the socket, BpfError or MapMismatch where the maps cannot be used."""
    with Maps.open_pinned(pin_dir) as maps:
        handlers: dict[str, Handler] = {}
        # The socket comes first: only its owner may touch names.json and the ports.
        async with await serve(state_dir / "dns.sock", handlers) as server:
            service = Service(state_dir, maps)
            handlers |= service.handlers()
            loop = asyncio.get_running_loop()
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.add_signal_handler(number, service.stopping.set)
            service.start()
            gc.freeze()
            log.info("DNS proxy runs", pin_dir=str(pin_dir))
            await service.run(server)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m agent.dns.process", description=__doc__)
    parser.add_argument("--state-dir", type=Path, required=True, help="where dns.json is, and dns.sock will be")
    parser.add_argument("--pin-dir", type=Path, required=True, help="where the maps are pinned")
    parser.add_argument("--log-format", choices=("text", "json"), default="text")
    parser.add_argument("--log-level", choices=("debug", "info", "warning", "error"), default="info")
    given = parser.parse_args()
    logs.configure(given.log_format, given.log_level)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard if hard < DESCRIPTORS else DESCRIPTORS, hard))
    try:
        asyncio.run(run(given.state_dir, given.pin_dir))
    except (ApiError, MapMismatch) as error:
        sys.exit(f"dns: {error}")
    except bpf.BpfError as error:
        sys.exit(f"dns: {error.strerror}: is the agent of this --pin-dir running, and are you root?")
    except PermissionError as error:
        sys.exit(f"dns: {error.strerror}: sockets with marks and others' addresses need root")


if __name__ == "__main__":
    main()
