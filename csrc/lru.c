/* Pages that may go. See lru.h. */
#include "lru.h"

#include "reclaim.h"
#include "space.h"
#include "swap.h"

/* Sets and takes away flags of a frame, of a folio for all that it consists of. Returns how many frames that are. */
static uint32_t set_flags(struct vm *vm, pfn_t pfn, uint32_t set, uint32_t clear)
{
	uint32_t n = frame_of(&vm->frames, pfn)->flags & FRAME_LARGE ? BLOCK_FRAMES : 1;

	pfn = n > 1 ? folio_head(pfn) : pfn;
	for (uint32_t i = 0; i < n; i++) {
		struct frame *fr = frame_of(&vm->frames, pfn + i);

		fr->flags = (uint16_t)((fr->flags | set) & ~clear);
	}
	return n;
}

void lru_drain(struct vm *vm)
{
	for (uint32_t i = 0; i < vm->lazy.n; i++) {
		struct frame *fr = frame_of(&vm->frames, vm->lazy.of[i]);

		if (!(fr->flags & FRAME_FREEING)) /* freed meanwhile, or in the batch twice */
			continue;
		fr->flags &= (uint16_t)~FRAME_FREEING;
		vm->events[VMEMU_EV_PGLAZYFREE] += set_flags(vm, vm->lazy.of[i], FRAME_LAZYFREE, 0);
	}
	vm->lazy.n = 0;
}

struct splitting {
	struct vm *vm;
	const struct space *space;
	pfn_t head;
};

/* Leaf entries of the folio whose pages hold nothing but zeros (try_to_map_unused_to_zeropage()). */
static int map_zeros(void *ctx, pfn_t table, pte_t *e, unsigned int first, unsigned int last, uint64_t va)
{
	static const uint8_t zeros[PAGE_BYTES];
	const struct splitting *p = ctx;
	struct frames *frames = &p->vm->frames;

	for (unsigned int i = first; i < last; i++, va += PAGE_BYTES) {
		struct leaf leaf = { table, i, &e[i] };
		struct vma_pos pos;
		const vma_t *v;

		if (!pte_mapped(e[i]) || pte_huge(e[i]) || folio_head(pte_pfn(e[i])) != p->head ||
		    memcmp(frame_bytes(frames, pte_pfn(e[i])), zeros, PAGE_BYTES))
			continue;
		v = vmas_find(&p->space->vmas, va, &pos);
		if (!(v->flags & VMEMU_VM_LOCKED))
			table_set(&p->vm->tables, &leaf, (pte_leaf(frames->zero, v->flags) & ~PTE_W) | PTE_A);
	}
	return 0;
}

/* A folio that only this space maps, by leaf entries, is one no more (split_folio()). */
static void split_folio(struct vm *vm, const struct space *s, pfn_t head)
{
	struct splitting p = { vm, s, head };

	folio_dissolve(&vm->frames, head);
	if (vm->frames.contents && vm->frames.zero != NO_PFN)
		(void)table_visit(&vm->tables, s->root, 0, TASK_SIZE, map_zeros, &p);
}

/* A huge page reaches across `at`: made into small ones where nobody else maps it, else it is left alone (split_folio()). */
static int split_edge(struct vm *vm, struct space *s, uint64_t at)
{
	int writable, rc;
	const pte_t *e = at & (ENTRY_BYTES(2) - 1) ? table_walk(&vm->tables, s->root, at, &writable) : NULL;
	pfn_t head = e && pte_huge(*e) ? pte_pfn(*e) : NO_PFN;

	if (head == NO_PFN || !writable || !(frame_of(&vm->frames, head)->flags & FRAME_ANON) ||
	    folio_of(&vm->frames, head)->refs != 1)
		return 0;
	rc = table_split_at(&vm->tables, &s->root, at);
	if (!rc)
		split_folio(vm, s, head);
	return rc;
}

/* Calls fn for the leaf tables of the range, which this space then has for itself, and for the huge entries of it. */
static int each(struct vm *vm, struct space *s, uint64_t start, uint64_t end, table_visit_fn *fn, void *ctx)
{
	const uint64_t huge = ENTRY_BYTES(2) - 1;
	int rc = table_own_range(&vm->tables, &s->root, start & ~huge, (end + huge) & ~huge, 1);

	if (!rc)
		rc = split_edge(vm, s, start);
	if (!rc)
		rc = split_edge(vm, s, end);
	if (rc)
		return rc;
	(void)table_visit(&vm->tables, s->root, start, end, fn, ctx);
	vm->tables.generation++;
	return 0;
}

/* All frames of a folio in order, mapped by a whole table of leaf entries. */
static int whole_folio(const pte_t *e, unsigned int first, unsigned int last)
{
	for (unsigned int i = first; i < last; i++)
		if (!pte_mapped(e[i]) || pte_pfn(e[i]) != folio_head(pte_pfn(e[first])) + i)
			return 0;
	return last - first == TABLE_ENTRIES;
}

