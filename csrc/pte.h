/* The x86-64 page-table entry: the only file that knows its bits. Invariant: nobody else shifts or masks an entry.
 *
 *   63 NX | 62..59 pkey | 58..52 software | 51..12 frame | 11..9 software | G PS D A PCD PWT US RW P
 *
 * An entry without P is one of: 0 (none); PROT_NONE, which keeps its frame and has G set, as in Linux; a marker, which holds
 * no frame and has 31 in its pkey bits, Linux's swap type for markers; a swap entry, which says where the page is:
 *
 *   63..59 type | 58..9 offset, inverted | 8 and 7: 0 | 3 exclusive | 1 soft-dirty | 0: 0
 *
 * PS in a table of level 2 or 3 makes the entry a leaf: a huge page of 2 MiB or 1 GiB, its frame the first of them.
 * Intel SDM vol. 3A, 4.5; arch/x86/include/asm/pgtable_types.h.
 */
#ifndef VMEMU_PTE_H
#define VMEMU_PTE_H

#include "base.h"

typedef uint64_t pte_t;

#define PTE_P (UINT64_C(1) << 0)
#define PTE_W (UINT64_C(1) << 1)
#define PTE_U (UINT64_C(1) << 2)
#define PTE_A (UINT64_C(1) << 5)
#define PTE_D (UINT64_C(1) << 6)
#define PTE_PS (UINT64_C(1) << 7)
#define PTE_PROTNONE (UINT64_C(1) << 8) /* G's bit, which means nothing without P */
#define PTE_GIANT (UINT64_C(1) << 10)	/* ours: with PS, a page of 1 GiB */
#define PTE_SOFT (UINT64_C(1) << 11)	/* soft-dirty: the kernel has let something be written since it last forgot */
#define PTE_NX (UINT64_C(1) << 63)
#define PTE_FRAME UINT64_C(0x000ffffffffff000)
/* A guard region: any access is as if nothing were mapped (PTE_MARKER_GUARD). */
#define PTE_GUARD (UINT64_C(31) << 59 | UINT64_C(4) << 9)

/* Bits of a swap entry. */
#define PTE_SWAP_SOFT (UINT64_C(1) << 1)
#define PTE_SWAP_EXCLUSIVE (UINT64_C(1) << 3) /* the page was FRAME_EXCLUSIVE (pte_swp_exclusive()) */
#define PTE_SWAP_SHIFT 9
#define PTE_SWAP_MASK ((UINT64_C(1) << 50) - 1)
#define PTE_TYPE_SHIFT 59
#define PTE_TYPE_MARKER 31

#define LEVELS 4 /* 4: root, 1: the table whose entries map 4 KiB */
#define TABLE_ENTRIES 512u
#define LEVEL_SHIFT(level) (PAGE_SHIFT + 9 * ((level) - 1))
/* Bytes that one entry at `level` covers, and that a table at `level` covers. */
#define ENTRY_BYTES(level) (UINT64_C(1) << LEVEL_SHIFT(level))
#define TABLE_BYTES(level) (UINT64_C(1) << LEVEL_SHIFT((level) + 1))

static inline unsigned int pte_index(uint64_t va, int level)
{
	return (unsigned int)(va >> LEVEL_SHIFT(level)) & (TABLE_ENTRIES - 1);
}

static inline pfn_t pte_pfn(pte_t e)
{
	return (pfn_t)((e & PTE_FRAME) >> PAGE_SHIFT);
}

/* Holds a frame, whether the CPU may use it or not. */
static inline int pte_mapped(pte_t e)
{
	return (e & (PTE_P | PTE_PROTNONE)) != 0;
}

/* Says in which slot of the swap device the page is. */
static inline int pte_swapped(pte_t e)
{
	return e && !pte_mapped(e) && e >> PTE_TYPE_SHIFT != PTE_TYPE_MARKER;
}

static inline pte_t pte_swap(uint32_t slot, pte_t bits)
{
	return (~(uint64_t)slot & PTE_SWAP_MASK) << PTE_SWAP_SHIFT | bits;
}

static inline uint32_t pte_slot(pte_t e)
{
	return (uint32_t)(~e >> PTE_SWAP_SHIFT & PTE_SWAP_MASK);
}

/* Entry that points to a table. */
static inline pte_t pte_table(pfn_t pfn)
{
	return ((uint64_t)pfn << PAGE_SHIFT) | PTE_P | PTE_W | PTE_U | PTE_A;
}

/* Leaf entry for a frame in a mapping with these VM flags; never writable, the caller adds W. */
static inline pte_t pte_leaf(pfn_t pfn, uint64_t vm_flags)
{
	pte_t e = ((uint64_t)pfn << PAGE_SHIFT) | PTE_U;

	e |= vm_flags & (VMEMU_VM_READ | VMEMU_VM_WRITE | VMEMU_VM_EXEC) ? PTE_P : PTE_PROTNONE;
	return vm_flags & VMEMU_VM_EXEC ? e : e | PTE_NX;
}

/* The same entry with the permissions of other VM flags; A, D and the frame stay, W is gone. */
static inline pte_t pte_reflag(pte_t e, uint64_t vm_flags)
{
	return pte_leaf(pte_pfn(e), vm_flags) | (e & (PTE_A | PTE_D | PTE_SOFT | PTE_PS | PTE_GIANT));
}

/* The same entry once a write fault let it be written (pte_mkdirty(), pte_mkwrite()). */
static inline pte_t pte_written(pte_t e)
{
	return e | PTE_W | PTE_D | PTE_A | PTE_SOFT;
}

/* A leaf in a table above the lowest. */
static inline int pte_huge(pte_t e)
{
	return (e & PTE_PS) != 0;
}

/* Frames that a leaf entry maps. */
static inline uint32_t pte_frames(pte_t e)
{
	if (!pte_huge(e))
		return 1;
	return HUGE_PAGES(e & PTE_GIANT);
}

/* Level of the table that a leaf entry is in. */
static inline int pte_level(pte_t e)
{
	if (!pte_huge(e))
		return 1;
	return e & PTE_GIANT ? 3 : 2;
}

/* The entry that maps page `i` of what a huge entry maps. */
static inline pte_t pte_of_huge(pte_t e, unsigned int i)
{
	return (e & ~PTE_PS) + ((uint64_t)i << PAGE_SHIFT);
}

#endif
