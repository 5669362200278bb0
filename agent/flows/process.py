"""The flows process: `python -m agent.flows.process --state-dir DIR --pin-dir DIR`.

Takes events out of the kernel's ring, and what proxies report; keeps the most recent, names and shows them; clears the
maps that flows fill, and ends flows whose backend is gone. It goes on while the agent restarts, and ends when it is
told to or its state directory is gone.
"""

from __future__ import annotations

import argparse
import asyncio
import platform
import signal
import sys
from pathlib import Path

from agent import log as logs
from agent.api.protocol import ApiError
from agent.api.server import serve
from agent.datapath import bpf
from agent.datapath.maps import MapMismatch, Maps
from agent.datapath.ring import Ring
from agent.flows.engine import Flows
from agent.flows.operations import Operations

log = logs.get("flows")


async def run(state_dir: Path, pin_dir: Path, *, node: str, records: int, redacted: bool = True) -> None:
    """Raises ApiError where another process has the socket, BpfError or MapMismatch where the maps cannot be used."""
    with Maps.open_pinned(pin_dir) as maps:
        flows = Flows(state_dir, pin_dir, maps, node=node, records=records, redacted=redacted)
        # The socket comes before the ring, which can have but one reader.
        async with await serve(state_dir / "flows.sock", Operations(flows).handlers()) as server:
            loop = asyncio.get_running_loop()
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.add_signal_handler(number, flows.stopping.set)
            ring = Ring(maps["events"].fd)
            try:
                log.info("flows process runs", pin_dir=str(pin_dir), records=records)
                await flows.run(server, ring)
            finally:
                ring.close()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m agent.flows.process", description=__doc__)
    parser.add_argument("--state-dir", type=Path, required=True, help="where agent.sock is, and flows.sock will be")
    parser.add_argument("--pin-dir", type=Path, required=True, help="where the maps are pinned")
    parser.add_argument("--node", default=platform.node(), help="name of this node in records")
    parser.add_argument("--records", type=int, default=16384, help="how many events are held")
    parser.add_argument("--l7-unredacted", action="store_true", help="show queries of requests, which may hold secrets")
    parser.add_argument("--log-format", choices=("text", "json"), default="text")
    parser.add_argument("--log-level", choices=("debug", "info", "warning", "error"), default="info")
    given = parser.parse_args()
    logs.configure(given.log_format, given.log_level)
    if given.records < 1:
        parser.error("--records must be 1 or more")
    work = run(given.state_dir, given.pin_dir, node=given.node, records=given.records, redacted=not given.l7_unredacted)
    try:
        asyncio.run(work)
    except (ApiError, MapMismatch) as error:
        sys.exit(f"flows: {error}")
    except bpf.BpfError as error:
        sys.exit(f"flows: {error.strerror}: is the agent of this --pin-dir running, and are you root?")


if __name__ == "__main__":
    main()
