"""Kernel same-page merging: ksmd, run by hand (Documentation/admin-guide/mm/ksm.rst, mm/ksm.c).

A pass looks at every anonymous page of the mappings that asked for it with MADV_MERGEABLE, space by space in the order
in which they first did, and by address. A page that is as it was at the pass before is merged with an equal page that
is merged already (the stable tree), or else with an equal one met earlier in this pass (the unstable tree), whose frame
goes. What changes between passes, and what went away meanwhile, is noticed when the next pass comes by; so do the
counters. Not there: the pruning of chains as time passes, the advisor, MMF_VM_MERGE_ANY.
"""

from __future__ import annotations

import errno
from array import array
from typing import NamedTuple

from vmemu._native import constants as c
from vmemu.errors import syscall_error
from vmemu.kernel import Kernel
from vmemu.memory.args import TASK_SIZE, integer
from vmemu.types import PAGE_SIZE

__all__ = ["Ksm", "KsmCounts", "KsmStat"]

ITEM_SIZE = 64
"""Bytes of a struct ksm_rmap_item, which profits are reckoned with."""
_KPF_KSM = 1 << 21
_BATCH = 4096
"""Pages asked for at a time."""


class KsmCounts(NamedTuple):
    """What /sys/kernel/mm/ksm shows. Pages, but for full_scans and general_profit (bytes)."""

    pages_shared: int
    """Merged frames in use."""
    pages_sharing: int
    """Further pages that map them: how much is saved."""
    pages_unshared: int
    """Unchanged, looked at, and equal to no other."""
    pages_volatile: int
    """Changing too fast, or seen for the first time."""
    ksm_zero_pages: int
    """Merged with the zero page (`use_zero_pages`)."""
    full_scans: int
    pages_scanned: int
    pages_skipped: int
    stable_node_chains: int
    """Contents that more than `max_page_sharing` pages have."""
    stable_node_dups: int
    """Frames in those chains."""
    general_profit: int


class KsmStat(NamedTuple):
    """What /proc/PID/ksm_stat shows. Pages, but for ksm_process_profit (bytes)."""

    ksm_rmap_items: int
    ksm_zero_pages: int
    ksm_merging_pages: int
    ksm_process_profit: int
    ksm_mergeable: bool


class _Node:
    """A merged frame (struct ksm_stable_node)."""

    __slots__ = ("hash", "items", "pfn")

    def __init__(self, pfn: int, content: int) -> None:
        self.pfn = pfn
        self.hash = content
        self.items: set[_Item] = set()


class _Item:
    """What is remembered of one page of one space (struct ksm_rmap_item)."""

    __slots__ = ("address", "age", "checksum", "node", "sid", "skips", "unshared")

    def __init__(self, sid: int, address: int) -> None:
        self.sid = sid
        self.address = address
        self.checksum: int | None = None
        self.node: _Node | None = None
        self.unshared = False
        """In the unstable tree of the last pass."""
        self.age = 0
        self.skips = 0


