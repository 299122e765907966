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
	space_mark_peak(vm, s, start, end);
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

/* ---- accessed and soft-dirty (clear_refs_write(), clear_refs_pte_range()) ---- */

enum refs { REFS_ALL = 1, REFS_ANON = 2, REFS_MAPPED = 3, REFS_SOFT_DIRTY = 4 };

struct clearing {
	const struct vm *vm;
	pte_t bits;
};

static int clear_entries(void *ctx, pfn_t table, pte_t *e, unsigned int first, unsigned int last, uint64_t va)
{
	const struct clearing *c = ctx;

	(void)table;
	(void)va;
	for (unsigned int i = first; i < last; i++) {
		const struct frame *fr = pte_mapped(e[i]) ? frame_of(&c->vm->frames, pte_pfn(e[i])) : NULL;

		if (pte_swapped(e[i]) && c->bits & PTE_SOFT)
			e[i] &= ~PTE_SWAP_SOFT;
		if (fr && !(fr->flags & FRAME_HUGETLB))
			e[i] &= ~c->bits;
	}
	return 0;
}

int mark_clear_refs(struct vm *vm, struct space *s, int what)
{
	struct clearing ctx = { vm, what == REFS_SOFT_DIRTY ? PTE_SOFT | PTE_W : PTE_A };
	struct vma_pos pos;
	const vma_t *v;
	int rc = table_own_range(&vm->tables, &s->root, 0, UINT64_C(1) << LEVEL_SHIFT(LEVELS + 1), 1);

	if (!rc && what == REFS_SOFT_DIRTY)
		rc = vmas_own(&vm->env, &s->vmas, 0, TASK_SIZE);
	if (rc)
		return rc;
	for (v = vmas_find(&s->vmas, 0, &pos); v; v = vmas_next(&s->vmas, &pos)) {
		if ((what == REFS_ANON && v->object) || (what == REFS_MAPPED && !v->object))
			continue;
		(void)table_visit(&vm->tables, s->root, v->start, v->end, clear_entries, &ctx);
		if (what == REFS_SOFT_DIRTY)
			vmas_set_flags(&vm->env, &s->vmas, v->start, v->flags & ~(uint64_t)VMEMU_VM_SOFTDIRTY);
	}
	vm->tables.generation++;
	return 0;
}
