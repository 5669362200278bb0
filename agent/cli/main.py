"""The `gatehouse` command. The module of a command is imported when that command is asked for."""

from __future__ import annotations

import importlib
import sys

import typer

from agent.api.protocol import ApiError
from agent.cli.output import Failure
from agent.config import ConfigError

COMMANDS = {
    "agent": "node",
    "config": "settings",
    "status": "listings",
    "endpoints": "listings",
    "identities": "listings",
    "services": "services",
    "policies": "listings",
    "nodes": "listings",
    "encryption": "encryption",
    "observe": "observe",
    "exec": "run",
    "plan": "run",
    "policy": "policy",
    "demo": "demo",
    "preflight": "preflight",
    "helper": "helper",
    "cleanup": "node",
}
"""Command → module of this package. In the order in which --help lists them."""


def build(asked: str) -> typer.Typer:
    """The application with the module of one command; with all of them where there is no such command."""
    app = typer.Typer(
        name="gatehouse",
        no_args_is_help=True,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(gatehouse)
    modules = [COMMANDS[asked]] if asked in COMMANDS else dict.fromkeys(COMMANDS.values())
    for name in modules:
        importlib.import_module(f"agent.cli.{name}").register(app)
    app.command()(version)
    return app


def gatehouse() -> None:
    """Identity-aware network security for Kubernetes nodes: policy and services enforced in eBPF."""


def version() -> None:
    """Print the version."""
    from importlib.metadata import version as installed

    print(f"gatehouse {installed('gatehouse')}")


def main() -> None:
    """Entry point: what goes wrong is one sentence on stderr and an exit status, never a traceback."""
    try:
        build(sys.argv[1] if len(sys.argv) > 1 else "")()
    except (Failure, ApiError, ConfigError) as error:
        print(f"gatehouse: {error}", file=sys.stderr)
        sys.exit(error.status if isinstance(error, Failure) else 2)
    except BrokenPipeError:  # the reader of our output went away, as `| head` does
        sys.stderr.close()
        sys.exit(141)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
