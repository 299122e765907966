"""Machine.ram: the emulated RAM, lent."""

from __future__ import annotations

import gc
import weakref

import numpy as np
import pytest

from vmemu import Machine, Map, Prot, VmemuError

PAGE = 4096
RW = Prot.READ | Prot.WRITE
PRIVATE = Map.PRIVATE | Map.ANONYMOUS


def test_frames_are_where_translate_says() -> None:
    with Machine(memory="1MiB") as m:
        p = m.spawn()
        a = p.mmap(None, 2 * PAGE, RW, PRIVATE)
        p.write(a + PAGE - 3, b"across")
        first, second = (p.translate(a + i * PAGE) for i in range(2))
        assert first and second
        ram = m.ram
        assert ram.shape == (1 << 20,) and ram.dtype == np.uint8
        assert bytes(ram[first.pfn * PAGE :][PAGE - 3 : PAGE]) == b"acr"
        assert bytes(ram[second.pfn * PAGE :][:3]) == b"oss"
        p.write(a, b"later")  # it is live
        assert bytes(ram[first.pfn * PAGE :][:5]) == b"later"


def test_page_tables_are_in_it() -> None:
    """The walk of the hardware, from the leaf table up."""
    with Machine(memory="1MiB") as m:
        p = m.spawn()
        a = p.mmap(None, PAGE, RW, PRIVATE)
        p.write(a, b"x")
        found = p.translate(a)
        assert found
        entries = m.ram.view(np.uint64) >> np.uint64(12) & np.uint64((1 << 40) - 1)
        present = m.ram.view(np.uint64) & np.uint64(1)
        index = a >> 12 & 511
        tables = [i for i in range(index, len(entries), 512) if present[i] and entries[i] == found.pfn]
        assert len(tables) == 1


def test_it_cannot_be_written() -> None:
    with Machine(memory="64KiB") as m:
        ram = m.ram
        with pytest.raises(ValueError, match="read-only"):
            ram[0] = 1
        with pytest.raises(ValueError, match="WRITEABLE"):
            ram.flags.writeable = True


def test_it_outlives_the_machine() -> None:
    m = Machine(memory="64KiB")
    p = m.spawn()
    a = p.mmap(None, PAGE, RW, PRIVATE)
    p.write(a, b"still here")
    found = p.translate(a)
    ram = m.ram
    m.close()
    assert found and bytes(ram[found.pfn * PAGE :][:10]) == b"still here"
    with pytest.raises(VmemuError):
        _ = m.ram


def test_it_is_let_go() -> None:
    with Machine(memory="64KiB") as m:
        gone = weakref.ref(m.ram)
        gc.collect()
        assert gone() is None


def test_without_contents_data_is_zeros() -> None:
    with Machine(memory="1MiB", contents=False) as m:
        p = m.spawn()
        a = p.mmap(None, PAGE, RW, PRIVATE)
        p.write(a, b"dropped")
        found = p.translate(a)
        assert found and not m.ram[found.pfn * PAGE :][:PAGE].any()
