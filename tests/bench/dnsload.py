"""The two ends of the measure of the DNS proxy, each a process of its own in its namespace:

python -m bench.dnsload resolver ADDRESS                     answers until it is killed
python -m bench.dnsload client ADDRESS RATE COUNT WINDOW     asks, and prints what it saw as JSON

RATE: queries a second, sent when their time has come whatever is under way; 0: WINDOW of them are always under way.
"""

from __future__ import annotations

import select
import socket
import struct
import sys
import time

import dns.message
import dns.rrset
import msgspec

NAMES = 200
TTL_S = 300
SOCKETS = 64
"""Of the client, each with a port of its own."""
LOST_S = 3.0
_TTL_MARK = 0x12345678


class Seen(msgspec.Struct):
    """`late_us`: by how much queries left after their time; then the figures say nothing."""

    asked: int
    answered: int
    took_s: float
    latency_us: list[float]
    late_us: float


def resolver(address: str) -> None:
    """Two addresses behind an alias; TTLs run down by the second, as a cache's do."""
    answers = {}
    for number in range(NAMES):
        query = dns.message.make_query(name(number), "A", use_edns=0)
        answer = dns.message.make_response(query)
        answer.answer.append(dns.rrset.from_text(name(number), _TTL_MARK, "IN", "CNAME", "cdn.example."))
        both = (f"198.51.100.{number}", f"203.0.113.{number}")
        answer.answer.append(dns.rrset.from_text("cdn.example.", _TTL_MARK, "IN", "A", *both))
        answers[query.to_wire()[2:]] = answer.to_wire()[2:]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as served:
        served.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        served.bind((address, 53))
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        second, current = -1, answers
        mark = struct.pack("!I", _TTL_MARK)
        while True:
            asked, client = served.recvfrom(4096)
            if (now := int(time.monotonic())) != second:
                second, ttl = now, struct.pack("!I", TTL_S - now % TTL_S)
                current = {question: answer.replace(mark, ttl) for question, answer in answers.items()}
            served.sendto(asked[:2] + current[asked[2:]], client)


def client(address: str, rate: float, count: int, window: int) -> Seen:
    queries = [dns.message.make_query(name(n), "A", use_edns=0).to_wire()[2:] for n in range(NAMES)]
    sockets = []
    poll = select.epoll()
    for _ in range(SOCKETS):
        made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        made.setblocking(False)
        made.connect((address, 53))
        poll.register(made.fileno(), select.EPOLLIN)
        sockets.append(made)
    by_fd = {made.fileno(): made for made in sockets}
    sent_s: dict[int, float] = {}
    latency_us: list[float] = []
    clock = time.perf_counter
    asked, late_s, began = 0, 0.0, clock()
    last = began
    while asked < count or sent_s:
        now = clock()
        while asked < count and (began + asked / rate <= now if rate else len(sent_s) < window):
            if rate:
                late_s = max(late_s, now - began - asked / rate)
            number = asked & 0xFFFF
            sent_s[number] = clock()
            sockets[asked % SOCKETS].send(number.to_bytes(2, "big") + queries[asked % NAMES])
            asked += 1
        for descriptor, _ in poll.poll(0 if rate else 0.01):
            try:
                while True:
                    answer = by_fd[descriptor].recv(4096)
                    last = clock()
                    if (start := sent_s.pop(int.from_bytes(answer[:2], "big"), None)) is not None:
                        latency_us.append((last - start) * 1e6)
            except BlockingIOError:
                continue
        if sent_s and clock() - max(last, *list(sent_s.values())[-1:]) > LOST_S:
            break
    return Seen(asked, len(latency_us), last - began, latency_us, late_s * 1e6)


def name(number: int) -> str:
    return f"service-{number}.team.example."


if __name__ == "__main__":
    if sys.argv[1] == "resolver":
        resolver(sys.argv[2])
    else:
        found = client(sys.argv[2], float(sys.argv[3]), int(sys.argv[4]), int(sys.argv[5]))
        sys.stdout.write(msgspec.json.encode(found).decode())
