"""An API server in a process of its own: calls on ApiServer come as JSON lines on stdin, answers go to stdout. It ends
with stdin. `remote.RemoteApi` is the other end."""

from __future__ import annotations

import argparse
import os
import sys
from typing import Any

import msgspec

from apiserver.server import ApiServer


class Call(msgspec.Struct):
    """`name`: a method or attribute, dotted: faults.refuse."""

    name: str
    args: list[Any] = []
    named: dict[str, Any] = {}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m apiserver", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--token")
    parser.add_argument("--without", nargs="*", default=[], help="groups or plurals whose definitions are missing")
    options = parser.parse_args()
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever else is printed is no answer
    with ApiServer(host=options.host, token=options.token, without=options.without) as api:
        for line in sys.stdin.buffer:
            answers.write(msgspec.json.encode(_answer(api, msgspec.json.decode(line, type=Call))) + b"\n")
            answers.flush()


def _answer(api: ApiServer, call: Call) -> dict[str, Any]:
    found: Any = api
    for name in call.name.split("."):
        found = getattr(found, name)
    try:
        return {"result": found(*call.args, **call.named) if callable(found) else found}
    except (KeyError, ValueError, RuntimeError) as error:
        return {"error": f"{type(error).__name__}: {error}"}


if __name__ == "__main__":
    main()
