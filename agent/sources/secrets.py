"""Secret (core/v1) documents → objects. What is wrong is said without a word of what they hold."""

from __future__ import annotations

import base64
import binascii
import re

from agent.objects import Secret
from agent.sources import schema
from agent.sources.findings import Findings, check_labels, reference
from policies.model import Origin

MAX_BYTES = 1 << 20
"""Of all values together, as core ValidateSecret has it."""

_KEY = re.compile(r"[-._a-zA-Z0-9]{1,253}")


def secret(doc: schema.SecretDoc, origin: Origin, findings: Findings) -> Secret:
    """Values of stringData go before those of data."""
    ref = reference("Secret", doc.metadata, findings)
    check_labels("metadata.labels", doc.metadata.labels, findings)
    data = {key: _decoded(f"data[{key}]", text, findings) for key, text in (doc.data or {}).items()}
    data |= {key: text.encode() for key, text in (doc.string_data or {}).items()}
    for key in data:
        if not _KEY.fullmatch(key) or key in (".", "..") or key.startswith(".."):
            findings.error("data", f"key {key!r} must be 1–253 letters, digits, '-', '_' or '.'")
    if sum(map(len, data.values())) > MAX_BYTES:
        findings.error("data", f"must hold at most {MAX_BYTES >> 20} MiB")
    return Secret(ref, origin, data)


def _decoded(path: str, text: str, findings: Findings) -> bytes:
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError):
        findings.error(path, "must be base64 (write plain text under stringData)")
        return b""
