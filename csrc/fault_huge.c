/* Page faults: the effects on huge pages. See fault.h. Source: Linux mm/huge_memory.c.
 *
 * Where a huge page cannot be had, the fault falls back to a page of 4 KiB.
 */
#include "fault.h"

/* A new huge page under an owned entry that is 0 or the huge zero page. -ENOMEM: nothing changed. */
static int install_huge(struct fault *f, const struct leaf *leaf)
{
	struct frames *frames = &f->vm->frames;
	pfn_t head;
	int rc = folio_alloc(frames, fault_anon_flags(f), 1, &head);

	if (rc)
		return rc;
	frame_of(frames, head)->flags |= FRAME_EXCLUSIVE;
	rc = table_set_huge(&f->vm->tables, leaf, fault_entry(f, head, (f->vma.flags & VMEMU_VM_WRITE) != 0) | PTE_PS);
	if (rc)
		folio_put(frames, head);
	else
		frames->events[VMEMU_EV_THP_FAULT_ALLOC]++;
	return rc;
}

/* do_huge_pmd_anonymous_page() */
int fault_fill_huge(struct fault *f)
{
	struct leaf leaf;

	if (fault_prepare_anon(f))
		return VMEMU_OOM;
	if (!table_own_level(&f->vm->tables, &f->space->root, f->va, 2, &leaf) && !install_huge(f, &leaf))
		return VMEMU_ZERO_FILL;
	f->vm->events[VMEMU_EV_THP_FAULT_FALLBACK]++;
	return fault_fill(f);
}

/* The huge zero page, made when it is first needed (mm_get_huge_zero_folio()). */
static int huge_zero(struct frames *f, pfn_t *head)
{
	if (f->huge_zero == NO_PFN) {
		uint32_t payer = f->payer;
		int rc;

		f->payer = 0; /* it is everybody's */
		rc = frame_alloc_block(f, FRAME_ZERO | FRAME_LARGE, 1, head);
		f->payer = payer;
		if (rc)
			return rc;
		memset(folio_of(f, *head), 0, sizeof(struct folio));
		f->huge_zero = *head;
		f->events[VMEMU_EV_THP_ZERO_PAGE_ALLOC]++;
	}
	*head = f->huge_zero;
	return 0;
}

/* The identity is made for a read too, so a fork copies the entry. */
int fault_map_huge_zero(struct fault *f)
{
	struct frames *frames = &f->vm->frames;
	struct leaf leaf;
	pfn_t head;

	if (fault_prepare_anon(f))
		return VMEMU_OOM;
	if (!table_own_level(&f->vm->tables, &f->space->root, f->va, 2, &leaf) && !huge_zero(frames, &head)) {
		folio_get(frames, head);
		if (!table_set_huge(&f->vm->tables, &leaf, fault_entry(f, head, 0) | PTE_PS))
			return VMEMU_ZERO_MAP;
		folio_put(frames, head);
	}
	f->vm->events[VMEMU_EV_THP_FAULT_FALLBACK]++;
	return fault_map_zero(f);
}

/* do_huge_zero_wp_pmd() */
int fault_replace_huge_zero(struct fault *f)
{
	struct leaf leaf;

	if (fault_prepare_anon(f) || fault_own(f, &leaf))
		return VMEMU_OOM;
	if (!install_huge(f, &leaf))
		return VMEMU_ZERO_FILL;
	f->vm->events[VMEMU_EV_THP_FAULT_FALLBACK]++;
	table_split(&f->vm->tables, &leaf);
	return FAULT_AGAIN;
}

int fault_split(struct fault *f)
{
	struct leaf leaf;

	if (fault_own(f, &leaf))
		return VMEMU_OOM;
	table_split(&f->vm->tables, &leaf);
	return FAULT_AGAIN;
}
