"""What runtimes ask of a CNI plugin, and how they are answered (CNI spec 1.1, sections 2 and 5). Pure.

The plugin passes on its environment and its standard input as they are (agent/cni/plugin/gatehouse-cni.c):
"GHC1", length of environment, length of configuration, both. It gets "GHA1", exit status, length, what to print.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping
from typing import Any, Literal

import msgspec

from policies.address import format_address, is_v4, parse_address
from policies.model import ObjectRef

SUPPORTED_VERSIONS = ("0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")
FIRST_VERSION = {"CHECK": "0.4.0", "GC": "1.1.0", "STATUS": "1.1.0"}
"""Of the spec that has a command; the others were always there."""

CONFIG_BYTES = 1 << 20
ENVIRONMENT_BYTES = 64 << 10

# Section 5, "Error". 8 and 999 are those of the reference implementation.
INCOMPATIBLE_VERSION = 1
UNKNOWN_CONTAINER = 3
INVALID_ENVIRONMENT = 4
IO_FAILURE = 5
NOT_DECODED = 6
INVALID_CONFIG = 7
INVALID_NETNS = 8
TRY_AGAIN_LATER = 11
NOT_AVAILABLE = 50
INTERNAL = 999

GATEWAYS = {True: parse_address("169.254.1.1"), False: parse_address("fe80::1")}
"""By whether it is IPv4: what pods' default routes name. See agent.endpoints.sandbox."""

HEADER = struct.Struct("!4sII")
_REQUEST, _ANSWER = b"GHC1", b"GHA1"

_CONTAINER_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,199}")
_NETWORK_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_INTERFACE = re.compile(r"[^\s/:]{1,15}")
_REQUIRED = {
    "ADD": ("CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"),
    "CHECK": ("CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"),
    "DEL": ("CNI_CONTAINERID", "CNI_IFNAME"),
    "GC": (),
    "STATUS": (),
}

Command = Literal["ADD", "DEL", "CHECK", "GC", "STATUS"]


class CniError(Exception):
    """Why a request fails, for the runtime and people: a code of the spec, a short message, what to do about it."""

    def __init__(self, code: int, message: str, details: str = "") -> None:
        super().__init__(f"{message}: {details}" if details else message)
        self.code = code
        self.message = message
        self.details = details


class Key(msgspec.Struct, frozen=True, order=True, gc=False, cache_hash=True):
    """What an attachment is known by (section 3)."""

    container_id: str
    ifname: str

    def __str__(self) -> str:
        return f"{self.container_id}/{self.ifname}"


class PortMapping(msgspec.Struct, frozen=True, gc=False, rename="camel"):
    """Capability `portMappings`, of which host and container port matter: Gatehouse serves the host ports that the Pod
    declares, and says where a runtime asks for another."""

    host_port: int = 0
    container_port: int = 0


class _ResultInterface(msgspec.Struct, frozen=True):
    name: str = ""
    sandbox: str = ""


class _ResultAddress(msgspec.Struct, frozen=True):
    address: str = ""
    interface: int | None = None


class _PreviousResult(msgspec.Struct, frozen=True):
    interfaces: tuple[_ResultInterface, ...] | None = ()
    ips: tuple[_ResultAddress, ...] | None = ()


class _Valid(msgspec.Struct, frozen=True):
    container_id: str = msgspec.field(name="containerID")
    ifname: str


class _RuntimeConfig(msgspec.Struct, frozen=True):
    port_mappings: tuple[PortMapping, ...] | None = msgspec.field(default=(), name="portMappings")


class _Config(msgspec.Struct, frozen=True):
    version: str = msgspec.field(default="0.1.0", name="cniVersion")
    name: str = ""
    dns: dict[str, Any] | None = None
    runtime_config: _RuntimeConfig | None = msgspec.field(default=None, name="runtimeConfig")
    previous: dict[str, Any] | None = msgspec.field(default=None, name="prevResult")
    valid: tuple[_Valid, ...] | msgspec.UnsetType | None = msgspec.field(
        default=msgspec.UNSET, name="cni.dev/valid-attachments"
    )
    attachments: tuple[_Valid, ...] | msgspec.UnsetType | None = msgspec.field(
        default=msgspec.UNSET, name="cni.dev/attachments"
    )
    """How libcni 1.2 misspelt it."""


