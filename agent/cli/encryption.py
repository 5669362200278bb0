"""`gatehouse encryption`: what pods of different nodes send each other, and by which keys."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from agent.api import client
from agent.cli.output import (
    STATE_DIR,
    Failure,
    Format,
    Output,
    StateDir,
    duration,
    emit_json,
    process_and_problem,
    size,
    table,
)
from agent.status import EncryptionPeerView, EncryptionView

TITLES = ("NODE", "READY", "ENDPOINT", "HANDSHAKE", "RECEIVED", "SENT", "PUBLIC KEY", "PROBLEM")
POLL_S = 0.2
ROTATION_S = 300.0

commands = typer.Typer(no_args_is_help=True, rich_markup_mode=None)


def register(app: typer.Typer) -> None:
    app.add_typer(commands, name="encryption")


@commands.callback()
def encryption() -> None:
    """WireGuard between nodes: what is encrypted, and by which keys.

    \b
    Examples:
      gatehouse encryption status
      gatehouse encryption rotate
    """


@commands.command("status")
def status(state_dir: StateDir = STATE_DIR, output: Output = Format.TABLE) -> None:
    """Whether what pods of different nodes send each other is encrypted: this node's key, the other nodes, plaintext.

    A node is READY once it has told its key and is set up on the device: from then on all that its pods are sent is
    encrypted. HANDSHAKE is how long ago the last one was: they come every two minutes while there is traffic, and not
    at all while there is none. Plaintext counts packets between pods of different nodes that this node saw unencrypted
    (none where it is strict: they are dropped, and `gatehouse observe` shows them).

    JSON, one object: mode (off, wireguard), device, kernel (or else a program's), port, public_key, key_age_s, rotation
    (how far a change of the key is, "" where there is none), strict, node_encryption, plaintext_packets, process
    {state, pid, restarts, problem} (of a program; null: the kernel's), peers [{node, endpoint, public_key,
    last_handshake_s (null: never), received_bytes, sent_bytes, ready, problem}]. Keys are public
    halves; the private ones are never shown.

    \b
    Examples:
      gatehouse encryption status
      gatehouse encryption status -o json | jq '.peers[] | select(.ready | not)'

    \b
    Exit status: 0 where every other node is ready, 1 where encryption is off or one is not, 2 where no agent answers.
    """
    found = _ask(state_dir)
    if output is Format.JSON:
        emit_json(found)
    else:
        print("\n".join(lines(found)))
    sys.exit(0 if found.mode != "off" and all(peer.ready for peer in found.peers) else 1)


@commands.command("rotate")
def rotate(
    wait: Annotated[
        bool, typer.Option("--wait/--no-wait", help="Until the new key is in use and the old one gone.")
    ] = (True),
    timeout_s: Annotated[float, typer.Option("--timeout", min=1, max=86400, help="Seconds to wait.")] = ROTATION_S,
    state_dir: StateDir = STATE_DIR,
) -> None:
    """Have this node make itself a new key, and destroy the old one once all others know the new.

    Both are valid for a while, so no connection breaks. A record of it is written to audit.jsonl in the state
    directory. With --key-rotation-days an agent does this by itself. Each node has its own key: on other nodes, ask
    their agents.

    \b
    Examples:
      gatehouse encryption rotate
      gatehouse encryption rotate --no-wait && gatehouse encryption status

    \b
    Exit status: 0, 1 where the new key is not in use within --timeout (it goes on), 2 where encryption is off, or no
    agent answers.
    """
    before = _ask(state_dir)
    if before.mode == "off":
        raise Failure("nothing is encrypted here, so there is no key: start the agent with --encryption wireguard")
    client.call(state_dir / "agent.sock", "rotate")
    if not wait:
        print(f"begun: the key {before.public_key} is being replaced")
        return
    after = _changed(state_dir, before.public_key, time.monotonic() + timeout_s)
    if after is None:
        raise Failure(
            f"the new key is not in use after {timeout_s:g} s: it goes on; see `gatehouse encryption status`", 1
        )
    print(f"the key is {after.public_key} now, and {before.public_key} is destroyed")


def _changed(state_dir: Path, key: str, deadline: float) -> EncryptionView | None:
    """What there is once the key is another one. Says on stderr how far it is; None after the time."""
    said = ""
    while time.monotonic() < deadline:
        found = _ask(state_dir)
        if found.public_key != key and not found.rotation:
            return found
        if found.rotation and found.rotation != said:
            print(found.rotation, file=sys.stderr)
            said = found.rotation
        time.sleep(POLL_S)
    return None


def lines(found: EncryptionView) -> Iterator[str]:
    """For people."""
    if found.mode == "off":
        yield "Encryption  off: pods of different nodes send each other plaintext"
        return
    ready = sum(peer.ready for peer in found.peers)
    whose = "the kernel's" if found.kernel else "a program's"
    covered = "pods of different nodes" + (", and nodes with pods and each other" if found.node_encryption else "")
    about = {
        "Encryption": f"{found.mode}, between {covered}",
        "Strict": "yes: what cannot be encrypted is dropped" if found.strict else "no",
        "Device": f"{found.device} ({whose}), UDP port {found.port}" if found.device else "none",
        **({"Program": process_and_problem(found.process)} if found.process else {}),
        "Key": f"{found.public_key}, {duration(found.key_age_s)} old" if found.public_key else "none",
        "Rotation": found.rotation or "none",
        "Plaintext": f"{found.plaintext_packets} packets",
        "Nodes": f"{ready} of {len(found.peers)} ready",
    }
    width = max(map(len, about))
    yield from (f"{title:<{width}}  {text}" for title, text in about.items())
    if found.peers:
        rows = [_row(peer) for peer in sorted(found.peers, key=lambda peer: peer.node)]
        kept = [i for i, title in enumerate(TITLES) if title != "PROBLEM" or any(row[i] for row in rows)]
        yield ""
        yield table([TITLES[i] for i in kept], [[row[i] for i in kept] for row in rows])


def _row(peer: EncryptionPeerView) -> list[str]:
    ago = "never" if peer.last_handshake_s is None else f"{duration(peer.last_handshake_s)} ago"
    return [
        peer.node, "yes" if peer.ready else "no", peer.endpoint, ago, size(peer.received_bytes), size(peer.sent_bytes),
        peer.public_key, peer.problem,
    ]  # fmt: skip


def _ask(state_dir: Path) -> EncryptionView:
    return msgspec.convert(client.call(state_dir / "agent.sock", "encryption"), EncryptionView)
