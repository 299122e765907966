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

/* The page is mapped, the access is a write (do_wp_page()). */
static enum fault_action classify_write_protected(const struct fault_facts *f)
{
	if (f->pte & PTE_W) /* a table on the way was shared, and is not any more */
		return f->frame_flags & FRAME_ANON ? ACT_REUSE : ACT_SPURIOUS;
	if (f->vma->flags & (VMEMU_VM_SHARED | VMEMU_VM_MAYSHARE))
		return ACT_MKWRITE;
	if (f->frame_flags & FRAME_ZERO)
		return ACT_REPLACE_ZERO;
	if (!(f->frame_flags & FRAME_ANON) || !(f->options & VMEMU_OPT_REUSE))
		return f->frame_flags & FRAME_EXCLUSIVE ? ACT_REUSE : ACT_COPY;
	/* known to be ours alone, or found to be: whoever else had it copied it or went away (wp_can_reuse_anon_folio()) */
	return f->frame_flags & FRAME_EXCLUSIVE || f->frame_refs == 1 ? ACT_REUSE : ACT_COPY;
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
	if (f->pte == PTE_GUARD)
		return ACT_NO_MAPPING;
	if (pte_mapped(f->pte))
		return write ? classify_write_protected(f) : ACT_SPURIOUS;
	if (!f->vma->object)
		return write || !(f->options & VMEMU_OPT_ZERO_PAGE) ? ACT_FILL : ACT_MAP_ZERO;
	if (vma_index_of(f->vma, f->va) >= f->object_pages)
		return ACT_BEYOND_EOF;
	if (!write)
		return ACT_MAP_CACHED;
	return f->vma->flags & VMEMU_VM_SHARED ? ACT_WRITE_CACHED : ACT_COPY_CACHED;
}