class Request(msgspec.Struct, frozen=True):
    """A request that is complete for its command. `pod` of ADD and CHECK; `uid` where the runtime told it."""

    command: Command
    version: str
    network: str
    key: Key = Key("", "")
    netns: str = ""
    pod: ObjectRef | None = None
    uid: str = ""
    previous: dict[str, Any] | None = None  # prevResult
    port_mappings: tuple[PortMapping, ...] = ()
    dns: dict[str, Any] = {}
    valid: frozenset[Key] = frozenset()  # of GC: attachments that are still there


class Made(msgspec.Struct, frozen=True):
    """What an ADD made. Addresses are 16 bytes each, in the order in which they are told; MACs six."""

    host_name: str
    host_mac: bytes
    mac: bytes
    mtu: int
    addresses: tuple[bytes, ...]


# ---- requests


def request_lengths(header: bytes) -> tuple[int, int]:
    """Lengths of environment and configuration, from HEADER.size bytes. Raises CniError."""
    magic, environment, config = HEADER.unpack(header)
    if magic != _REQUEST:
        raise CniError(IO_FAILURE, "plugin and agent differ in version", "let the agent install its plugin anew")
    if environment > ENVIRONMENT_BYTES or config > CONFIG_BYTES:
        raise CniError(
            NOT_DECODED, "the request is too long", f"{environment} bytes of environment, {config} of configuration"
        )
    return environment, config


def frame_request(environment: Mapping[str, str], config: bytes) -> bytes:
    """As the plugin sends it."""
    packed = b"".join(f"{name}={value}\0".encode() for name, value in environment.items())
    return HEADER.pack(_REQUEST, len(packed), len(config)) + packed + config


def parse_request(environment: bytes, config: bytes) -> Request:
    """A checked request. Raises CniError."""
    env = _environment(environment)
    command = env.get("CNI_COMMAND", "")
    if command not in _REQUIRED:
        raise CniError(INVALID_ENVIRONMENT, "CNI_COMMAND is not valid", f"{command!r} is no command of the CNI spec")
    if missing := [name for name in _REQUIRED[command] if not env.get(name)]:
        raise CniError(INVALID_ENVIRONMENT, f"{', '.join(missing)} missing in the environment", "the runtime sets them")
    read = _config(config)
    _check_version(command, read.version)
    if not _NETWORK_NAME.fullmatch(read.name):
        raise CniError(INVALID_CONFIG, "the network has no name" if not read.name else "the network's name is invalid")
    pod, uid = _pod(env.get("CNI_ARGS", ""))
    if command == "ADD" and pod is None:
        raise CniError(
            INVALID_ENVIRONMENT, "CNI_ARGS names no pod", "Gatehouse needs K8S_POD_NAMESPACE and K8S_POD_NAME in it"
        )
    return Request(
        command=command,  # type: ignore[arg-type]  # one of _REQUIRED
        version=read.version,
        network=read.name,
        key=_key(env) if _REQUIRED[command] else Key("", ""),
        netns=env.get("CNI_NETNS", ""),
        pod=pod,
        uid=uid,
        previous=read.previous,
        port_mappings=(read.runtime_config and read.runtime_config.port_mappings) or (),
        dns=read.dns or {},
        valid=_valid(command, read),
    )


def version_of(config: bytes) -> str:
    """What to answer in, whatever else is wrong with the configuration."""
    try:
        version = _config(config).version
    except CniError:
        return SUPPORTED_VERSIONS[-1]
    return version if version in SUPPORTED_VERSIONS else SUPPORTED_VERSIONS[-1]


def _environment(packed: bytes) -> dict[str, str]:
    try:
        pairs = [entry.decode().partition("=") for entry in packed.split(b"\0") if entry]
    except UnicodeDecodeError as error:
        raise CniError(INVALID_ENVIRONMENT, "the environment is not UTF-8", str(error)) from None
    return {name: value for name, _, value in pairs}


