"""What a container runs: its command line and environment, expanded as the kubelet does. Pure."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping

import msgspec

from agent.objects import Container, Pod

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_REFERENCE = re.compile(r"\$\$|\$\(([^)]*)\)")


class Command(msgspec.Struct, frozen=True):
    """Ready to run. `env` is all there is: nothing is taken from the agent."""

    argv: tuple[str, ...]
    env: dict[str, str]
    working_dir: str

    @property
    def digest(self) -> str:
        """Changes when the command does."""
        return hashlib.sha256(msgspec.json.encode((self.argv, self.env, self.working_dir))).hexdigest()[:16]


def expand(text: str, values: Mapping[str, str]) -> str:
    """Replace $(NAME) where NAME is known; leave it where not; $$ is a literal $ (core/v1 Container.command)."""

    def replace(match: re.Match[str]) -> str:
        return "$" if match[1] is None else values.get(match[1], match[0])

    return _REFERENCE.sub(replace, text)


def command(pod: Pod, container: Container) -> Command:
    """A variable may use those above it, the command line all of them. As in a container, PATH and HOSTNAME are given
    and nothing of the agent's own environment is seen."""
    own: dict[str, str] = {}
    for name, value in container.env.items():
        own[name] = expand(value, own)
    env = {"PATH": DEFAULT_PATH, "HOSTNAME": pod.ref.name[:63].rstrip("-.")} | own
    return Command(tuple(expand(word, own) for word in container.command), env, container.working_dir or "/")
