/* Page faults: the effects on pages that are in a slot of the swap device. See fault.h. Source: Linux mm/memory.c, do_swap_page(). */
#include "fault.h"

#include "swap.h"

/* The page may be written in place: it was this space's alone, or is by now. Leaves the swap cache if that is what it takes. */
static int becomes_exclusive(struct fault *f, pte_t e, pfn_t pfn)
{
	struct frames *frames = &f->vm->frames;
	uint32_t slot = pte_slot(e);
	const struct frame *fr = frame_of(frames, pfn);

	if (e & PTE_SWAP_EXCLUSIVE)
		return 1;
	return f->access == VMEMU_WRITE && f->facts.options & VMEMU_OPT_REUSE && fr->refs == 1 &&
	       frames->swap.count[slot] == 1;
}

/* A write to a page that others have too. */
static int copy_swapped(struct fault *f, const struct leaf *leaf, pfn_t from)
{
	struct frames *frames = &f->vm->frames;
	pfn_t pfn;

	if (frame_alloc_copy(frames, fault_anon_flags(f) | FRAME_EXCLUSIVE, from, &pfn))
		return -ENOMEM;
	table_set(&f->vm->tables, leaf, fault_entry(f, pfn, 1));
	return 0;
}

/* Maps the frame, on which the caller has no reference yet. */
static void map_swapped(struct fault *f, const struct leaf *leaf, pfn_t pfn, int exclusive)
{
	struct frames *frames = &f->vm->frames;
	pte_t old = *leaf->pte, e = pte_leaf(pfn, f->vma.flags) | PTE_A;
	uint32_t slot = pte_slot(old);

	if (old & PTE_SWAP_SOFT)
		e |= PTE_SOFT;
	if (exclusive) {
		frame_of(frames, pfn)->flags |= FRAME_EXCLUSIVE;
		if (f->vma.flags & VMEMU_VM_WRITE && (f->vma.flags & VMEMU_VM_SOFTDIRTY || e & PTE_SOFT))
			e |= PTE_W;
		if (f->access == VMEMU_WRITE)
			e = pte_written(e);
	}
	frame_get(frames, pfn);
	table_set(&f->vm->tables, leaf, e);
	/* should_try_to_free_swap() */
	if (!frames->swap.count[slot] && (swap_full(frames, slot) || f->vma.flags & VMEMU_VM_LOCKED ||
					  (f->access == VMEMU_WRITE && frame_of(frames, pfn)->refs == 2)))
		swap_leave(frames, pfn);
}

int fault_swap_in(struct fault *f)
{
	struct frames *frames = &f->vm->frames;
	struct leaf leaf;
	int exclusive, major;
	pfn_t pfn;

	if (fault_own(f, &leaf))
		return VMEMU_OOM;
	pfn = swap_find(frames, pte_slot(*leaf.pte));
	if (pfn == NO_PFN) {
		int rc = swap_bring_cached(frames, pte_slot(*leaf.pte), NULL, &pfn);

		if (rc == -ENOMEM)
			return VMEMU_OOM;
		if (rc) { /* the caller reads it, or knows what is the matter */
			f->trap->object = 0;
			f->trap->index = pte_slot(*leaf.pte);
			return -VMEMU_TRAP_SWAP;
		}
	}
	major = (frame_of(frames, pfn)->flags & FRAME_MAJOR) != 0;
	exclusive = becomes_exclusive(f, *leaf.pte, pfn);
	frame_of(frames, pfn)->flags &= (uint16_t)~FRAME_MAJOR;
	if (f->access == VMEMU_WRITE && !exclusive) {
		if (!copy_swapped(f, &leaf, pfn))
			return major ? VMEMU_SWAP_IN : VMEMU_COW_COPY;
		frame_of(frames, pfn)->flags |= major ? FRAME_MAJOR : 0;
		return VMEMU_OOM;
	}
	map_swapped(f, &leaf, pfn, exclusive);
	return major ? VMEMU_SWAP_IN : VMEMU_FILE_MINOR;
}