class Ksm:
    """The merging of one machine, `Machine.ksm`. NotImplementedError from `scan` where frames hold no bytes
    (contents=False).
    """

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self._slots: dict[int, dict[int, _Item]] = {}
        """By number of the space: address -> item."""
        self._stable: dict[int, list[_Node]] = {}
        self._nodes: dict[int, _Node] = {}
        """By frame."""
        self._unstable: dict[int, tuple[_Item, int]] = {}
        self._sharing = self._unshared = self._scanned = self._skipped = self._passes = 0
        self.use_zero_pages = False
        """Pages of zeros are merged with the zero page."""
        self.smart_scan = False
        """Pages that did not merge for some passes are looked at less and less often. The kernel's default is on."""
        self.max_page_sharing = 256
        """Pages that one frame may stand for; beyond that equal pages get another one."""

    # ---- looking ----

    @property
    def counts(self) -> KsmCounts:
        """The counters as the last pass, and nothing since, left them. Snapshot."""
        with self._kernel.lock:
            items = sum(map(len, self._slots.values()))
            chains = [nodes for nodes in self._stable.values() if len(nodes) > 1]
            shared = sum(1 for node in self._nodes.values() if node.items)
            sharing = self._sharing - shared
            zeros = sum(self._kernel.core.ksm_zero_pages(sid) for _, sid in self._kernel.core.ksm_spaces())
            return KsmCounts(
                pages_shared=shared,
                pages_sharing=sharing,
                pages_unshared=self._unshared,
                pages_volatile=items - self._sharing - self._unshared,
                ksm_zero_pages=zeros,
                full_scans=self._passes,
                pages_scanned=self._scanned,
                pages_skipped=self._skipped,
                stable_node_chains=len(chains),
                stable_node_dups=sum(map(len, chains)),
                general_profit=(sharing + zeros) * PAGE_SIZE - items * ITEM_SIZE,
            )

    def stat(self, pid: int) -> KsmStat:
        """Of one process. ESRCH without one that has memory."""
        core = self._kernel.core
        with self._kernel.lock:
            table = self._kernel.processes
            sid = table.space[pid] if 0 < pid < len(table.space) else 0
            if not sid:
                raise syscall_error("ksm_stat", errno.ESRCH, f"process {pid} has no memory")
            number = next((number for number, known in core.ksm_spaces() if known == sid), 0)
            items = self._slots.get(number, {})
            merged = sum(1 for item in items.values() if item.node is not None)
            zeros = core.ksm_zero_pages(sid)
            return KsmStat(
                ksm_rmap_items=len(items),
                ksm_zero_pages=zeros,
                ksm_merging_pages=merged,
                ksm_process_profit=(merged + zeros) * PAGE_SIZE - len(items) * ITEM_SIZE,
                ksm_mergeable=any(vma.flags & c.VM_MERGEABLE for vma in core.vmas(sid, 0, TASK_SIZE)),
            )

    # ---- passes ----

    def scan(self, passes: int = 2) -> KsmCounts:
        """Runs *passes* full passes. A page is merged from the second pass on that finds it unchanged, so two merge all
        that is equal now.
        """
        passes = integer(passes, "ksm.scan", "passes")
        if passes < 0:
            raise ValueError(f"passes: {passes} is negative")
        if not self._kernel.contents:
            raise NotImplementedError("KSM compares pages, and this machine keeps no bytes: Machine(contents=False)")
        for _ in range(passes):
            with self._kernel.lock:
                self._pass()
        return self.counts

    def _pass(self) -> None:
        core = self._kernel.core
        self._unstable.clear()
        alive = dict(core.ksm_spaces())
        for number in self._slots.keys() - alive.keys():  # the dead come first (__ksm_exit())
            for item in self._slots.pop(number).values():
                self._detach(item)
        for number, sid in alive.items():
            self._pass_space(sid, self._slots.setdefault(number, {}))
        self._passes += 1
        for node in [node for node in self._nodes.values() if not node.items]:
            if not core.frame_flags(node.pfn, 1)[0] & _KPF_KSM:
                self._drop(node)

    def _pass_space(self, sid: int, items: dict[int, _Item]) -> None:
        core, known, gone = self._kernel.core, sorted(items), 0
        rows = array("Q", bytes(32 * _BATCH))
        for vma in list(core.vmas(sid, 0, TASK_SIZE)):
            at = vma.start
            while vma.flags & c.VM_MERGEABLE and at < vma.end:
                n = core.ksm_pages(sid, at, vma.end, rows)
                found = rows[: 4 * n].tolist()
                for address, content, pfn, merged in zip(*(found[i::4] for i in range(4)), strict=True):
                    while gone < len(known) and known[gone] <= address:
                        if known[gone] < address:  # nothing is there any more
                            self._detach(items.pop(known[gone]))
                        gone += 1
                    item = items.get(address)
                    if item is None:
                        item = items[address] = _Item(sid, address)
                    self._scanned += 1
                    if not self._skip(item, bool(merged)):
                        self._look_at(item, content, pfn, self._nodes.get(pfn) if merged else None)
                at = found[4 * n - 4] + PAGE_SIZE if n == _BATCH else vma.end
        for address in known[gone:]:
            self._detach(items.pop(address))

    def _skip(self, item: _Item, merged: bool) -> bool:
        """should_skip_rmap_item(), skip_age()."""
        if merged or not self.smart_scan:
            return False
        age = item.age
        item.age = min(age + 1, 255)
        if age < 3:
            return False
        if not item.skips:
            item.skips = 1 if age <= 3 else 2 if age <= 5 else 4 if age <= 8 else 8
            return False
        item.skips -= 1
        self._skipped += 1
        self._detach(item)
        return True

    def _look_at(self, item: _Item, content: int, pfn: int, node: _Node | None) -> None:
        """One page (cmp_and_merge_page())."""
        core = self._kernel.core
        if node is not None:
            if item.node is not node:  # shared by fork
                self._detach(item)
                self._attach(item, node)
            return
        self._detach(item)
        if item.checksum != content:
            item.checksum = content
            return
        zero = self._kernel.zero_pfn
        if self.use_zero_pages and zero is not None and core.ksm_merge(item.sid, item.address, zero) == 0:
            return
        if self._merge_with_merged(item, content):
            return
        other, frame = self._unstable.get(content, (None, -1))
        if other is None:
            self._unstable[content] = (item, pfn)
            item.unshared = True
            self._unshared += 1
        elif frame != pfn and core.ksm_make(item.sid, item.address):
            if core.ksm_merge(other.sid, other.address, pfn):
                core.ksm_break(item.sid, item.address, item.address + PAGE_SIZE, "ksm")
                return
            del self._unstable[content]
            node = self._new_node(pfn, content)
            for one in (other, item):
                self._detach(one)
                self._attach(one, node)

    def _merge_with_merged(self, item: _Item, content: int) -> bool:
        """With the fullest frame of these bytes that has room (stable_tree_search()). True: nothing more to be done.

        A frame that only pages map of which ksmd does not know is soon to be gone (__is_page_sharing_candidate()).
        """
        for node in sorted(self._stable.get(content, ()), key=lambda node: -len(node.items)):
            if not 0 < len(node.items) < self.max_page_sharing:
                continue
            result = self._kernel.core.ksm_merge(item.sid, item.address, node.pfn)
            if result == errno.ESTALE:
                self._drop(node)
                continue
            if not result:
                self._attach(item, node)
            return True
        return False

    # ---- the trees ----

    def _new_node(self, pfn: int, content: int) -> _Node:
        stale = self._nodes.get(pfn)
        if stale is not None:
            self._drop(stale)
        node = self._nodes[pfn] = _Node(pfn, content)
        self._stable.setdefault(content, []).append(node)
        return node

    def _drop(self, node: _Node) -> None:
        """The frame is gone (remove_node_from_stable_tree())."""
        for item in list(node.items):
            self._detach(item)
        if self._nodes.get(node.pfn) is node:
            del self._nodes[node.pfn]
        nodes = self._stable[node.hash]
        nodes.remove(node)
        if not nodes:
            del self._stable[node.hash]

    def _attach(self, item: _Item, node: _Node) -> None:
        item.node = node
        node.items.add(item)
        self._sharing += 1

    def _detach(self, item: _Item) -> None:
        """Out of whichever tree it is in (remove_rmap_item_from_tree())."""
        if item.node is not None:
            item.node.items.discard(item)
            item.node = None
            self._sharing -= 1
        elif item.unshared:
            item.unshared = False
            self._unshared -= 1
