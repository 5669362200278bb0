"""A process confined as a container of the chart: its capabilities, a read-only root, PID namespace, and /proc/sys."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

# As runtimes do for containers that are not privileged (OCI runtime-spec: readonlyPaths, root.readonly). What of the
# node is mounted stays as writable as it is.
_SCRIPT = """
for folder in {folders}; do mkdir -p "$folder" && mount --rbind "$folder" "$folder" || exit; done
mount -o remount,bind,ro / &&
mount --bind /proc/sys /proc/sys && mount -o remount,bind,ro,nosuid,nodev,noexec /proc/sys &&
exec setpriv --bounding-set=-all{may} --inh-caps=-all{may} --no-new-privs -- "$@"
"""


def confined(capabilities: Sequence[str], folders: Sequence[Path]) -> list[str]:
    """The words before a command. `capabilities`: as in a manifest, SYS_ADMIN; `folders`: what it may write to."""
    may = "".join(f",+{name.lower()}" for name in capabilities)
    script = _SCRIPT.format(may=may, folders=" ".join(f"'{folder}'" for folder in folders))
    return [
        *("unshare", "--mount", "--propagation", "slave", "--pid", "--fork", "--kill-child=SIGKILL", "--mount-proc"),
        *("sh", "-c", script, "sh"),
    ]
