"""What a machine holds of the host's memory, by the host's own count, in an interpreter of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

MIB = 1 << 20

pytestmark = pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="needs Linux's /proc")

PRELUDE = """
import re
from vmemu import ForkMode, Machine
def held():
    text = open("/proc/self/smaps_rollup").read()
    return int(re.search(r"^Rss: *(\\d+)", text, re.M)[1]) << 10
def lent():  # what the host may take at any time (MADV_FREE)
    return int(re.search(r"^LazyFree: *(\\d+)", open("/proc/self/smaps_rollup").read(), re.M)[1]) << 10
MIB, PRIVATE = 1 << 20, 0x4022
"""


def host(program: str) -> list[int]:
    """The numbers that a program prints."""
    found = subprocess.run([sys.executable, "-c", PRELUDE + program], capture_output=True, text=True, check=True)
    return [int(word) for word in found.stdout.split()]


def test_ram_that_was_never_used_is_not_held() -> None:
    (grown,) = host("""
before = held()
m = Machine("16GiB")
p = m.spawn()
a = p.mmap(None, 1024 * MIB, 3, PRIVATE)
p.write(a, b"one page")
print(held() - before)
""")
    assert grown < 24 * MIB


def test_frames_given_back_are_not_held() -> None:
    """A process that filled memory and exits leaves nothing behind, and neither does munmap."""
    full, unmapped, exited = host("""
before = held()
m = Machine("1GiB")
p = m.spawn()
def fill(n):
    a = p.mmap(None, n, 3, PRIVATE)
    p.write(a, bytes([1]) * n)
    return a
a = fill(256 * MIB)
full = held() - before
p.munmap(a, 256 * MIB)
unmapped = held() - before
m = Machine("1GiB")
p = m.spawn()
fill(256 * MIB)
p.exit(0)
print(full, unmapped, held() - before)
""")
    assert full > 256 * MIB
    assert unmapped < 24 * MIB
    assert exited < 48 * MIB


def test_what_is_kept_for_reuse_is_the_hosts_to_take() -> None:
    """Blocks that were given back and wanted again are kept from then on, up to a bound, as LazyFree memory."""
    kept, lent = host("""
m = Machine("2GiB")
p = m.spawn()
n = 512 * MIB
p.mmap(None, n, 3, PRIVATE)
before = held()
for byte in range(1, 4):
    child = p.fork()
    a = child.mmap(None, n, 3, PRIVATE)
    child.write(a, bytes([byte]) * n)
    assert child.read(a + n - 1, 1) == bytes([byte])
    child.exit(0)
    p.wait()
print(held() - before, lent())
""")
    assert kept < 420 * MIB
    assert kept - lent < 48 * MIB


def test_bookkeeping_takes_eight_bytes_a_frame() -> None:
    """Without contents, what memory costs the host is its records and its tables."""
    grown, nframes, tables = host("""
m = Machine("64GiB", contents=False)
p = m.spawn()
before = held()
a = p.mmap(None, 8192 * MIB, 3, PRIVATE)
p.touch(a, 8192 * MIB, write=True)
print(held() - before, 8192 * MIB // 4096, m.meminfo().page_tables)
""")
    assert tables < grown <= 8 * nframes + tables + 8 * MIB


def test_a_terabyte_boots_and_costs_nothing() -> None:
    (grown,) = host("""
before = held()
m = Machine("1TiB", contents=False)
m.spawn().mmap(None, 1 << 39, 3, PRIVATE)
m.verify()
print(held() - before)
""")
    assert grown < 24 * MIB
