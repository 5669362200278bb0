"""The plugin in C, as a process, against an agent that is there, away, slow, or talks nonsense."""

from __future__ import annotations

import json
import os
import random
import socket
import stat
import struct
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import cni_plugin
import pytest
from cni_plugin import Run, config, environment, plugin, queued_names, run

from agent.api.address import socket_address
from agent.cni.build import FLAGS, build
from agent.cni.protocol import HEADER, SUPPORTED_VERSIONS, frame_answer, frame_request, parse_request
from agent.cni.queue import queued

Talk = Callable[[socket.socket], None]


@contextmanager
def agent(path: Path, *talks: Talk, backlog: int = 8) -> Iterator[None]:
    """Something that listens at `path` and treats its connections, one after the other, as `talks` do."""
    listener = socket.socket(socket.AF_UNIX)
    with socket_address(path) as address:
        listener.bind(address)
    listener.listen(backlog)

    def serve() -> None:
        for talk in talks:
            connection, _ = listener.accept()
            with connection:
                talk(connection)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield
    finally:
        thread.join(30)
        listener.close()
        assert not thread.is_alive()


def receive(connection: socket.socket) -> tuple[bytes, bytes]:
    with connection.makefile("rb") as file:
        _, environment_length, config_length = HEADER.unpack(file.read(HEADER.size))
        return file.read(environment_length), file.read(config_length)


def answering(answer: bytes, heard: list[tuple[bytes, bytes]] | None = None) -> Talk:
    def talk(connection: socket.socket) -> None:
        request = receive(connection)
        if heard is not None:
            heard.append(request)
        connection.sendall(answer)

    return talk


def error(done: Run) -> tuple[int, str]:
    assert done.status == 1
    return done.json["code"], done.output.decode()


@pytest.mark.parametrize("version", ["0.3.1", "1.0.0", "1.1.0", "7.0.0"])
def test_it_tells_its_versions_without_an_agent(version: str, tmp_path: Path) -> None:
    done = run(environment("VERSION"), config(tmp_path / "s", version))
    assert done.status == 0
    assert done.json == {"cniVersion": version, "supportedVersions": list(SUPPORTED_VERSIONS)}
    assert run({"CNI_COMMAND": "VERSION"}, b"").json["supportedVersions"] == list(SUPPORTED_VERSIONS)


def test_it_hands_over_what_it_gets_and_prints_what_it_is_told(tmp_path: Path) -> None:
    heard: list[tuple[bytes, bytes]] = []
    stdin = config(tmp_path / "s", more="ü" * 10000)
    with agent(tmp_path / "s", answering(frame_answer(0, b'{"yes": 1}'), heard)):
        done = run(environment("ADD") | {"SECRET": "x"}, stdin)
    assert (done.status, done.output) == (0, b'{"yes": 1}')
    assert heard[0][1] == stdin
    assert b"SECRET" not in heard[0][0]
    assert parse_request(*heard[0]).pod is not None


def test_an_error_of_the_agent_is_its_own(tmp_path: Path) -> None:
    with agent(tmp_path / "s", answering(frame_answer(1, b'{"code": 7}'))):
        done = run(environment("DEL"), config(tmp_path / "s"))
    assert (done.status, done.json) == (1, {"code": 7})
    assert queued_names(tmp_path) == []


def test_a_path_of_any_length(tmp_path: Path) -> None:
    folder = tmp_path / ("d" * 120) / ("e" * 120)
    folder.mkdir(parents=True)
    with agent(folder / "s", answering(frame_answer(0, b"ok"))):
        assert run(environment("ADD"), config(folder / "s")).output == b"ok"


# ---- without an agent


@pytest.mark.parametrize(("command", "code"), [("ADD", 11), ("CHECK", 11), ("GC", 11), ("STATUS", 50)])
def test_nobody_listens(command: str, code: int, tmp_path: Path) -> None:
    told, text = error(run(environment(command), config(tmp_path / "none.sock", "1.0.0")))
    assert told == code
    assert "none.sock" in text
    assert "gatehouse agent" in text
    assert json.loads(text)["cniVersion"] == "1.0.0"
    assert queued_names(tmp_path) == []


