/* Marks on pages. See mark.h. Source: Linux mm/madvise.c. */
#include "mark.h"

#include "space.h"

/* ---- guards (madvise_guard_install(), madvise_guard_remove()) ---- */

/* Makes every leaf table of the range, the path to it owned. */
static int own_all(struct vm *vm, struct space *s, uint64_t start, uint64_t end)
{
	for (uint64_t va = start; va < end; va = (va | (TABLE_BYTES(1) - 1)) + 1) {
		struct leaf leaf;
		int rc = table_own(&vm->tables, &s->root, va, &leaf);

		if (rc)
			return rc;
	}
	return 0;
}

static int put_guards(void *ctx, pfn_t table, pte_t *e, unsigned int first, unsigned int last, uint64_t va)
{
	struct vm *vm = ctx;

	(void)va;
	for (unsigned int i = first; i < last; i++) {
		struct leaf leaf = { table, i, &e[i] };

		table_set(&vm->tables, &leaf, PTE_GUARD);
	}
	return 0;
}

static int take_guards(void *ctx, pfn_t table, pte_t *e, unsigned int first, unsigned int last, uint64_t va)
{
	struct vm *vm = ctx;

	(void)va;
	for (unsigned int i = first; i < last; i++) {
		struct leaf leaf = { table, i, &e[i] };

		if (e[i] == PTE_GUARD)
			table_set(&vm->tables, &leaf, 0);
	}
	return 0;
}

int mark_guard(struct vm *vm, struct space *s, uint64_t start, uint64_t end)
{
	struct vma_pos pos;
	const vma_t *v;
	int rc = table_split_range(&vm->tables, &s->root, start, end);

	if (!rc)
		rc = own_all(vm, s, start, end);
	if (!rc)
		rc = vmas_own(&vm->env, &s->vmas, start, end);
	v = rc ? NULL : vmas_find(&s->vmas, start, &pos);
	if (v && !v->object && !v->anon) /* page tables of anonymous memory want an identity */
		rc = vmas_prepare_anon(&vm->env, &s->vmas, start);
	if (rc)
		return rc;
	space_mark_peak(vm, s);
	v = vmas_find(&s->vmas, start, &pos);
	vmas_set_flags(&vm->env, &s->vmas, start, v->flags | VMEMU_VM_MAYBE_GUARD);
	return table_visit(&vm->tables, s->root, start, end, put_guards, vm);
}

int mark_unguard(struct vm *vm, struct space *s, uint64_t start, uint64_t end)
{
	struct vma_pos pos;
	int rc;

	if (!(vmas_find(&s->vmas, start, &pos)->flags & VMEMU_VM_MAYBE_GUARD))
		return 0;
	rc = table_own_range(&vm->tables, &s->root, start, end, 1);
	return rc ? rc : table_visit(&vm->tables, s->root, start, end, take_guards, vm);
}
