/* Spaces: what mappings of pool pages have reserved. See space.h. Source: Linux mm/hugetlb.c. */
#include "space.h"

#include "pool.h"

struct reserve {
	struct vm *vm;
	int consumed;
};

static int account_pages(void *ctx, pfn_t table, pte_t *e, unsigned int first, unsigned int last, uint64_t va)
{
	const struct reserve *r = ctx;

	(void)table;
	(void)last;
	(void)va;
	if (pte_huge(e[first]))
		pool_account(&r->vm->frames, pte_pfn(e[first]), r->consumed);
	return 0;
}

void space_reserve_again(struct vm *vm, struct space *s, uint64_t start, uint64_t end, int consumed)
{
	struct reserve r = { vm, consumed };
	struct vma_pos pos;
	const vma_t *v;

	if (!vmas_sums(&s->vmas)->pool[0] && !vmas_sums(&s->vmas)->pool[1])
		return;
	for (v = vmas_find(&s->vmas, start, &pos); v && v->start < end; v = vmas_next(&s->vmas, &pos))
		if (v->flags & VMEMU_VM_POOL_OWNER)
			(void)table_visit(&vm->tables, s->root, max_u64(start, v->start), min_u64(end, v->end),
					  account_pages, &r);
}
