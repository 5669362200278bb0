"""`python -m bench [--quick] [MEASURE …]`: run measures, print the table, write build/bench.json.

Exit status: 0 where every goal is met, 1 where one is missed, 2 where it cannot run.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import rig

from agent.datapath.mounts import Unmet, require_host
from bench import (
    balancing,
    dns,
    encryption,
    kube,
    l7,
    memory,
    northsouth,
    packets,
    pods,
    policies,
    roundtrips,
    scale,
    services,
)
from bench.report import Figure, machine, table, write_json
from bench.setting import Bench

MEASURES: dict[str, Callable[[Bench], Iterator[Figure]]] = {
    "roundtrips": roundtrips.measure,
    "balancing": balancing.measure,
    "northsouth": northsouth.measure,
    "packets": packets.measure,
    "services": services.measure,
    "scale": scale.measure,
    "l7": l7.measure,
    "dns": dns.measure,
    "kube": kube.measure,
    "encryption": encryption.measure,
    "memory": memory.measure,
    "policies": policies.measure,
    "pods": pods.measure,
}
OUTPUT = Path("build/bench.json")


def main() -> int:
    parser = argparse.ArgumentParser(prog="bench", description=__doc__)
    parser.add_argument(
        "measures", nargs="*", metavar="MEASURE", help=f"of {', '.join(MEASURES)}; all if none is given"
    )
    parser.add_argument("--quick", action="store_true", help="fewer samples: to see that it works, not to judge by")
    chosen = parser.parse_args()
    if unknown := set(chosen.measures) - MEASURES.keys():
        parser.error(f"there is no measure {sorted(unknown)[0]}; there are {', '.join(MEASURES)}")
    try:
        require_host()
    except Unmet as unmet:
        sys.stderr.write(f"bench: {unmet}\n")
        return 2
    rig.sweep()
    facts = machine()
    say(f"kernel {facts.kernel}, {facts.cpus} × {facts.cpu}, load {facts.load:.1f}, {facts.date}")
    figures: list[Figure] = []
    with Bench(quick=chosen.quick, say=say) as bench:
        for name, measure in MEASURES.items():
            if name in (chosen.measures or MEASURES):
                started = time.monotonic()
                figures += measure(bench)
                say(f"{name}: {time.monotonic() - started:.0f} s")
    sys.stdout.write(f"\n{table(figures)}\n")
    write_json(OUTPUT, facts, figures)
    missed = sum(figure.verdict == "missed" for figure in figures)
    say(f"\n{missed} of the goals missed; written to {OUTPUT}")
    return 1 if missed else 0


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
