"""The README's promises: its session runs as printed, its commands and names exist."""

from __future__ import annotations

import doctest
import re
from pathlib import Path

import vmemu


def test_sessions_print_what_they_say(root: Path) -> None:
    text = (root / "README.md").read_text()
    blocks = re.findall(r"```python\n(>>>.*?)```", text, re.DOTALL)
    examples = [doctest.DocTestParser().get_doctest(block, {}, "README.md", "README.md", 0) for block in blocks]
    assert len(examples) >= 2 and len(examples[0].examples) > 10
    runner = doctest.DocTestRunner(verbose=False)
    failures: list[str] = []
    for example in examples:
        runner.run(example, out=failures.append)
    assert not runner.summarize(verbose=False).failed, "".join(failures)


def test_both_commands_are_there(root: Path) -> None:
    lines = [line.strip() for line in (root / "README.md").read_text().splitlines()]
    assert "python3 -m venv .venv && .venv/bin/pip install . && .venv/bin/vmemu bomb" in lines
    assert "python3 -m venv .venv && .venv/bin/pip install '.[test]' && .venv/bin/pytest" in lines


def test_names_in_the_tables_exist(root: Path) -> None:
    table = (root / "README.md").read_text()
    rows = re.findall(r"^\| (?:processes|signals|identity|mappings|accesses|looking) \| (.*) \|$", table, re.M)
    assert len(rows) == 6
    for name in re.findall(r"`(m\.)?(\w+)`", "\n".join(rows)):
        owner = vmemu.Machine if name[0] else vmemu.Process
        if name[1] in ("FaultKind",):
            continue
        if name[0]:
            with vmemu.Machine(memory="1MiB") as machine:
                assert hasattr(machine, name[1]), name
        else:
            assert hasattr(owner, name[1]), name
