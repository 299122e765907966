/* Huge pages on request. See huge.h. Source: Linux mm/khugepaged.c. */
#include "huge.h"

/* All that the table holds can be copied. */
static int only_anonymous(const struct vm *vm, const pte_t *e)
{
	for (unsigned int i = 0; i < TABLE_ENTRIES; i++)
		if (e[i] &&
		    (!pte_mapped(e[i]) || !(frame_of(&vm->frames, pte_pfn(e[i]))->flags & (FRAME_ANON | FRAME_ZERO))))
			return 0;
	return 1;
}

static void copy_pages(struct vm *vm, const pte_t *e, pfn_t head)
{
	struct frames *f = &vm->frames;

	for (unsigned int i = 0; f->contents && i < TABLE_ENTRIES; i++)
		if (e[i])
			memcpy(frame_bytes(f, head + i), frame_bytes(f, pte_pfn(e[i])), PAGE_BYTES);
		else
			memset(frame_bytes(f, head + i), 0, PAGE_BYTES);
}

int huge_collapse(struct vm *vm, struct space *s, uint64_t va)
{
	struct vma_pos pos;
	const vma_t *v = vmas_find(&s->vmas, va, &pos);
	struct leaf leaf, parent;
	int writable, rc;
	const pte_t *e = table_walk(&vm->tables, s->root, va, &writable);
	pfn_t head;
	pte_t huge;

	if (!e || !v || v->start > va || v->end < va + ENTRY_BYTES(2) || v->object || !v->anon)
		return -EINVAL;
	if (pte_huge(*e))
		return 0;
	rc = table_own(&vm->tables, &s->root, va, &leaf);
	if (rc)
		return rc;
	if (!only_anonymous(vm, table_entries(&vm->tables, leaf.table)))
		return -EINVAL;
	rc = folio_alloc(&vm->frames, FRAME_ANON, 0, &head);
	if (rc)
		return rc;
	frame_of(&vm->frames, head)->flags |= FRAME_EXCLUSIVE;
	vm->events[VMEMU_EV_THP_COLLAPSE_ALLOC]++;
	copy_pages(vm, table_entries(&vm->tables, leaf.table), head);
	huge = pte_leaf(head, v->flags) | PTE_PS | PTE_A | PTE_D | PTE_SOFT | (v->flags & VMEMU_VM_WRITE ? PTE_W : 0);
	if (table_own_level(&vm->tables, &s->root, va, 2, &parent))
		VM_ASSERT(!"the path is owned");
	table_collapse(&vm->tables, &parent, huge);
	return 0;
}
