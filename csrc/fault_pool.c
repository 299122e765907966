/* Page faults: the effects on pages of a pool. See fault.h. Source: Linux mm/hugetlb.c. */
#include "fault.h"
#include "pool.h"

static int is_giant(const struct fault *f)
{
	return (f->vma.flags & VMEMU_VM_GIANT) != 0;
}

uint64_t fault_pool_reserved(const struct vm *vm, int giant)
{
	const struct pool *p = &vm->frames.pools[giant];
	uint64_t promised = vm->env.pool[giant] + p->shared;

	return promised > p->consumed ? promised - p->consumed : 0;
}

/* A page for this mapping: one that was reserved for it, or else one that nobody was promised. */
static int take(struct fault *f, int reserved, pfn_t *head)
{
	const struct pool *p = &f->vm->frames.pools[is_giant(f)];

	if (p->free <= (reserved ? 0 : fault_pool_reserved(f->vm, is_giant(f))))
		return -ENOMEM;
	*head = pool_take(&f->vm->frames, is_giant(f));
	return 0;
}

static int own_entry(struct fault *f, struct leaf *leaf)
{
	int rc = table_own_level(&f->vm->tables, &f->space->root, f->va, is_giant(f) ? 3 : 2, leaf);

	if (!rc)
		table_drop_empty(&f->vm->tables, leaf); /* left behind by a move that had no memory to free it */
	return rc;
}

static void install(struct fault *f, const struct leaf *leaf, pfn_t head, int writable)
{
	pte_t e = fault_entry(f, head, writable) | PTE_PS | (is_giant(f) ? PTE_GIANT : 0);

	folio_get(&f->vm->frames, head);
	if (table_set_huge(&f->vm->tables, leaf, e))
		VM_ASSERT(!"pages of a pool have no spare tables");
}

/* A private page, anonymous from now on; reserved: on account of the mapping's own reservation. */
static void install_private(struct fault *f, const struct leaf *leaf, pfn_t head, int reserved)
{
	int write = f->access == VMEMU_WRITE;

	frame_of(&f->vm->frames, head)->flags |= FRAME_ANON | (write ? FRAME_EXCLUSIVE : 0);
	pool_account(&f->vm->frames, head, reserved);
	install(f, leaf, head, write);
}

static int fill_shared(struct fault *f, const struct leaf *leaf)
{
	uint64_t index = f->index & ~(uint64_t)(HUGE_PAGES(is_giant(f)) - 1);
	pfn_t head = object_lookup(f->object, index);
	int kind = VMEMU_FILE_MINOR;

	if (head == NO_PFN) {
		if (take(f, (f->object->kind & VMEMU_OBJ_RESERVE) != 0, &head))
			return VMEMU_BUS_ADRERR;
		if (object_add_huge(&f->vm->objects, f->object, index, head)) {
			pool_give(&f->vm->frames, head);
			return VMEMU_OOM;
		}
		kind = VMEMU_SHM_FILL;
	}
	install(f, leaf, head, (f->vma.flags & VMEMU_VM_WRITE) != 0);
	return kind;
}

/* hugetlb_no_page(). A private page is mapped writable by a write only. */
int fault_fill_pool(struct fault *f)
{
	int owner = (f->vma.flags & VMEMU_VM_POOL_OWNER) != 0;
	struct leaf leaf;
	pfn_t head;

	if (f->vma.flags & VMEMU_VM_POOL_UNMAPPED) /* its contents went to the owner */
		return VMEMU_BUS_ADRERR;
	if (f->vma.flags & VMEMU_VM_SHARED)
		return own_entry(f, &leaf) ? VMEMU_OOM : fill_shared(f, &leaf);
	if (fault_prepare_anon(f) || own_entry(f, &leaf))
		return VMEMU_OOM;
	if (take(f, owner, &head))
		return VMEMU_BUS_ADRERR;
	install_private(f, &leaf, head, owner);
	return VMEMU_ZERO_FILL;
}

/* ---- copy-on-write ---- */

struct robbery {
	struct vm *vm;
	pfn_t head;
	uint32_t taken;
};

static int take_away(void *ctx, pfn_t table, pte_t *e, unsigned int first, unsigned int last, uint64_t va)
{
	struct robbery *r = ctx;
	struct leaf leaf = { table, first, &e[first] };

	(void)last;
	(void)va;
	if (pte_huge(e[first]) && pte_pfn(e[first]) == r->head) {
		table_drop_huge(&r->vm->tables, &leaf);
		r->taken++;
	}
	return 0;
}

/* The owner of the reservation writes and no page is free: those that it forked lose theirs (unmap_ref_private()). -ENOMEM. */
static int rob_others(struct fault *f, pfn_t head)
{
	struct vm *vm = f->vm;

	for (uint32_t id = 1; id < vm->capacity; id++) {
		struct space *s = vm->spaces[id];
		struct vma_pos pos;
		const vma_t *v;
		uint64_t at = 0;

		if (!s || s == f->space)
			continue;
		for (; (v = vmas_find(&s->vmas, at, &pos)) != NULL; at = v->end) {
			struct robbery r = { vm, head, 0 };

			if (v->object != f->vma.object || v->flags & VMEMU_VM_POOL_OWNER)
				continue;
			if (vmas_own(&vm->env, &s->vmas, v->start, v->end) ||
			    table_own_range(&vm->tables, &s->root, v->start, v->end, 1))
				return -ENOMEM;
			v = vmas_find(&s->vmas, at, &pos);
			(void)table_visit(&vm->tables, s->root, v->start, v->end, take_away, &r);
			if (r.taken)
				vmas_set_flags(&vm->env, &s->vmas, v->start, v->flags | VMEMU_VM_POOL_UNMAPPED);
			v = vmas_find(&s->vmas, at, &pos);
		}
	}
	return 0;
}

static int reuse(struct fault *f, const struct leaf *leaf, int kind)
{
	if (kind == VMEMU_COW_REUSE)
		frame_of(&f->vm->frames, pte_pfn(*leaf->pte))->flags |= FRAME_EXCLUSIVE;
	*leaf->pte = pte_written(*leaf->pte);
	f->vm->tables.generation++;
	return kind;
}

/* hugetlb_wp() */
int fault_write_pool(struct fault *f)
{
	int owner = (f->vma.flags & VMEMU_VM_POOL_OWNER) != 0;
	struct leaf leaf;
	pfn_t head, old;

	if (own_entry(f, &leaf))
		return VMEMU_OOM;
	if (f->vma.flags & VMEMU_VM_SHARED)
		return reuse(f, &leaf, VMEMU_FILE_MINOR);
	old = pte_pfn(*leaf.pte);
	if (folio_of(&f->vm->frames, old)->refs == 1)
		return reuse(f, &leaf, VMEMU_COW_REUSE);
	if (take(f, 0, &head)) {
		if (!owner)
			return VMEMU_BUS_ADRERR;
		if (rob_others(f, old) || own_entry(f, &leaf))
			return VMEMU_OOM;
		VM_ASSERT(folio_of(&f->vm->frames, old)->refs == 1);
		return reuse(f, &leaf, VMEMU_COW_REUSE);
	}
	if (f->vm->frames.contents)
		memcpy(frame_bytes(&f->vm->frames, head), frame_bytes(&f->vm->frames, old),
		       (uint64_t)pte_frames(*leaf.pte) << PAGE_SHIFT);
	f->vm->frames.copied += pte_frames(*leaf.pte);
	if (owner)
		pool_account(&f->vm->frames, old, 0);
	install_private(f, &leaf, head, owner);
	return VMEMU_COW_COPY;
}
