"""Run a command in a pod's network namespace and cgroup, in place of this process: the far end of `gatehouse exec`."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NoReturn

from agent.endpoints import cgroups, namespaces


class CannotEnter(RuntimeError):
    """The command was not run; the message says why. `status`: what a shell would exit with."""

    def __init__(self, message: str, status: int = 126) -> None:
        super().__init__(message)
        self.status = status


def execute(
    netns: str, argv: Sequence[str], env: Mapping[str, str] | None = None, cgroup: Path | None = None
) -> NoReturn:
    """Become `argv` (found by PATH) inside the network namespace at path `netns`, and in `cgroup` where there is one.
    Raises CannotEnter."""
    try:
        descriptor = os.open(netns, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise CannotEnter(f"there is no network namespace {netns}: is the pod running?") from None
    except PermissionError:
        raise CannotEnter(f"{netns} may not be opened: run this as root") from None
    try:
        namespaces.enter(descriptor)
    except OSError as error:
        if error.errno == errno.EPERM:
            raise CannotEnter(f"{netns} may not be entered: run this as root") from None
        raise CannotEnter(f"{netns} is not a network namespace: was the pod removed?") from None
    if cgroup is not None:
        try:
            cgroups.join(cgroup)
        except FileNotFoundError:
            pass
        except OSError as error:
            raise CannotEnter(f"the pod's cgroup {cgroup} may not be entered: {error.strerror}") from None
    sys.stdout.flush()
    sys.stderr.flush()
    try:
        os.execvpe(argv[0], list(argv), dict(os.environ if env is None else env))  # noqa: S606
    except FileNotFoundError:
        raise CannotEnter(f"{argv[0]}: no such command", 127) from None
    except OSError as error:
        raise CannotEnter(f"{argv[0]}: {error.strerror}") from None
