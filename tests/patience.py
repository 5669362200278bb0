"""How long tests wait. Machines differ: what is said in the tests is for one of its own, however busy."""

from __future__ import annotations

import os

SLOWER = 6.0 if os.environ.get("GATEHOUSE_VM") else 1.0
"""Times as long, where the machine is emulated (tests/kernels/vm.py says so)."""