/* This entry is the only one to map the frame. */
static int mapped_once(const struct frame *fr)
{
	return fr->refs == (fr->flags & FRAME_OBJECT || frame_swapcached(fr) ? 2u : 1u);
}

/* The frame of entry `i` in an owned table, to which something may be done: NULL if there is none, it is a zero page or one of a
 * folio that others map too, or is mapped here and not wholly inside the range. A folio that is dealt with in parts is one no
 * more. *once: nobody else maps the frame. */
static struct frame *frame_in(struct vm *vm, const struct space *s, const pte_t *e, unsigned int first,
			      unsigned int last, unsigned int i, int *once)
{
	struct frame *fr = pte_mapped(e[i]) ? frame_of(&vm->frames, pte_pfn(e[i])) : NULL;
	struct folio *fo;

	if (!fr || fr->flags & (FRAME_ZERO | FRAME_HUGETLB))
		return NULL;
	if (!(fr->flags & FRAME_LARGE)) {
		*once = mapped_once(fr);
		return fr;
	}
	fo = folio_of(&vm->frames, pte_pfn(e[i]));
	*once = 1;
	if (pte_huge(e[i]))
		return fo->refs == 1 ? fr : NULL;
	if (whole_folio(e, first, last))
		return fo->refs == BLOCK_FRAMES ? fr : NULL;
	if (fo->entire || fo->shared || fo->mixed)
		return NULL;
	split_folio(vm, s, folio_head(pte_pfn(e[i])));
	if (pte_pfn(e[i]) == vm->frames.zero)
		return NULL;
	*once = mapped_once(fr);
	return fr;
}

/* ---- MADV_FREE (madvise_free_pte_range(), folio_mark_lazyfree()) ---- */

struct freeing {
	struct vm *vm;
	const struct space *space;
	int marked; /* FRAME_MLOCKED says which frames locked mappings hold */
};

/* Another space has the frame in a locked mapping (folio_test_unevictable()); this one has not. */
static int locked_elsewhere(struct freeing *f, const struct frame *fr)
{
	if (!f->marked)
		reclaim_mark_locked(f->vm, f->marked = 1);
	return (fr->flags & FRAME_MLOCKED) != 0;
}

static int free_entries(void *ctx, pfn_t table, pte_t *e, unsigned int first, unsigned int last, uint64_t va)
{
	struct freeing *f = ctx;
	struct vm *vm = f->vm;

	(void)va;
	for (unsigned int i = first; i < last; i++) {
		struct leaf leaf = { table, i, &e[i] };
		int once;
		struct frame *fr = frame_in(vm, f->space, e, first, last, i, &once);

		if (pte_swapped(e[i])) /* free_swap_and_cache_nr() */
			table_set(&vm->tables, &leaf, 0);
		if (!fr)
			continue;
		if (frame_swapcached(fr)) { /* folio_free_swap() */
			if (!swap_can_leave(&vm->frames, pte_pfn(e[i])))
				continue;
			swap_leave(&vm->frames, pte_pfn(e[i]));
		}
		if (fr->flags & FRAME_DIRTY) { /* that is everybody's, not for one of them to take back */
			if (!once)
				continue;
			fr->flags &= (uint16_t)~FRAME_DIRTY;
		}
		e[i] &= ~(PTE_A | PTE_D);
		if (fr->flags & FRAME_LAZYFREE || (!once && locked_elsewhere(f, fr)) ||
		    (fr->flags & FRAME_LARGE && pte_pfn(e[i]) != folio_head(pte_pfn(e[i]))))
			continue;
		fr->flags |= FRAME_FREEING;
		vm->lazy.of[vm->lazy.n++] = pte_pfn(e[i]);
		if (vm->lazy.n == LAZY_BATCH || fr->flags & FRAME_LARGE) /* folios do not wait */
			lru_drain(vm);
	}
	return 0;
}

int lru_free(struct vm *vm, struct space *s, uint64_t start, uint64_t end)
{
	struct freeing ctx = { vm, s, 0 };
	struct vma_pos pos;
	int rc;

	if (vmas_find(&s->vmas, start, &pos)->object)
		return -EINVAL;
	lru_drain(vm);
	rc = each(vm, s, start, end, free_entries, &ctx);
	if (ctx.marked)
		reclaim_mark_locked(vm, 0);
	return rc;
}

/* ---- MADV_COLD, MADV_PAGEOUT (madvise_cold_or_pageout_pte_range()) ---- */

struct cooling {
	struct vm *vm;
	const struct space *space;
};

static int cold_entries(void *ctx, pfn_t table, pte_t *e, unsigned int first, unsigned int last, uint64_t va)
{
	const struct cooling *p = ctx;

	(void)table;
	(void)va;
	for (unsigned int i = first; i < last; i++) {
		int once;

		if (frame_in(p->vm, p->space, e, first, last, i, &once) && once)
			e[i] &= ~PTE_A;
	}
	return 0;
}

