/* Page faults: the decision. Pure; every `if` that tells one kind of fault from another is here. See fault.h. */
#include "fault.h"

int fault_allowed(uint64_t vm_flags, int access)
{
	if (access == VMEMU_WRITE)
		return (vm_flags & VMEMU_VM_WRITE) != 0;
	if (access == VMEMU_FETCH)
		return (vm_flags & VMEMU_VM_EXEC) != 0;
	/* on x86 whatever may be written or executed may be read */
	return (vm_flags & (VMEMU_VM_READ | VMEMU_VM_WRITE | VMEMU_VM_EXEC)) != 0;
}

int fault_huge_enabled(uint64_t vm_flags, uint32_t options)
{
	if (vm_flags & VMEMU_VM_NOHUGEPAGE || !(options & (VMEMU_OPT_THP_ALWAYS | VMEMU_OPT_THP_MADVISE)))
		return 0;
	return options & VMEMU_OPT_THP_ALWAYS || vm_flags & VMEMU_VM_HUGEPAGE;
}

/* A huge page fits at va: no table yet, and the mapping covers all of it. */
static int huge_fits(const struct fault_facts *f)
{
	uint64_t start = f->va & ~(ENTRY_BYTES(2) - 1);

	return f->table_missing && fault_huge_enabled(f->vma->flags, f->options) && f->vma->start <= start &&
	       start + ENTRY_BYTES(2) <= f->vma->end;
}

/* The page is mapped, the access is a write (do_wp_page(), do_huge_pmd_wp_page()). */
static enum fault_action classify_write_protected(const struct fault_facts *f)
{
	if (f->pte & PTE_W) /* a table on the way was shared, and is not any more */
		return f->frame_flags & FRAME_ANON ? ACT_REUSE : ACT_SPURIOUS;
	if (f->vma->flags & (VMEMU_VM_SHARED | VMEMU_VM_MAYSHARE))
		return ACT_MKWRITE;
	if (f->frame_flags & FRAME_ZERO)
		return pte_huge(f->pte) ? ACT_REPLACE_HUGE_ZERO : ACT_REPLACE_ZERO;
	if (f->frame_flags & FRAME_KSM)
		return ACT_COPY;
	if (f->frame_flags & FRAME_EXCLUSIVE)
		return ACT_REUSE;
	/* found to be ours alone: whoever else had it copied it or went away (wp_can_reuse_anon_folio()) */
	if (f->frame_flags & FRAME_ANON && f->options & VMEMU_OPT_REUSE && f->frame_refs == 1 &&
	    !(f->frame_flags & FRAME_FREEING))
		return ACT_REUSE;
	return pte_huge(f->pte) ? ACT_SPLIT : ACT_COPY;
}

enum fault_action fault_classify(const struct fault_facts *f)
{
	int write = f->access == VMEMU_WRITE;

	if (!f->vma)
		return ACT_NO_MAPPING;
	if (f->va < f->vma->start)
		return f->vma->flags & VMEMU_VM_GROWSDOWN ? ACT_GROW_STACK : ACT_NO_MAPPING;
	if (!fault_allowed(f->vma->flags, f->access))
		return ACT_FORBIDDEN;
	if (f->pte && !pte_mapped(f->pte))
		return f->pte == PTE_GUARD ? ACT_NO_MAPPING : ACT_SWAP_IN;
	if (f->vma->flags & VMEMU_VM_HUGETLB)
		return !pte_mapped(f->pte) ? ACT_FILL_POOL : write && !(f->pte & PTE_W) ? ACT_WRITE_POOL : ACT_SPURIOUS;
	if (pte_mapped(f->pte))
		return write ? classify_write_protected(f) : ACT_SPURIOUS;
	if (!f->vma->object) {
		int fill = write || !(f->options & VMEMU_OPT_ZERO_PAGE);

		if (huge_fits(f))
			return fill ? ACT_FILL_HUGE : ACT_MAP_HUGE_ZERO;
		return fill ? ACT_FILL : ACT_MAP_ZERO;
	}
	if (vma_index_of(f->vma, f->va) >= f->object_pages)
		return ACT_BEYOND_EOF;
	if (!write)
		return ACT_MAP_CACHED;
	return f->vma->flags & VMEMU_VM_SHARED ? ACT_WRITE_CACHED : ACT_COPY_CACHED;
}