def _config(config: bytes) -> _Config:
    try:
        return msgspec.json.decode(config, type=_Config)
    except msgspec.ValidationError as error:
        raise CniError(INVALID_CONFIG, "the configuration is not valid", str(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise CniError(NOT_DECODED, "the configuration is not JSON", str(error)) from None


def _check_version(command: str, version: str) -> None:
    if version not in SUPPORTED_VERSIONS:
        supported = ", ".join(SUPPORTED_VERSIONS)
        raise CniError(INCOMPATIBLE_VERSION, "incompatible CNI version", f"{version!r} is none of {supported}")
    first = FIRST_VERSION.get(command, "")
    if SUPPORTED_VERSIONS.index(version) < SUPPORTED_VERSIONS.index(first or SUPPORTED_VERSIONS[0]):
        raise CniError(INCOMPATIBLE_VERSION, f"{command} is not in CNI {version}", f"it came with {first}")


def _key(env: Mapping[str, str]) -> Key:
    container_id, ifname = env["CNI_CONTAINERID"], env["CNI_IFNAME"]
    if not _CONTAINER_ID.fullmatch(container_id):
        raise CniError(INVALID_ENVIRONMENT, "CNI_CONTAINERID is not valid", repr(container_id[:256]))
    if not _INTERFACE.fullmatch(ifname) or ifname in (".", ".."):
        raise CniError(INVALID_ENVIRONMENT, "CNI_IFNAME is not valid", repr(ifname[:64]))
    return Key(container_id, ifname)


def _pod(args: str) -> tuple[ObjectRef | None, str]:
    """Pod and uid that CNI_ARGS ("A=1;B=2") tells of; other arguments are not for us."""
    given = dict(pair.split("=", 1) for pair in args.split(";") if "=" in pair)
    namespace, name = given.get("K8S_POD_NAMESPACE", ""), given.get("K8S_POD_NAME", "")
    pod = ObjectRef("Pod", namespace, name) if namespace and name else None
    return pod, given.get("K8S_POD_UID", "")


def _valid(command: str, config: _Config) -> frozenset[Key]:
    """An absent list must not mean that nothing is valid; null is how Go writes an empty one."""
    told = config.attachments if config.valid is msgspec.UNSET else config.valid
    if told is msgspec.UNSET:
        if command == "GC":
            raise CniError(INVALID_CONFIG, "cni.dev/valid-attachments is missing", "GC is not told what is to stay")
        return frozenset()
    return frozenset(Key(one.container_id, one.ifname) for one in told or ())


def previous_addresses(previous: Mapping[str, Any], ifname: str) -> tuple[bytes, ...]:
    """Addresses (16 bytes) that prevResult says the pod's interface has. Raises CniError."""
    try:
        read = msgspec.convert(previous, _PreviousResult)
        interfaces = read.interfaces or ()
        found = []
        for ip in read.ips or ():
            where = None if ip.interface is None else interfaces[ip.interface]
            if where is None or (where.sandbox and where.name == ifname):
                found.append(parse_address(ip.address.partition("/")[0]))
    except (msgspec.ValidationError, ValueError, IndexError) as error:
        raise CniError(INVALID_CONFIG, "prevResult is not valid", str(error)) from None
    return tuple(found)


# ---- answers


def frame_answer(status: int, body: bytes) -> bytes:
    """As the plugin takes it. `status` is what the plugin exits with: 0, or 1 for an error."""
    return HEADER.pack(_ANSWER, status, len(body)) + body


def error_body(version: str, error: CniError) -> bytes:
    body = {"cniVersion": version, "code": error.code, "msg": error.message}
    return msgspec.json.encode({**body, "details": error.details} if error.details else body) + b"\n"


def result_body(request: Request, made: Made) -> bytes:
    """The success result of an ADD: that of the plugin before us, or what we made."""
    if request.previous is not None:
        return msgspec.json.encode({**request.previous, "cniVersion": request.version}) + b"\n"
    told = SUPPORTED_VERSIONS.index(request.version)
    host: dict[str, Any] = {"name": made.host_name, "mac": _mac(made.host_mac)}
    inside: dict[str, Any] = {"name": request.key.ifname, "mac": _mac(made.mac), "sandbox": request.netns}
    if told >= SUPPORTED_VERSIONS.index("1.1.0") and made.mtu:
        host["mtu"] = inside["mtu"] = made.mtu
    body = {
        "cniVersion": request.version,
        "interfaces": [host, inside],
        "ips": [_ip(address, with_family=told < SUPPORTED_VERSIONS.index("1.0.0")) for address in made.addresses],
        "routes": [
            {"dst": "0.0.0.0/0" if family else "::/0", "gw": format_address(GATEWAYS[family])}
            for family in (True, False)
            if any(is_v4(address) == family for address in made.addresses)
        ],
        "dns": request.dns,
    }
    return msgspec.json.encode(body) + b"\n"


def _ip(address: bytes, with_family: bool) -> dict[str, Any]:
    family = is_v4(address)
    body = {
        "address": f"{format_address(address)}/{32 if family else 128}",
        "gateway": format_address(GATEWAYS[family]),
        "interface": 1,
    }
    return {"version": "4" if family else "6", **body} if with_family else body


def _mac(mac: bytes) -> str:
    return mac.hex(":")
