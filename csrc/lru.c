/* Pages that may go. See lru.h. */
#include "lru.h"

void lru_drain(struct vm *vm)
{
	for (uint32_t i = 0; i < vm->lazy.n; i++) {
		struct frame *fr = frame_of(&vm->frames, vm->lazy.of[i]);

		if (!(fr->flags & FRAME_FREEING)) /* freed meanwhile, or in the batch twice */
			continue;
		fr->flags = (uint16_t)((fr->flags & ~FRAME_FREEING) | FRAME_LAZYFREE);
		vm->events[VMEMU_EV_PGLAZYFREE]++;
	}
	vm->lazy.n = 0;
}

/* Calls fn for the leaf tables of the range, which this space then has for itself. */
static int each(struct vm *vm, struct space *s, uint64_t start, uint64_t end, table_visit_fn *fn, void *ctx)
{
	int rc = table_own_range(&vm->tables, &s->root, start, end, 1);

	if (rc)
		return rc;
	(void)table_visit(&vm->tables, s->root, start, end, fn, ctx);
	vm->tables.generation++;
	return 0;
}

/* The frame of an entry in an owned table, NULL if there is none or it is the zero page. */
static struct frame *frame_in(const struct vm *vm, pte_t e)
{
	struct frame *fr = pte_mapped(e) ? frame_of(&vm->frames, pte_pfn(e)) : NULL;

	return fr && !(fr->flags & FRAME_ZERO) ? fr : NULL;
}

/* This entry is the only one to map the frame. */
static int mapped_once(const struct frame *fr)
{
	return fr->refs == (fr->flags & FRAME_OBJECT ? 2u : 1u);
}

/* ---- MADV_FREE (madvise_free_pte_range(), folio_mark_lazyfree()) ---- */

struct freeing {
	struct vm *vm;
	int marked; /* FRAME_MLOCKED says which frames locked mappings hold */
};

static int mark_locked(void *ctx, pfn_t table, pte_t *e, unsigned int first, unsigned int last, uint64_t va)
{
	const struct freeing *f = ctx;

	(void)table;
	(void)va;
	for (unsigned int i = first; i < last; i++) {
		struct frame *fr = frame_in(f->vm, e[i]);

		if (fr && f->marked)
			fr->flags |= FRAME_MLOCKED;
		else if (fr)
			fr->flags &= (uint16_t)~FRAME_MLOCKED;
	}
	return 0;
}

/* Sets or, if they are set, takes away the marks. */
static void flip_marks(struct freeing *f)
{
	struct vm *vm = f->vm;

	f->marked = !f->marked;
	for (uint32_t id = 1; id < vm->capacity; id++) {
		struct space *s = vm->spaces[id];
		struct vma_pos pos;
		const vma_t *v = s && s->vmas.sums.locked ? vmas_find(&s->vmas, 0, &pos) : NULL;

		for (; v; v = vmas_next(&s->vmas, &pos))
			if (v->flags & VMEMU_VM_LOCKED)
				(void)table_visit(&vm->tables, s->root, v->start, v->end, mark_locked, f);
	}
}

/* Another space has the frame in a locked mapping (folio_test_unevictable()); this one has not. */
static int locked_elsewhere(struct freeing *f, const struct frame *fr)
{
	if (mapped_once(fr))
		return 0;
	if (!f->marked)
		flip_marks(f);
	return (fr->flags & FRAME_MLOCKED) != 0;
}

static int free_entries(void *ctx, pfn_t table, pte_t *e, unsigned int first, unsigned int last, uint64_t va)
{
	struct freeing *f = ctx;
	struct vm *vm = f->vm;

	(void)table;
	(void)va;
	for (unsigned int i = first; i < last; i++) {
		struct frame *fr = frame_in(vm, e[i]);

		if (!fr)
			continue;
		if (fr->flags & FRAME_DIRTY) { /* that is everybody's, not for one of them to take back */
			if (!mapped_once(fr))
				continue;
			fr->flags &= (uint16_t)~FRAME_DIRTY;
		}
		e[i] &= ~(PTE_A | PTE_D);
		if (fr->flags & FRAME_LAZYFREE || locked_elsewhere(f, fr))
			continue;
		fr->flags |= FRAME_FREEING;
		vm->lazy.of[vm->lazy.n++] = pte_pfn(e[i]);
		if (vm->lazy.n == LAZY_BATCH)
			lru_drain(vm);
	}
	return 0;
}

int lru_free(struct vm *vm, struct space *s, uint64_t start, uint64_t end)
{
	struct freeing ctx = { vm, 0 };
	struct vma_pos pos;
	int rc;

	if (vmas_find(&s->vmas, start, &pos)->object)
		return -EINVAL;
	lru_drain(vm);
	rc = each(vm, s, start, end, free_entries, &ctx);
	if (ctx.marked)
		flip_marks(&ctx);
	return rc;
}

/* ---- MADV_COLD, MADV_PAGEOUT (madvise_cold_or_pageout_pte_range()) ---- */

static int cold_entries(void *ctx, pfn_t table, pte_t *e, unsigned int first, unsigned int last, uint64_t va)
{
	const struct vm *vm = ctx;

	(void)table;
	(void)va;
	for (unsigned int i = first; i < last; i++) {
		const struct frame *fr = frame_in(vm, e[i]);

		if (fr && mapped_once(fr))
			e[i] &= ~PTE_A;
	}
	return 0;
}

int lru_cold(struct vm *vm, struct space *s, uint64_t start, uint64_t end)
{
	lru_drain(vm);
	return each(vm, s, start, end, cold_entries, vm);
}

struct pageout {
	struct vm *vm;
	const vma_t *vma;
};

/* Without swap a page of anonymous memory goes if nobody wants it any more; one that was written since is wanted
 * (try_to_unmap_one()). */
static void pageout_anon(struct vm *vm, const struct leaf *leaf, struct frame *fr)
{
	if (!(fr->flags & FRAME_LAZYFREE))
		return;
	if (*leaf->pte & PTE_D || fr->flags & FRAME_DIRTY) {
		fr->flags = (uint16_t)((fr->flags & ~FRAME_LAZYFREE) | FRAME_DIRTY);
		return;
	}
	table_set(&vm->tables, leaf, 0);
	vm->events[VMEMU_EV_PGLAZYFREED]++;
}

static int pageout_entries(void *ctx, pfn_t table, pte_t *e, unsigned int first, unsigned int last, uint64_t va)
{
	const struct pageout *p = ctx;
	struct vm *vm = p->vm;

	for (unsigned int i = first; i < last; i++, va += PAGE_BYTES) {
		struct leaf leaf = { table, i, &e[i] };
		struct frame *fr = frame_in(vm, e[i]);
		uint64_t index = vma_index_of(p->vma, va);

		if (!fr || !mapped_once(fr))
			continue;
		if (fr->flags & FRAME_ANON) {
			pageout_anon(vm, &leaf, fr);
			continue;
		}
		table_set(&vm->tables, &leaf, 0); /* what the entry knew of dirt the frame knows now */
		if (!(fr->flags & FRAME_DIRTY))
			object_drop(&vm->objects, object_get(&vm->objects, p->vma->object), index, index + 1);
		else if (fr->flags & FRAME_FILE)
			fr->flags |= FRAME_RECLAIM;
	}
	return 0;
}

int lru_pageout(struct vm *vm, struct space *s, uint64_t start, uint64_t end)
{
	struct vma_pos pos;
	vma_t v = *vmas_find(&s->vmas, start, &pos);
	struct pageout ctx = { vm, &v };

	lru_drain(vm);
	return each(vm, s, start, end, pageout_entries, &ctx);
}
