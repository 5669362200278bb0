"""What the API server answers when it refuses: Status objects (meta/v1 Status)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from apiserver.resources import Resource

GONE = 410


class Refused(Exception):
    """A request that is answered with a Status. `details`: meta/v1 StatusDetails; `metadata`: meta/v1 ListMeta."""

    def __init__(
        self,
        code: int,
        reason: str,
        message: str,
        details: Mapping[str, Any] | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.status: dict[str, Any] = {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": dict(metadata or {}),
            "status": "Failure",
            "message": message,
            "code": code,
        }
        if reason:
            self.status["reason"] = reason
        if details:
            self.status["details"] = dict(details)


def _named(resource: Resource, name: str, **more: Any) -> dict[str, Any]:
    group = {"group": resource.group} if resource.group else {}
    return {"name": name, **group, "kind": resource.plural, **more}


def not_found(resource: Resource, name: str) -> Refused:
    return Refused(404, "NotFound", f'{resource.qualified} "{name}" not found', _named(resource, name))


def already_exists(resource: Resource, name: str) -> Refused:
    return Refused(409, "AlreadyExists", f'{resource.qualified} "{name}" already exists', _named(resource, name))


def conflict(resource: Resource, name: str, why: str) -> Refused:
    message = f'{resource.qualified} "{name}" was not changed: {why}'
    return Refused(409, "Conflict", message, _named(resource, name))


def invalid(resource: Resource, name: str, field: str, why: str) -> Refused:
    details = _named(resource, name) | {"kind": resource.kind}
    details["causes"] = [{"reason": "FieldValueInvalid", "message": why, "field": field}]
    return Refused(422, "Invalid", f'{resource.kind} "{name}" is invalid: {field}: {why}', details)


def bad_request(why: str) -> Refused:
    return Refused(400, "BadRequest", why)


def unauthorized() -> Refused:
    return Refused(401, "Unauthorized", "Unauthorized")


def not_allowed() -> Refused:
    return Refused(405, "MethodNotAllowed", "the resource does not take this method")


def unsupported(content_type: str) -> Refused:
    return Refused(415, "UnsupportedMediaType", f"bodies of type {content_type!r} are not taken here")


def expired(message: str, fresh_continue: str = "") -> Refused:
    """`fresh_continue`: a token that goes on from the same key in the newest state."""
    return Refused(GONE, "Expired", message, metadata={"continue": fresh_continue} if fresh_continue else None)


def too_old(asked: int, oldest: int) -> Refused:
    return expired(f"too old resource version: {asked} ({oldest})")


def too_large(asked: int, newest: int) -> Refused:
    """Somebody asks for a state that is still to come."""
    causes = [{"reason": "ResourceVersionTooLarge", "message": "Too large resource version"}]
    message = f"Too large resource version: {asked}, current: {newest}"
    return Refused(504, "Timeout", message, {"causes": causes, "retryAfterSeconds": 1})