def test_a_deletion_is_left_for_the_agent(tmp_path: Path) -> None:
    for _ in range(2):  # a repeat takes no second file
        done = run(environment("DEL", "c1", ifname="eth0"), config(tmp_path / "s"))
        assert (done.status, done.output) == (0, b"")
    assert run(environment("DEL", "c2"), config(tmp_path / "s")).status == 0
    assert queued_names(tmp_path) == ["c1@eth0", "c2@eth0"]
    folder = tmp_path / "cni-queue"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(file.stat().st_mode) for file in folder.iterdir()} == {0o600}
    for order in (["c1", "c2"], ["c2", "c1"]):  # files made within one tick of the clock have one time
        for left_s, container in enumerate(order, start=1):
            os.utime(folder / f"{container}@eth0", (left_s, left_s))
        assert [one.request.key.container_id for one in queued(folder)] == order


FIRST_IS_REFUSED = """
#define _GNU_SOURCE
#include <errno.h>
#include <sys/socket.h>
static inline int once_refused(int fd, const struct sockaddr *address, socklen_t length)
{
	static int times;
	errno = ECONNREFUSED;
	return times++ ? connect(fd, address, length) : -1;
}
#define connect once_refused
"""


def test_an_agent_that_came_meanwhile_hears_of_it(tmp_path: Path) -> None:
    """It looked into the queue before the file was there: the plugin asks once more after writing it."""
    (tmp_path / "first.h").write_text(FIRST_IS_REFUSED)
    binary = build(tmp_path / "plugin", (*FLAGS, "-include", str(tmp_path / "first.h")))
    seen: list[list[str]] = []

    def talk(status: int) -> Talk:
        def heard(connection: socket.socket) -> None:
            seen.append(queued_names(tmp_path))
            answering(frame_answer(status, b"{}"))(connection)

        return heard

    with agent(tmp_path / "s", talk(0), talk(1)):
        assert run(environment("DEL"), config(tmp_path / "s"), binary).status == 0
        assert queued_names(tmp_path) == []
        assert run(environment("DEL"), config(tmp_path / "s"), binary).status == 1
        assert queued_names(tmp_path) == ["c1@eth0"]  # it failed: the agent is to try again
    assert seen == [["c1@eth0"], ["c1@eth0"]]


def test_an_agent_killed_before_it_answers(tmp_path: Path) -> None:
    def leave(connection: socket.socket) -> None:
        receive(connection)

    with agent(tmp_path / "s", leave, leave, lambda _: None):
        assert error(run(environment("ADD"), config(tmp_path / "s")))[0] == 11
        assert run(environment("DEL"), config(tmp_path / "s")).status == 0
        assert run(environment("DEL", "c2"), config(tmp_path / "s")).status == 0
    assert queued_names(tmp_path) == ["c1@eth0", "c2@eth0"]


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (b"HTTP/1.1 400 Bad", 5),
        (b"GHA1", 5),
        (HEADER.pack(b"GHA1", 7, 0), 5),
        (HEADER.pack(b"GHA1", 0, 1 << 30), 5),
        (HEADER.pack(b"GHA1", 0, 100) + b"half", 11),
    ],
)
def test_answers_that_make_no_sense(answer: bytes, code: int, tmp_path: Path) -> None:
    with agent(tmp_path / "s", answering(answer), answering(answer)):
        assert error(run(environment("ADD"), config(tmp_path / "s")))[0] == code
        assert run(environment("DEL"), config(tmp_path / "s")).status == 0
    assert queued_names(tmp_path) == ["c1@eth0"]


def test_whoever_refuses_early_is_heard(tmp_path: Path) -> None:
    def refuse(connection: socket.socket) -> None:
        connection.sendall(frame_answer(1, b'{"code": 11}'))

    with agent(tmp_path / "s", refuse):
        done = run(environment("ADD"), config(tmp_path / "s", more="x" * 900_000))
    assert (done.status, done.json) == (1, {"code": 11})


SHORT = ("-DSTDIN_LIMIT_MS=300", "-DCONNECT_LIMIT_MS=300", "-DAGENT_LIMIT_MS=300")


def test_an_agent_that_does_not_answer_in_time(tmp_path: Path) -> None:
    binary, over = plugin((*FLAGS, *SHORT)), threading.Event()

    def wait(connection: socket.socket) -> None:
        receive(connection)
        over.wait(30)

    def read_nothing(connection: socket.socket) -> None:
        over.wait(30)

    with agent(tmp_path / "s", wait):
        code, text = error(run(environment("ADD"), config(tmp_path / "s"), binary))
        over.set()
    assert (code, "timed out" in text) == (11, True)
    over.clear()
    (tmp_path / "s").unlink()
    with agent(tmp_path / "s", read_nothing):
        assert run(environment("DEL"), config(tmp_path / "s", more="x" * 900_000), binary).status == 0
        over.set()
    assert queued_names(tmp_path) == ["c1@eth0"]


