"""What Envoy and the API server answer when they are asked who they are."""

from __future__ import annotations

import asyncio
import subprocess

import msgspec

from agent.config import Config
from agent.preflight.facts import Server
from l7proxy import envoy

WAIT_S = 3.0
"""For Envoy's version, and the API server's."""


def envoy_version(config: Config) -> tuple[str | None, str]:
    """Version, or why there is none; neither where it takes too long to say."""
    if config.l7_proxy == "off":
        return None, ""
    try:
        program = envoy.binary(config.envoy)
        done = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=WAIT_S, check=False)
    except envoy.NoEnvoy as error:
        return None, str(error)
    except subprocess.TimeoutExpired:
        return None, ""
    except OSError as error:
        return None, f"{program} cannot be run: {error.strerror}"
    version = next((line for line in done.stdout.splitlines() if "version:" in line), "")
    if done.returncode or not version:
        return None, f"{program} --version ends with {done.returncode}"
    return "Envoy " + version.rpartition("/")[0].partition("version: ")[2].split("/")[1], ""


def api_server(config: Config) -> Server | None:
    if config.source != "kubernetes":
        return None
    return asyncio.run(_asked(config.kubeconfig))


async def _asked(kubeconfig: str) -> Server:
    from agent.kube.client import ApiClient, Timeouts  # noqa: PLC0415  # aiohttp, 20 MB
    from agent.kube.credentials import NoCredentials  # noqa: PLC0415
    from agent.kube.errors import ApiServerError, ApiUnreachable  # noqa: PLC0415

    client = ApiClient(kubeconfig=kubeconfig, timeouts=Timeouts(connect_s=WAIT_S, read_s=WAIT_S, whole_s=WAIT_S))
    try:
        async with asyncio.timeout(WAIT_S):
            answer = msgspec.json.decode(await client.get("/version"), type=dict[str, str])
    except (ApiServerError, ApiUnreachable, NoCredentials) as error:
        return Server(problem=str(error))
    except TimeoutError:
        return Server(problem=f"it does not answer within {WAIT_S:g} s")
    except msgspec.MsgspecError:
        return Server(problem="what answers is no API server")
    finally:
        await client.close()
    return Server(version=answer.get("gitVersion", "of an unknown version"))
