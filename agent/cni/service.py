"""CNI on a node: the pods behind it, the socket, and the plugin where runtimes look for it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path

from agent import log as logs
from agent.cni.attachments import Attachments
from agent.cni.conflist import Installer, NotInstalled
from agent.cni.ipam import Ipam
from agent.cni.pods import CniPods
from agent.cni.server import Server
from agent.cni.surroundings import Surroundings
from agent.cni.verbs import Verbs
from agent.config import Config
from policies.address import Prefix

RETRY_S = 30.0
"""How often the plugin is looked at: others may remove it, or what it is chained behind may come."""

log = logs.get("cni")


class CniService:
    """`blocks`: from which pods get addresses; `reserved`: those in them that no pod gets, 16 bytes each."""

    def __init__(
        self,
        config: Config,
        state_dir: Path,
        around: Surroundings,
        blocks: Sequence[Prefix],
        reserved: Sequence[bytes],
    ) -> None:
        ipam = Ipam(time.monotonic)
        ipam.set_blocks(blocks, reserved)
        self.pods = CniPods(Attachments(state_dir / "attachments"), ipam, around, chained=bool(config.cni_chain))
        self._verbs = Verbs(self.pods, state_dir / "cni-queue", lambda: self._unready, around.mtu)
        self._socket = state_dir / "cni.sock"
        self._installer = Installer(state_dir, config.cni_conf_dir, config.cni_bin_dir, config.cni_chain)
        self._unready = "the agent is starting"
        self._problem = ""
        self._ahead: list[str] = []

    @property
    def problems(self) -> list[str]:
        """What is not as the settings say, or keeps runtimes from using it, one sentence each."""
        return [*([self._problem] if self._problem else []), *self._ahead, *self.pods.notices]

    async def run(self) -> None:
        """Serve, and have the plugin in place once there is somebody to ask."""
        async with Server(self._socket, self._verbs.handle):
            try:
                async with asyncio.TaskGroup() as tasks:
                    self._unready = ""
                    tasks.create_task(self._verbs.run())
                    tasks.create_task(self._install())
            finally:
                self.pods.leave()

    async def _install(self) -> None:
        said: list[str] = []
        while True:
            try:
                if await asyncio.to_thread(self._installer.install):
                    log.info("CNI plugin in place")
                self._problem = ""
            except NotInstalled as error:
                if self._problem != str(error):
                    log.error("CNI plugin", reason=str(error))
                self._problem = str(error)
            self._ahead = await asyncio.to_thread(self._installer.ahead)
            others = await asyncio.to_thread(self._installer.others)
            if others != said:
                said = others
                log.info("other CNI configurations, behind ours", files=others)
            await asyncio.sleep(RETRY_S)