def test_an_agent_that_does_not_accept(tmp_path: Path) -> None:
    binary = plugin((*FLAGS, *SHORT))
    with agent(tmp_path / "s", backlog=0), socket.socket(socket.AF_UNIX) as first:
        first.connect(str(tmp_path / "s"))
        code, text = error(run(environment("ADD"), config(tmp_path / "s"), binary))
    assert (code, "timed out" in text) == (11, True)


def test_a_runtime_that_never_closes_stdin(tmp_path: Path) -> None:
    binary = plugin((*FLAGS, *SHORT))
    reader, writer = os.pipe()
    done = subprocess.run([binary], env=environment("ADD"), stdin=reader, capture_output=True, timeout=200, check=False)
    os.close(reader)
    os.close(writer)
    assert json.loads(done.stdout)["code"] == 5


def test_after_cleanup_there_is_nothing_to_delete(tmp_path: Path) -> None:
    done = run(environment("DEL"), config(tmp_path / "gone" / "s"))
    assert (done.status, done.output) == (0, b"")
    assert not (tmp_path / "gone").exists()


def test_a_queue_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "cni-queue").write_text("")
    assert error(run(environment("DEL"), config(tmp_path / "s")))[0] == 5
    (tmp_path / "cni-queue").unlink()
    (tmp_path / "cni-queue").symlink_to(tmp_path)  # nothing is written where a link leads
    assert error(run(environment("DEL"), config(tmp_path / "s")))[0] == 5
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cni-queue"]


# ---- what it is given


@pytest.mark.parametrize(
    ("env", "stdin", "code"),
    [
        ({}, b"{}", 4),
        ({"CNI_COMMAND": "DANCE"}, b"{}", 4),
        (environment("ADD"), b"", 6),
        (environment("ADD"), b"[1]", 6),
        (environment("ADD"), b'{"a": }', 6),
        (environment("ADD"), b'{"a": 1} x', 6),
        (environment("ADD"), b'{"a": 1}\0', 6),
        (environment("ADD"), b'{"a": "', 6),
        (environment("ADD"), b'{"a": "\\u12', 6),
        (environment("ADD"), b'{"a": "\\', 6),
        (environment("ADD"), b'{"a": [[[}', 6),
        (environment("ADD"), b'{"socket": "relative"}', 7),
        (environment("ADD"), b'{"socket": ""}', 7),
        (environment("ADD"), b'{"socket": "/' + b"x" * 5000 + b'"}', 7),
        (environment("ADD"), b'{"socket": "/\\u0000"}', 7),
        (environment("ADD"), b" " * (1 << 20) + b"{}", 6),
        (environment("ADD", args="x" * 70000), b"{}", 4),
    ],
)
def test_input_that_is_refused(env: dict[str, str], stdin: bytes, code: int) -> None:
    assert error(run(env, stdin))[0] == code


@pytest.mark.parametrize("container", ["", "../../etc/x", ".hidden", "a" * 201, "a@b", "a b"])
def test_a_queued_file_stays_in_the_queue(container: str, tmp_path: Path) -> None:
    env = environment("DEL", container) if container else environment("DEL", containerid="")
    assert error(run(env, config(tmp_path / "s")))[0] == 4
    assert queued_names(tmp_path) == []


@pytest.mark.parametrize("ifname", ["a/b", "sixteen-letters-", "a b"])
def test_and_so_does_one_of_any_interface(ifname: str, tmp_path: Path) -> None:
    assert error(run(environment("DEL", ifname=ifname), config(tmp_path / "s")))[0] == 4


@pytest.mark.parametrize(
    "stdin",
    [
        '{"socket": "%s"}',
        '{"a": {"socket": "/elsewhere"}, "socket": "%s", "b": ["socket", "/elsewhere"]}',
        ' {\n"socket"\t:\r"%s" , "cniVersion" : "1.0.0"} ',
        '{"a": "\\"socket\\": \\"/elsewhere\\"", "socket": "%s"}',
        '{"n": -1.5e10, "t": true, "z": null, "e": {}, "l": [], "socket": "%s"}',
        '{"\\u0073ocket": "%s"}',
    ],
)
def test_it_finds_its_socket(stdin: str, tmp_path: Path) -> None:
    text = stdin % str(tmp_path / "s").replace("/", "\\/")
    assert json.loads(text)["socket"] == str(tmp_path / "s")
    with agent(tmp_path / "s", answering(frame_answer(0, b"found"))):
        assert run(environment("ADD"), text.encode()).output == b"found"


