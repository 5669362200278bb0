"""The C compiler lays every struct of bpf/abi.h out as the reader says."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from agent.datapath.abi import bpf_dir, load

COMPILER = shutil.which("gcc") or shutil.which("cc")


def _questions() -> dict[str, tuple[str, int]]:
    """C expression by name, with the value the reader gives it."""
    abi = load()
    questions = {}
    for record in abi.records.values():
        questions[f"sizeof {record.name}"] = (f"sizeof(struct {record.name})", record.size)
        questions[f"alignof {record.name}"] = (f"_Alignof(struct {record.name})", record.align)
        for field in record.fields:
            if not field.is_padding:
                name = re.sub("^after_", "after.", field.name)  # a struct tuple inside
                member = f"{record.name}, {name}"
                questions[f"offset {member}"] = (f"offsetof(struct {member})", field.offset)
                questions[f"size {member}"] = (f"sizeof(((struct {record.name} *)0)->{name})", field.size)
    for name, value in abi.constants.items():
        questions[name] = (f"(unsigned long long){name}", value)
    for spec in abi.maps.values():
        row = f"({spec.name}_max_entries)"
        questions[f"rows {spec.name}"] = (row, spec.max_entries)
    return questions


@pytest.mark.skipif(COMPILER is None, reason="no C compiler: apt-get install gcc")
def test_every_size_offset_and_constant(tmp_path: Path) -> None:
    assert COMPILER is not None
    questions = _questions()
    lines = "\n".join(f'\tprintf("%llu\\n", (unsigned long long)({code}));' for code, _ in questions.values())
    program = f"""
        #include <linux/types.h>
        #include <stddef.h>
        #include <stdio.h>
        #include "abi.h"
        #define SIZE_OF_MAP(type, name, key, value, max_entries, flags) name##_max_entries = max_entries,
        enum {{ GH_MAPS(SIZE_OF_MAP) }};
        int main(void) {{\n{lines}\n\treturn 0;\n}}
    """
    source, binary = tmp_path / "layout.c", tmp_path / "layout"
    source.write_text(program)
    subprocess.run([COMPILER, f"-I{bpf_dir()}", "-o", binary, source], check=True)
    output = subprocess.run([binary], check=True, capture_output=True, text=True).stdout
    answers = dict(zip(questions, map(int, output.split()), strict=True))
    assert answers == {name: expected for name, (_, expected) in questions.items()}
    assert len(answers) > 250
