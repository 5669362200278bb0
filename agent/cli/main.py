"""The `gatehouse` command. Modules of commands are imported when one of them is asked for."""

from __future__ import annotations

import sys

import typer

from agent.api.protocol import ApiError
from agent.cli import demo, listings, node, observe, policy, run
from agent.cli.output import Failure
from agent.config import ConfigError

app = typer.Typer(
    name="gatehouse",
    help="Identity-aware network security for Kubernetes nodes: policy and services enforced in eBPF.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.command()
def version() -> None:
    """Print the version."""
    from importlib.metadata import version as installed

    print(f"gatehouse {installed('gatehouse')}")


node.register(app)
listings.register(app)
observe.register(app)
run.register(app)
policy.register(app)
demo.register(app)


def main() -> None:
    """Entry point: what goes wrong is one sentence on stderr and an exit status, never a traceback."""
    try:
        app()
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
