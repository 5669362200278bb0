"""What an agent is told: one typed value, from a file, the environment and flags.

Each field is a key of the file (`pod_cidrs`), a variable (GATEHOUSE_POD_CIDRS) and a flag of `gatehouse agent`
(--pod-cidrs). A flag wins over a variable, a variable over the file, the file over the default. A later one replaces an
earlier one whole: lists are not joined. In texts lists are comma-separated, sizes and time-outs NAME=NUMBER pairs.
"""

from __future__ import annotations

from agent.config.fields import (
    DEFAULT_STATE_DIR,
    PREFIX,
    SECRETS,
    TIMEOUTS,
    Config,
    ConfigError,
    Setting,
    settings,
)
from agent.config.layers import CONFIG_VARIABLE, Given, Resolved, build, check, environment, merge
from agent.config.spellings import listen_address, port_range

__all__ = [
    "CONFIG_VARIABLE",
    "DEFAULT_STATE_DIR",
    "PREFIX",
    "SECRETS",
    "TIMEOUTS",
    "Config",
    "ConfigError",
    "Given",
    "Resolved",
    "Setting",
    "build",
    "check",
    "environment",
    "listen_address",
    "merge",
    "port_range",
    "settings",
]
