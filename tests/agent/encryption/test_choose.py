"""Which WireGuard is used, and what is said where there is none."""

from __future__ import annotations

import pytest

from agent.encryption.choose import Choice, NoWireGuard, choose, program_problem

NO = "the kernel makes no WireGuard device (Operation not supported)"
GO = "/usr/bin/wireguard-go"


@pytest.mark.parametrize(
    ("setting", "kernel", "program", "choice"),
    [
        ("auto", "", GO, Choice("")),
        ("auto", "", "", Choice("")),
        ("auto", NO, GO, Choice(GO, f"{NO}: {GO} is used")),
        ("kernel", "", "", Choice("")),
        ("userspace", "", GO, Choice(GO)),
    ],
)
def test_choices(setting: str, kernel: str, program: str, choice: Choice) -> None:
    assert choose(setting, kernel, program, "" if program else "none") == choice


@pytest.mark.parametrize(
    ("setting", "kernel", "words"),
    [
        ("auto", NO, (NO, "no program no-wireguard is found", "--wireguard-program")),
        ("kernel", NO, (NO, "modprobe wireguard", "--wireguard=auto")),
        ("userspace", "", ("no program no-wireguard is found", "Debian: wireguard-go")),
    ],
)
def test_none(setting: str, kernel: str, words: tuple[str, ...]) -> None:
    with pytest.raises(NoWireGuard) as refused:
        choose(setting, kernel, "", program_problem("no-wireguard"))
    assert all(word in str(refused.value) for word in words)