int lru_cold(struct vm *vm, struct space *s, uint64_t start, uint64_t end)
{
	struct cooling ctx = { vm, s };

	lru_drain(vm);
	return each(vm, s, start, end, cold_entries, &ctx);
}

struct pageout {
	struct vm *vm;
	const struct space *space;
	const vma_t *vma;
	struct reclaim *reclaim; /* NULL: there is no swap */
};

/* Without swap a page of anonymous memory goes if nobody wants it any more; one that was written since is wanted
 * (try_to_unmap_one()), unless its mapping may lose what is written. A folio that stays is cut into pages in the hope that they
 * go one by one. */
static void pageout_anon(const struct pageout *p, const struct leaf *leaf, const struct frame *fr)
{
	struct vm *vm = p->vm;
	pte_t e = *leaf->pte;
	pfn_t pfn = pte_pfn(e);
	int lazy = (fr->flags & FRAME_LAZYFREE) != 0, large = (fr->flags & FRAME_LARGE) != 0;

	if (lazy && (p->vma->flags & VMEMU_VM_DROPPABLE || (!(e & PTE_D) && !(fr->flags & FRAME_DIRTY)))) {
		vm->events[VMEMU_EV_PGLAZYFREED] += pte_frames(e);
		if (pte_huge(e))
			table_drop_huge(&vm->tables, leaf);
		else
			table_set(&vm->tables, leaf, 0);
		return;
	}
	if (lazy)
		(void)set_flags(vm, pfn, FRAME_DIRTY, FRAME_LAZYFREE);
	if (pte_huge(e))
		table_split(&vm->tables, leaf);
	if (large && !lazy)
		split_folio(vm, p->space, folio_head(pfn));
}

static int pageout_entries(void *ctx, pfn_t table, pte_t *e, unsigned int first, unsigned int last, uint64_t va)
{
	const struct pageout *p = ctx;
	struct vm *vm = p->vm;

	for (unsigned int i = first; i < last; i++, va += PAGE_BYTES) {
		struct leaf leaf = { table, i, &e[i] };
		int once;
		struct frame *fr = frame_in(vm, p->space, e, first, last, i, &once);
		uint64_t index = vma_index_of(p->vma, va);

		if (!fr || !once)
			continue;
		if (fr->flags & FRAME_ANON) {
			pageout_anon(p, &leaf, fr);
			continue;
		}
		table_set(&vm->tables, &leaf, 0); /* what the entry knew of dirt the frame knows now */
		if (!(fr->flags & FRAME_DIRTY))
			object_drop(&vm->objects, object_get(&vm->objects, p->vma->object), index, index + 1);
		else if (fr->flags & FRAME_FILE)
			fr->flags |= FRAME_RECLAIM;
		else if (p->reclaim)
			reclaim_add(p->reclaim, object_lookup(object_get(&vm->objects, p->vma->object), index));
	}
	return 0;
}

/* What is left of anonymous memory goes to the swap device; folios that were in the way have been cut. */
static int swap_entries(void *ctx, pfn_t table, pte_t *e, unsigned int first, unsigned int last, uint64_t va)
{
	const struct pageout *p = ctx;

	(void)table;
	(void)va;
	for (unsigned int i = first; i < last; i++) {
		const struct frame *fr = pte_mapped(e[i]) ? frame_of(&p->vm->frames, pte_pfn(e[i])) : NULL;

		if (fr && (fr->flags & (FRAME_ANON | FRAME_LARGE | FRAME_KSM | FRAME_LAZYFREE)) == FRAME_ANON &&
		    mapped_once(fr))
			reclaim_add(p->reclaim, pte_pfn(e[i]));
	}
	return 0;
}

int lru_pageout(struct vm *vm, struct space *s, uint64_t start, uint64_t end)
{
	struct vma_pos pos;
	vma_t v = *vmas_find(&s->vmas, start, &pos);
	struct pageout ctx = { vm, s, &v, NULL };

	space_mark_peak(vm, s, 0, TASK_SIZE); /* a folio that is split gives pages back beyond the range */
	lru_drain(vm);
	reclaim_restore(vm);
	return each(vm, s, start, end, pageout_entries, &ctx);
}

int lru_swap_out(struct vm *vm, struct space *s, uint64_t start, uint64_t end, struct vmemu_victim *out, uint32_t cap,
		 uint32_t *nvictims)
{
	struct vma_pos pos;
	vma_t v = *vmas_find(&s->vmas, start, &pos);
	struct pageout ctx = { vm, s, &v, NULL };
	int rc = reclaim_begin(vm, cap, &ctx.reclaim);

	if (rc)
		return rc;
	space_mark_peak(vm, s, 0, TASK_SIZE);
	lru_drain(vm);
	rc = each(vm, s, start, end, pageout_entries, &ctx);
	if (!rc)
		(void)table_visit(&vm->tables, s->root, start, end, swap_entries, &ctx);
	*nvictims = reclaim_end(ctx.reclaim, out);
	return rc;
}
