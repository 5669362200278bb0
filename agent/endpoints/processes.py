"""The containers of directory-mode pods as ordinary processes: kept running, adopted, ended.

They are children of whichever agent started them and outlive it; the next one knows them by their pid files. No thread
waits for them: a pidfd becomes readable when its process ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
from collections.abc import Callable, Collection, Coroutine, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from agent.endpoints import launch
from agent.endpoints.batch import Batch
from agent.endpoints.cgroups import PodCgroups
from agent.endpoints.command import Command, command
from agent.endpoints.container import Backoff, ContainerState, RunningContainer
from agent.objects import Pod
from policies.model import ObjectRef

P = ParamSpec("P")
T = TypeVar("T")


class Processes:
    """Runs the commands of pods. `folder`: pid files and logs are in folder/NAMESPACE/NAME/. `cgroups`: where they run,
    if not in the agent's own.

    One call at a time for each pod.
    """

    def __init__(
        self, folder: Path, backoff: Backoff | None = None, grace_s: float = 5.0, cgroups: PodCgroups | None = None
    ) -> None:
        self.backoff = backoff or Backoff()
        self._folder = folder
        self._cgroups = cgroups
        self._grace_s = grace_s
        self._pods: dict[ObjectRef, dict[str, RunningContainer]] = {}
        self._netns: dict[ObjectRef, int] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._sessions: Batch[int] = Batch(self._kill_sessions)
        self._threads = ThreadPoolExecutor(1, "launch")

    async def start(self, pod: Pod, netns: int) -> None:
        """Bring about that what runs is what the manifest says, in that network namespace (a descriptor).

        Processes of an earlier agent are adopted; a container whose command has changed, or that is no longer in the
        pod, is ended first. A container that has ended and is not to be restarted is not started again. OSError where
        a process could not be started.
        """
        containers = await self._load(pod.ref)
        if self._cgroups:
            await self.in_thread(self._cgroups.make, pod.ref)
        wanted = {c.name: command(pod, c) for c in pod.containers if c.command}
        outdated = [c for c in containers.values() if not c.fits(wanted.get(c.name), netns)]
        await self._end(outdated)
        for container in outdated:
            del containers[container.name]
        if pod.ref not in self._netns:
            self._netns[pod.ref] = os.dup(netns)
        for name, wish in wanted.items():
            if name not in containers:
                containers[name] = RunningContainer(self, pod.ref, name)
            container = containers[name]
            container.supply(wish, self._netns[pod.ref], pod.restart_always)
            if container.is_due():
                await container.start()

    async def stop(self, pods: Iterable[ObjectRef]) -> None:
        """End the processes of pods: SIGTERM, after the grace period SIGKILL. Their pid files and logs are removed.
        Nothing happens where there are none."""
        pods = list(pods)
        await self._end([container for pod in pods for container in (await self._load(pod)).values()])
        for pod in pods:
            del self._pods[pod]
            netns = self._netns.pop(pod, None)
            if netns is not None:
                os.close(netns)
        await self.in_thread(_remove_folders, [self.folder_of(pod) for pod in pods])
        if self._cgroups:
            await self.in_thread(self._cgroups.remove, pods)

    async def stop_others(self, pods: Collection[ObjectRef]) -> None:
        """The same for all but these, those of an earlier agent."""
        await self.stop([pod for pod in self.known() if pod not in pods])
        if self._cgroups:
            await self.in_thread(self._cgroups.remove_others, pods)

    def known(self) -> list[ObjectRef]:
        """Pods that have processes, or had and were not stopped; those of an earlier agent too."""
        return [ObjectRef("Pod", path.parent.name, path.name) for path in sorted(self._folder.glob("*/*/"))]

    def states(self, pod: ObjectRef) -> list[ContainerState]:
        return [container.state() for container in self._pods.get(pod, {}).values()]

    async def close(self) -> None:
        """Let all processes go on without this agent."""
        for container in self._all():
            container.let_go()
        if self._tasks:
            await asyncio.wait(self._tasks)
        for container in self._all():
            container.let_go()
        self._threads.shutdown()
        for netns in self._netns.values():
            os.close(netns)
        self._pods.clear()
        self._netns.clear()

    def folder_of(self, pod: ObjectRef) -> Path:
        for part in (pod.namespace, pod.name):
            if part in ("", ".", "..") or "/" in part or "\0" in part:
                raise ValueError(f"{pod} cannot be the name of a folder")
        return self._folder / pod.namespace / pod.name

    def launch(self, pod: ObjectRef, command: Command, netns: int, pid_file: Path, log: Path) -> int:
        """As launch.launch, in the pod's cgroup."""
        cgroup = self._cgroups.make(pod) if self._cgroups else None
        return launch.launch(command, netns, pid_file, log, cgroup)

    async def end_session(self, leader: int) -> None:
        """Kill what is left of the session that a process leads."""
        await self._sessions.add(leader)

    async def _kill_sessions(self, leaders: set[int]) -> None:
        await self.in_thread(launch.kill_sessions, leaders)

    async def in_thread(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, lambda: function(*args, **kwargs))

    def in_background(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """A task that goes on although who waits for it is cancelled; `close` waits for it."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _all(self) -> list[RunningContainer]:
        return [container for containers in self._pods.values() for container in containers.values()]

    async def _load(self, pod: ObjectRef) -> dict[str, RunningContainer]:
        """Containers of a pod; the first time, those an earlier agent started and may have left running."""
        if pod not in self._pods:
            records = await self.in_thread(_read_folder, self.folder_of(pod))
            containers = self._pods[pod] = {}
            for name, record in records.items():
                containers[name] = RunningContainer(self, pod, name)
                containers[name].adopt(record)
        return self._pods[pod]

    async def _end(self, containers: Collection[RunningContainer]) -> None:
        for container in containers:
            container.terminate()
        await asyncio.gather(*(container.ended(self._grace_s) for container in containers))


def _read_folder(folder: Path) -> dict[str, launch.Running]:
    """Who was started last, by container. Makes the folder where there is none."""
    folder.mkdir(parents=True, exist_ok=True)
    records = {path.stem: launch.read_pid_file(path) for path in folder.glob("*.pid")}
    return {name: record for name, record in records.items() if record}


def _remove_folders(folders: Iterable[Path]) -> None:
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)
        with contextlib.suppress(OSError):  # unless it was the last pod of its namespace
            folder.parent.rmdir()
