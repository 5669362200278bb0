"""posix_spawn(3) that lets other threads run meanwhile.

os.posix_spawn and subprocess hold the interpreter lock until the child has executed its program, which on a busy
machine takes milliseconds: the agent's loop would stand still for each process of each pod.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

# spawn.h
_SETSIGDEF, _SETSIGMASK, _SETSID = 0x04, 0x08, 0x80
# Generous sizes for posix_spawnattr_t, posix_spawn_file_actions_t and sigset_t; glibc's largest has 336 bytes.
_Opaque = ctypes.c_uint64 * 128
_libc = ctypes.CDLL(None)
_signatures: dict[str, list[object]] = {
    "posix_spawn_file_actions_init": [ctypes.c_void_p],
    "posix_spawn_file_actions_destroy": [ctypes.c_void_p],
    "posix_spawn_file_actions_addopen": [
        ctypes.c_void_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_uint,
    ],
    "posix_spawn_file_actions_adddup2": [ctypes.c_void_p, ctypes.c_int, ctypes.c_int],
    "posix_spawn_file_actions_addclose": [ctypes.c_void_p, ctypes.c_int],
    "posix_spawnattr_init": [ctypes.c_void_p],
    "posix_spawnattr_destroy": [ctypes.c_void_p],
    "posix_spawnattr_setflags": [ctypes.c_void_p, ctypes.c_short],
    "posix_spawnattr_setsigdefault": [ctypes.c_void_p, ctypes.c_void_p],
    "posix_spawnattr_setsigmask": [ctypes.c_void_p, ctypes.c_void_p],
    "sigfillset": [ctypes.c_void_p],
    "sigemptyset": [ctypes.c_void_p],
    "posix_spawn": [ctypes.c_void_p] * 6,
}  # fmt: skip
for _name, _types in _signatures.items():
    getattr(_libc, _name).argtypes = _types


def spawn(program: str, argv: Sequence[str], env: Mapping[str, str], output: Path, close: Iterable[int]) -> int:
    """Start a program in a new session: empty input, output and errors appended to a file, the descriptors `close`
    closed, no signal ignored or blocked. It is in the calling thread's namespaces. Returns its pid."""
    actions, attributes, signals = _Opaque(), _Opaque(), _Opaque()
    _call("posix_spawn_file_actions_init", actions)
    _call("posix_spawnattr_init", attributes)
    try:
        _call("posix_spawn_file_actions_addopen", actions, 0, b"/dev/null", os.O_RDONLY, 0)
        mode = os.O_WRONLY | os.O_APPEND | os.O_CREAT
        _call("posix_spawn_file_actions_addopen", actions, 1, os.fsencode(output), mode, 0o640)
        _call("posix_spawn_file_actions_adddup2", actions, 1, 2)
        for descriptor in close:
            _call("posix_spawn_file_actions_addclose", actions, descriptor)
        _libc.sigemptyset(signals)
        _call("posix_spawnattr_setsigmask", attributes, signals)
        _libc.sigfillset(signals)
        _call("posix_spawnattr_setsigdefault", attributes, signals)
        _call("posix_spawnattr_setflags", attributes, _SETSIGDEF | _SETSIGMASK | _SETSID)
        pid = ctypes.c_int()
        path = ctypes.create_string_buffer(os.fsencode(program))
        words, variables = _strings(argv), _strings([f"{name}={value}" for name, value in env.items()])
        _call("posix_spawn", ctypes.byref(pid), path, actions, attributes, words, variables)
        return pid.value
    finally:
        _libc.posix_spawnattr_destroy(attributes)
        _libc.posix_spawn_file_actions_destroy(actions)


def _call(name: str, *args: object) -> None:
    """These functions return the error instead of setting errno."""
    error = getattr(_libc, name)(*args)
    if error:
        raise OSError(error, f"{name}: {os.strerror(error)}")


def _strings(texts: Sequence[str]) -> ctypes.Array[ctypes.c_char_p]:
    return (ctypes.c_char_p * (len(texts) + 1))(*map(os.fsencode, texts), None)
