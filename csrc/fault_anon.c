/* Page faults: the effects on anonymous memory. See fault.h. Source: Linux mm/memory.c.
 *
 * A handler here goes on with the pages that follow while the decision is the same for them: a run.
 */
#include "fault.h"

#include "swap.h"

/* A run goes on with the next page: the leaf is its entry. 0: it ends. The decision is made for each page. */
static int goes_on(struct fault *f, struct leaf *leaf)
{
	const struct fault_facts *facts = &f->facts;
	enum fault_action action = f->action;
	pte_t e;

	if (!f->limit)
		return 0;
	e = leaf->pte[1];
	if (f->access == VMEMU_WRITE ? e & PTE_W : e & PTE_P) /* no fault */
		return 0;
	fault_look(f, e);
	f->facts.va = (facts->va & ~PAGE_MASK) + PAGE_BYTES;
	if (fault_classify(facts) != action)
		return 0;
	f->limit--;
	f->before++;
	leaf->pte++;
	leaf->index++;
	return 1;
}

/* The page after this one is the next of the run, perhaps: what will be copied from it is fetched now. */
static void fetch_next(const struct fault *f, const struct leaf *leaf)
{
	const struct frames *frames = &f->vm->frames;
	const uint8_t *bytes;

	if (!f->limit || !pte_mapped(leaf->pte[1]) || leaf->pte[1] & PTE_W)
		return;
	__builtin_prefetch(frame_of(frames, pte_pfn(leaf->pte[1])), 1);
	bytes = frame_bytes(frames, pte_pfn(leaf->pte[1]));
	for (unsigned int i = 0; frames->contents && i < FETCH_BYTES; i += 64)
		__builtin_prefetch(bytes + i, 0);
}

int fault_map_zero(struct fault *f)
{
	struct leaf leaf;

	if (fault_own(f, &leaf))
		return VMEMU_OOM;
	f->kind = VMEMU_ZERO_MAP;
	do
		table_set(&f->vm->tables, &leaf, fault_entry(f, f->vm->frames.zero, 0));
	while (goes_on(f, &leaf));
	return VMEMU_ZERO_MAP;
}

/* A new frame in place of whatever the entry holds; from == NO_PFN: zeros, else a copy of that frame. */
static int replace(struct fault *f, const struct leaf *leaf, pfn_t from)
{
	const uint32_t flags = fault_anon_flags(f) | FRAME_EXCLUSIVE;
	struct frames *frames = &f->vm->frames;
	pfn_t pfn;
	int rc = from == NO_PFN ? frame_alloc_zeroed(frames, flags, &pfn) : frame_alloc_copy(frames, flags, from, &pfn);

	if (!rc)
		table_set(&f->vm->tables, leaf, fault_entry(f, pfn, (f->vma.flags & VMEMU_VM_WRITE) != 0));
	return rc;
}

int fault_fill(struct fault *f)
{
	struct leaf leaf;

	if (fault_prepare_anon(f) || fault_own(f, &leaf))
		return VMEMU_OOM;
	f->kind = VMEMU_ZERO_FILL;
	do
		if (replace(f, &leaf, NO_PFN))
			return VMEMU_OOM;
	while (goes_on(f, &leaf));
	return VMEMU_ZERO_FILL;
}

int fault_copy(struct fault *f)
{
	struct leaf leaf;

	if (fault_prepare_anon(f) || fault_own(f, &leaf))
		return VMEMU_OOM;
	f->kind = VMEMU_COW_COPY;
	do {
		int merged = (f->facts.frame_flags & FRAME_KSM) != 0;

		fetch_next(f, &leaf);
		if (replace(f, &leaf, pte_pfn(*leaf.pte)))
			return VMEMU_OOM;
		f->vm->events[VMEMU_EV_COW_KSM] += (uint64_t)merged;
	} while (goes_on(f, &leaf));
	return VMEMU_COW_COPY;
}

int fault_copy_from(struct fault *f, pfn_t from)
{
	struct leaf leaf;

	if (fault_prepare_anon(f) || fault_own(f, &leaf) || replace(f, &leaf, from))
		return VMEMU_OOM;
	return VMEMU_COW_COPY;
}

int fault_reuse(struct fault *f)
{
	struct leaf leaf;

	if (fault_own(f, &leaf))
		return VMEMU_OOM;
	f->kind = VMEMU_COW_REUSE;
	do {
		struct frame *fr = frame_of(&f->vm->frames, pte_pfn(*leaf.pte));

		if (__builtin_expect((f->facts.frame_flags & (FRAME_SWAPCACHE | FRAME_EXCLUSIVE)) == FRAME_SWAPCACHE,
				     0))
			swap_leave(&f->vm->frames, pte_pfn(*leaf.pte));
		fr->flags |= FRAME_EXCLUSIVE;
		*leaf.pte = pte_written(*leaf.pte);
		f->vm->events[VMEMU_EV_PGREUSE] += !pte_huge(*leaf.pte); /* do_huge_pmd_wp_page() does not count it */
	} while (goes_on(f, &leaf));
	f->vm->tables.generation++;
	return VMEMU_COW_REUSE;
}