def test_a_text_of_errors_is_json_whatever_the_path(tmp_path: Path) -> None:
    odd = json.dumps({"socket": '/no/such/"dir\\\x01ü'}, ensure_ascii=False).encode()
    _, text = error(run(environment("ADD"), odd))
    assert "such" in json.loads(text)["details"]


# ---- the program itself


def test_it_needs_nothing_of_the_host_and_has_no_rights_of_its_own() -> None:
    binary = plugin()
    mode = binary.stat().st_mode
    assert not mode & (stat.S_ISUID | stat.S_ISGID)
    headers = subprocess.run(["readelf", "-lW", binary], capture_output=True, text=True, check=True).stdout
    assert "INTERP" not in headers
    assert "GNU_RELRO" in headers
    (stack,) = [line for line in headers.splitlines() if "GNU_STACK" in line]
    assert "RWE" not in stack
    assert "Type:                              DYN" in subprocess.run(
        ["readelf", "-hW", binary], capture_output=True, text=True, check=True
    ).stdout.replace("Elf file type is", "")


SANITIZED = ("-std=gnu11", "-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", *SHORT)


def test_random_input_ends_in_an_answer(tmp_path: Path) -> None:
    """Under the address and undefined-behaviour sanitizers, which end the program with their own status."""
    seed = random.randrange(1 << 32)
    print("seed", seed)
    rng = random.Random(seed)
    binary = plugin(SANITIZED)
    whole = config(tmp_path / "s", prevResult={"ips": [{"address": "10.0.0.1/24"}]}, esc='"\\\n\u1234')
    for _ in range(100):
        stdin = bytearray(whole)
        for _ in range(rng.randrange(6)):
            at = rng.randrange(len(stdin))
            action = rng.randrange(4)
            if action == 0:
                stdin[at] = rng.randrange(256)
            elif action == 1:
                del stdin[at : at + rng.randrange(20)]
            elif action == 2:
                stdin[at:at] = bytes(rng.choice(b'{}[]",:\\u0\0 ') for _ in range(rng.randrange(8)))
            else:
                del stdin[at:]
                break
        # A DEL leaves files where the configuration says: with its own alone.
        env = environment(rng.choice(["ADD", "VERSION", "STATUS", "DEL"]), "c" * rng.randrange(300))
        stdin = bytearray(whole) if env["CNI_COMMAND"] == "DEL" else stdin
        env["CNI_ARGS"] = "".join(chr(rng.randrange(1, 256)) for _ in range(rng.randrange(50)))
        done = run(env, bytes(stdin), binary)
        assert done.status in (0, 1), (seed, env, bytes(stdin), done)
        assert not done.errors, (seed, env, bytes(stdin), done)
        if done.output:
            assert json.loads(done.output)["cniVersion"]


def test_random_answers_end_in_one(tmp_path: Path) -> None:
    seed = random.randrange(1 << 32)
    print("seed", seed)
    rng = random.Random(seed)
    binary = plugin(SANITIZED)
    answers = [
        rng.choice([b"GHA1", rng.randbytes(4)])
        + struct.pack("!II", rng.choice([0, 1, rng.randrange(1 << 32)]), rng.choice([0, 5, rng.randrange(1 << 32)]))
        + rng.randbytes(rng.randrange(10))
        for _ in range(40)
    ]
    with agent(tmp_path / "s", *map(answering, answers)):
        for answer in answers:
            done = run(environment("ADD"), config(tmp_path / "s"), binary)
            assert done.status in (0, 1), (seed, answer, done)
            assert b"Sanitizer" not in done.errors, (seed, answer, done)


def test_what_a_request_looks_like_is_the_same_in_both_languages(tmp_path: Path) -> None:
    run(environment("DEL"), stdin := config(tmp_path / "s"))
    names = ("CNI_COMMAND", "CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_ARGS")
    env = {name: environment("DEL")[name] for name in names}
    assert (tmp_path / "cni-queue" / "c1@eth0").read_bytes() == frame_request(env, stdin)
    assert cni_plugin.BUILD.exists()
