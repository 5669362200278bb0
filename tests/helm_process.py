"""Helm in a process of its own: `Helm()` renders a chart with the real one (helm-python-sdk), without any network.

It is a Go library, whose threads and signal handlers would be in the way of tests that fork and change namespaces.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

NAMESPACE = "kube-system"
RELEASE = "gatehouse"

Values = Mapping[str, Any]


class HelmRefuses(Exception):
    """What Helm says where it does not render."""


class Helm:
    def __init__(self, chart: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__, str(chart)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def close(self) -> None:
        assert self._process.stdin and self._process.stdout
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()

    def render(self, values: Values, release: str = RELEASE, namespace: str = NAMESPACE) -> dict[str, str]:
        """Template → text. Raises HelmRefuses."""
        found: dict[str, str] = self._ask({"values": values, "name": release, "namespace": namespace})
        return found

    def objects(self, values: Values) -> list[dict[str, Any]]:
        """Of all templates."""
        texts = [text for path, text in sorted(self.render(values).items()) if not path.endswith("NOTES.txt")]
        return [one for text in texts for one in yaml.safe_load_all(text) if one is not None]

    def lint(self, values: Values) -> list[dict[str, Any]]:
        """Findings: severity (1 info, 2 warning, 3 error), path, error."""
        found: list[dict[str, Any]] = self._ask({"lint": values})["messages"]
        return found

    def _ask(self, question: Mapping[str, Any]) -> Any:
        assert self._process.stdin and self._process.stdout
        print(json.dumps(question), file=self._process.stdin, flush=True)
        answer = json.loads(self._process.stdout.readline())
        if "error" in answer:
            raise HelmRefuses(answer["error"])
        return answer["found"]


def main() -> None:
    import helm_python  # noqa: PLC0415  # only in the process that is for it

    path = sys.argv[1]
    with helm_python.Chart.load(path) as chart:
        for line in sys.stdin:
            asked = json.loads(line)
            answer: dict[str, Any]
            try:
                if "lint" in asked:
                    answer = {"found": helm_python.lint(path, asked["lint"], strict=True, namespace=NAMESPACE)}
                else:
                    answer = {"found": chart.render(asked.pop("values"), **asked)}
            except helm_python.HelmError as error:
                answer = {"error": str(error)}
            print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
