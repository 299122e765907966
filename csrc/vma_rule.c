/* VMAs: rules about one or two of them: what a mapping counts for, and when neighbours become one. Pure. */
#include "vma.h"

void sums_add(sums_t *s, const vma_t *v, uint64_t by)
{
	uint64_t pages = by * vma_pages(v), f = v->flags;

	s->total += pages;
	if (f & VMEMU_VM_GROWSDOWN)
		s->stack += pages;
	else if ((f & (VMEMU_VM_WRITE | VMEMU_VM_SHARED)) == VMEMU_VM_WRITE)
		s->data += pages;
	else if ((f & (VMEMU_VM_EXEC | VMEMU_VM_WRITE)) == VMEMU_VM_EXEC)
		s->exec += pages;
	if (f & VMEMU_VM_LOCKED)
		s->locked += pages;
	if (f & VMEMU_VM_ACCOUNT)
		s->account += pages;
	if (f & (VMEMU_VM_DONTCOPY | VMEMU_VM_WIPEONFORK | VMEMU_VM_LOCKED | VMEMU_VM_POOL_OWNER))
		s->special += by;
	if (f & VMEMU_VM_POOL_OWNER)
		s->pool[f & VMEMU_VM_GIANT ? 1 : 0] += by * (vma_pages(v) / HUGE_PAGES(f & VMEMU_VM_GIANT));
	s->nvmas += by;
}

int vma_mergeable(const vma_t *l, const vma_t *r)
{
	if (l->flags & VMEMU_VM_HUGETLB) /* VM_SPECIAL mappings do not merge */
		return 0;
	if (l->end != r->start || (l->flags ^ r->flags) & ~VMA_STICKY || l->object != r->object || l->tag != r->tag ||
	    vma_index_of(l, l->end) != r->pgoff)
		return 0;
	if (l->anon == r->anon)
		return 1;
	/* an identity may spread to a neighbour without one, unless it came through fork */
	return (!l->anon && !(r->anon & ANON_FORKED)) || (!r->anon && !(l->anon & ANON_FORKED));
}

int vma_adoptable(const vma_t *l, const vma_t *r)
{
	const uint64_t access = VMEMU_VM_READ | VMEMU_VM_WRITE | VMEMU_VM_EXEC;

	return l->end == r->start && l->object == r->object && l->tag == r->tag &&
	       !((l->flags ^ r->flags) & ~(access | VMA_STICKY)) && vma_index_of(l, l->end) == r->pgoff;
}

uint32_t vma_append_merged(vma_t *list, uint32_t n, const vma_t *v)
{
	if (n && vma_mergeable(&list[n - 1], v)) {
		list[n - 1].end = v->end;
		list[n - 1].flags |= v->flags & VMA_STICKY;
		if (!list[n - 1].anon)
			list[n - 1].anon = v->anon;
		return n;
	}
	list[n] = *v;
	return n + 1;
}
