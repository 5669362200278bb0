"""What can go wrong between the agent and the API server."""

from __future__ import annotations

import msgspec

_HINTS = {
    401: "the credentials are not accepted: see to the token or certificate",
    403: "give the agent's service account this right, as the ClusterRole of the Helm chart does",
    429: "the API server is overloaded; it is tried again",
}


class ApiUnreachable(Exception):
    """No answer, or none that is whole. The message says where and why."""


class ApiServerError(Exception):
    """An answer that refuses. `status`: of HTTP; `reason`: of the Status object, such as AlreadyExists or Expired.

    `retry_after_s`: how long the server wants to be left alone; 0: it did not say.
    """

    def __init__(self, status: int, reason: str, message: str, retry_after_s: float = 0.0) -> None:
        super().__init__(message)
        self.status = status
        self.reason = reason
        self.message = message
        self.retry_after_s = retry_after_s

    @property
    def expired(self) -> bool:
        """The resourceVersion, or the place in a paged list, is too old: list again from the start."""
        return self.status == 410 or self.reason in ("Expired", "Gone")


class _Details(msgspec.Struct, rename="camel"):
    retry_after_seconds: int | None = None


class Status(msgspec.Struct):
    """Of meta/v1: what the server says of a request it refuses; also the object of an ERROR event of a watch."""

    code: int | None = None
    reason: str | None = None
    message: str | None = None
    details: _Details | None = None


_STATUS = msgspec.json.Decoder(Status)


def refusal(what: str, status: int, body: bytes, retry_after: str = "") -> ApiServerError:
    """From an answer: `what` was asked ("GET /api/v1/pods"), HTTP status (0: that of the body), body, Retry-After."""
    try:
        said = _STATUS.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        said = Status(message=" ".join(body[:200].decode(errors="replace").split()))
    status = status or said.code or 500
    wait_s = float(retry_after) if retry_after.strip().isdecimal() else 0.0
    if said.details is not None and said.details.retry_after_seconds:
        wait_s = max(wait_s, float(said.details.retry_after_seconds))
    words = [f"{what}: {status}", said.reason or "", said.message or "", _HINTS.get(status, "")]
    return ApiServerError(status, said.reason or "", ": ".join(word for word in words if word), wait_s)
