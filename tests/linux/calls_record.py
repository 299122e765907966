"""Records what this kernel makes of every case of calls_cases.py: `python tests/linux/calls_record.py OUT.jsonl.gz`.

The first line says what the probe itself has mapped; each other line is one case: family, steps, results, and the
mappings and sizes at its end. tests/recorded/test_calls.py does the same in vmemu.
"""

from __future__ import annotations

import gzip
import json
import platform
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from linux import calls_cases, calls_emulated, calls_host


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch, gzip.GzipFile(sys.argv[1], "wb", mtime=0) as out:
        probe = calls_host.build(Path(scratch))
        base, heap = calls_host.run(probe, [[], [("brk", 0)]])
        meta = {"kernel": platform.release().split("-")[0], "ram": calls_emulated.ram(), "heap": int(heap.results[0])}
        lines: list[object] = [{"meta": {**meta, "mappings": base.mappings, "sizes": base.sizes}}]
        own = set(base.mappings)
        for family, cases in calls_cases.FAMILIES.items():
            table = list(cases())
            for case, seen in zip(table, calls_host.run(probe, table), strict=True):
                if not seen.died:
                    found = [line for line in seen.mappings if line not in own]
                    lines.append([family, case, seen.results, found, list(seen.sizes.values())])
        out.write("".join(json.dumps(line, separators=(",", ":")) + "\n" for line in lines).encode())


if __name__ == "__main__":
    main()
