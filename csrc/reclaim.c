/* Reclaim: the passes over tables and objects. See reclaim.h; which frames are picked is in reclaim_pick.c. */
#include "reclaim.h"

#include "space.h"
#include "swap.h"

/* ---- passes ---- */

typedef void table_fn(struct reclaim *r, pfn_t table, struct table_info *info, pte_t *e);

/* Calls fn for each table of a level that is in use; one that is shared is there once. */
static void each_table(struct reclaim *r, int level, table_fn *fn)
{
	struct vm *vm = r->vm;
	struct tables *t = &vm->tables;

	for (uint64_t b = 0; b < vm->frames.nblocks; b++) {
		if (!t->blocks[b])
			continue;
		for (uint32_t i = 0; i < BLOCK_FRAMES && b * BLOCK_FRAMES + i < vm->frames.nframes; i++) {
			pfn_t pfn = (pfn_t)(b * BLOCK_FRAMES + i);
			struct table_info *info = &t->blocks[b][i];

			if (vm->frames.of[pfn].flags & FRAME_TABLE && info->level == level && info->used)
				fn(r, pfn, info, table_entries(t, pfn));
		}
	}
}

/* What the entries say of the frames. */
static void look_at(struct reclaim *r, pfn_t table, struct table_info *info, pte_t *e)
{
	uint8_t *marks = r->vm->reclaim.marks;
	unsigned int left = info->used;

	(void)table;
	for (unsigned int i = 0; left; i++) {
		i = table_next(e, i);
		left--;
		if (pte_mapped(e[i]))
			marks[pte_pfn(e[i])] |=
				(uint8_t)((e[i] & PTE_A ? MARK_YOUNG : 0) | (e[i] & PTE_D ? MARK_DIRTY : 0));
	}
}

/* An entry of a frame that is to go (try_to_unmap_one()). */
static void unmap_entry(struct reclaim *r, pfn_t table, pte_t *e, pfn_t pfn)
{
	struct frames *f = &r->vm->frames;
	struct frame *fr = frame_of(f, pfn);
	pte_t new = 0;

	if (fr->flags & FRAME_ANON && frame_swapcached(fr)) { /* shared memory: its object will have the slot */
		uint32_t slot = f->swap.slot[pfn];

		new = pte_swap(slot, (fr->flags & FRAME_EXCLUSIVE ? PTE_SWAP_EXCLUSIVE : 0) |
					     (*e & PTE_SOFT ? PTE_SWAP_SOFT : 0));
		f->swap.count[slot]++;
	}
	if (*e & PTE_D)
		fr->flags |= FRAME_DIRTY;
	table_account(&r->vm->tables, table, *e, -1);
	*e = new;
	table_account(&r->vm->tables, table, new, 1);
	r->mapped--;
	if (--fr->refs == 0) { /* freed lazily, and not written since */
		frame_free(f, pfn);
		r->vm->events[VMEMU_EV_PGLAZYFREED]++;
		r->vm->reclaim.counts[VMEMU_RC_STEAL_FILE]++;
	}
}

static void unmap_entries(struct reclaim *r, pfn_t table, struct table_info *info, pte_t *e)
{
	const uint8_t *marks = r->vm->reclaim.marks;
	unsigned int left = r->mapped || r->aged ? info->used : 0;

	for (unsigned int i = 0; left; i++) {
		pfn_t pfn;

		i = table_next(e, i);
		left--;
		pfn = pte_pfn(e[i]);
		if (!pte_mapped(e[i]) || !(marks[pfn] & (MARK_AGED | MARK_VICTIM)))
			continue;
		if (marks[pfn] & MARK_VICTIM)
			unmap_entry(r, table, &e[i], pfn);
		else
			e[i] &= ~PTE_A;
	}
}

/* ---- what is locked ---- */

struct locking {
	struct frames *frames;
	int on;
};

static int mark_locked(void *ctx, pfn_t table, pte_t *e, unsigned int first, unsigned int last, uint64_t va)
{
	const struct locking *l = ctx;

	(void)table;
	(void)va;
	for (unsigned int i = first; i < last; i++) {
		struct frame *fr = pte_mapped(e[i]) ? frame_of(l->frames, pte_pfn(e[i])) : NULL;
		uint32_t n = 1;

		if (!fr)
			continue;
		if (fr->flags & FRAME_LARGE) { /* all of it */
			fr = frame_of(l->frames, folio_head(pte_pfn(e[i])));
			n = BLOCK_FRAMES;
		}
		for (; n--; fr++)
			fr->flags = (uint16_t)(l->on ? fr->flags | FRAME_MLOCKED : fr->flags & ~FRAME_MLOCKED);
	}
	return 0;
}

void reclaim_mark_locked(struct vm *vm, int on)
{
	struct locking l = { &vm->frames, on };

	for (uint32_t id = 1; id < vm->capacity; id++) {
		struct space *s = vm->spaces[id];
		struct vma_pos pos;
		const vma_t *v = s && vmas_sums(&s->vmas)->locked ? vmas_find(&s->vmas, 0, &pos) : NULL;

		for (; v; v = vmas_next(&s->vmas, &pos))
			if (v->flags & VMEMU_VM_LOCKED)
				(void)table_visit(&vm->tables, s->root, v->start, v->end, mark_locked, &l);
	}
}

/* ---- huge pages ---- */

/* Marks the folio as one to be cut, if there are not enough of them yet, and cuts this entry of one. */
static void split_entries(struct reclaim *r, pfn_t table, struct table_info *info, pte_t *e)
{
	struct frames *f = &r->vm->frames;
	unsigned int left = info->used;

	for (unsigned int i = 0; left; i++) {
		struct leaf leaf = { table, i, &e[i] };
		pfn_t head = pte_pfn(e[i]);

		if (!e[i])
			continue;
		left--;
		if (!pte_huge(e[i]) ||
		    (frame_of(f, head)->flags & (FRAME_ANON | FRAME_HUGETLB | FRAME_MLOCKED)) != FRAME_ANON)
			continue;
		if (!(r->vm->reclaim.marks[head] & MARK_SPLIT)) {
			if (!r->splits)
				continue;
			r->splits--;
			r->vm->reclaim.marks[head] |= MARK_SPLIT;
		}
		table_split(&r->vm->tables, &leaf);
	}
}

/* Makes ordinary frames of folios that could hold n of them. Returns whether there was one. */
static int split_folios(struct reclaim *r, uint64_t n)
{
	struct frames *f = &r->vm->frames;
	int any = 0;

	r->splits = n / BLOCK_FRAMES + 1;
	if (r->vm->tables.huge)
		each_table(r, 2, split_entries);
	for (uint64_t b = 0; b < f->virgin; b++) {
		pfn_t head = (pfn_t)(b * BLOCK_FRAMES);
		const struct frame *fr = frame_of(f, head);

		if ((fr->flags & (FRAME_ANON | FRAME_LARGE | FRAME_HUGETLB | FRAME_MLOCKED)) !=
			    (FRAME_ANON | FRAME_LARGE) ||
		    folio_of(f, head)->entire || !folio_of(f, head)->refs)
			continue;
		folio_dissolve(f, head);
		any = 1;
	}
	return any;
}

/* ---- the way out ---- */

/* Whether the page is still where it was when it was handed out. */
static int still_there(struct vm *vm, const struct vmemu_victim *v)
{
	struct object *obj = v->object ? object_get(&vm->objects, v->object) : NULL;

	return v->slot ? vm->frames.swap.slot[v->pfn] == v->slot : obj && object_lookup(obj, v->index) == v->pfn;
}

void reclaim_restore(struct vm *vm)
{
	struct reclaim_state *s = &vm->reclaim;

	for (uint32_t i = 0; i < s->npending; i++)
		if (still_there(vm, &s->pending[i]))
			frame_of(&vm->frames, s->pending[i].pfn)->flags |= FRAME_DIRTY;
	s->npending = 0;
}

/* Room for so many victims. */
static int make_pending(struct vm *vm, uint32_t cap)
{
	struct reclaim_state *s = &vm->reclaim;
	struct vmemu_victim *pending;

	reclaim_restore(vm);
	if (cap <= s->cap)
		return 0;
	pending = host_zalloc(&vm->host, cap * sizeof(*pending));
	if (!pending)
		return -ENOMEM;
	host_free(&vm->host, s->pending, s->cap * sizeof(*pending));
	s->pending = pending;
	s->cap = cap;
	return 0;
}

int reclaim_begin(struct vm *vm, uint32_t cap, struct reclaim **out)
{
	struct reclaim_state *s = &vm->reclaim;
	struct reclaim *r;

	if (make_pending(vm, cap))
		return -ENOMEM;
	if (!s->marks && !(s->marks = host_zalloc(&vm->host, vm->frames.nframes)))
		return -ENOMEM;
	r = host_zalloc(&vm->host, sizeof(*r) + cap * sizeof(r->victims[0]));
	if (!r)
		return -ENOMEM;
	r->vm = vm;
	r->cap = cap;
	r->used = min_u64(vm->frames.virgin * BLOCK_FRAMES, vm->frames.nframes);
	r->room = vm->frames.swap.nslots - vm->frames.swap.used;
	s->runs++;
	memset(s->marks, 0, r->used);
	*out = r;
	return 0;
}

void reclaim_add(struct reclaim *r, pfn_t pfn)
{
	struct frames *f = &r->vm->frames;
	struct frame *fr = frame_of(f, pfn);
	uint32_t slot, mapped = fr->refs - (fr->flags & FRAME_OBJECT || frame_swapcached(fr) ? 1 : 0);

	if (r->nvictims == r->cap || r->vm->reclaim.marks[pfn] & MARK_VICTIM)
		return;
	if (fr->flags & (FRAME_ANON | FRAME_SHMEM) && !frame_swapcached(fr) && !reclaim_freed_lazily(r, pfn)) {
		if (!reclaim_room(r, fr))
			return;
		slot = swap_take(f, fr->cgroup);
		if (!slot)
			return;
		fr->flags = (uint16_t)((fr->flags | FRAME_DIRTY) & ~FRAME_LAZYFREE);
		swap_cache(f, slot, pfn);
		r->room--;
	}
	r->aged -= (r->vm->reclaim.marks[pfn] & MARK_AGED) != 0;
	r->vm->reclaim.marks[pfn] |= MARK_VICTIM;
	r->mapped += mapped;
	r->victims[r->nvictims++] = pfn;
}

/* Most pages that were resident so far, of every space: those with one root together. */
static void mark_peaks(struct vm *vm)
{
	struct tables *t = &vm->tables;

	vm->mapcounts.valid = 0; /* paths is scratch of both */
	for (uint32_t id = 1; id < vm->capacity; id++)
		if (vm->spaces[id] && vm->spaces[id]->root != NO_PFN)
			table_info(t, vm->spaces[id]->root)->paths = 0;
	for (uint32_t id = 1; id < vm->capacity; id++) {
		struct space *s = vm->spaces[id];
		struct table_sum sum = { { 0 }, 0, 0 };
		uint32_t *rss;

		if (!s || s->root == NO_PFN || vmas_sums(&s->vmas)->total <= s->peak_rss)
			continue;
		rss = &table_info(t, s->root)->paths;
		if (!*rss) {
			table_sum(t, s->root, &sum);
			*rss = 1 + (uint32_t)min_u64(sum.resident[RESIDENT_ANON] + sum.resident[RESIDENT_FILE] +
							     sum.resident[RESIDENT_SHMEM],
						     UINT32_MAX - 1);
		}
		s->peak_rss = max_u64(s->peak_rss, *rss - UINT64_C(1));
	}
}

/* A dirty page is handed out: clean from now on, unless somebody writes to it meanwhile (clear_page_dirty_for_io()). */
static void hand_out(struct reclaim *r, struct vmemu_victim *out, uint32_t *n, struct vmemu_victim victim)
{
	frame_of(&r->vm->frames, victim.pfn)->flags &= (uint16_t)~FRAME_DIRTY;
	r->vm->reclaim.pending[*n] = out[*n] = victim;
	r->vm->reclaim.npending = ++*n;
}

/* Victims among the pages of one object, which nothing maps any more. */
static void leave_object(struct reclaim *r, uint32_t id, struct vmemu_victim *out, uint32_t *n)
{
	struct frames *f = &r->vm->frames;
	struct object *obj = object_get(&r->vm->objects, id);
	uint64_t left = obj->nframes;

	for (uint64_t i = object_next(obj, 0); left; left--, i = left ? object_next(obj, i + 1) : 0) {
		pfn_t pfn = object_lookup(obj, i);
		struct frame *fr = frame_of(f, pfn);

		if (!(r->vm->reclaim.marks[pfn] & MARK_VICTIM))
			continue;
		if (frame_swapcached(fr)) {
			f->swap.count[f->swap.slot[pfn]]++;
			object_swap_out(obj, i, f->swap.slot[pfn]);
			fr->refs--;
		} else if (!(fr->flags & FRAME_DIRTY) &&
			   !(obj->kind & VMEMU_OBJ_WRITENOTIFY)) { /* else the caller may have it or not */
			object_drop(&r->vm->objects, obj, i, i + 1);
			r->vm->reclaim.counts[VMEMU_RC_STEAL_FILE]++;
		} else {
			hand_out(r, out, n, (struct vmemu_victim){ .index = i, .object = id, .pfn = pfn });
		}
	}
}

uint32_t reclaim_end(struct reclaim *r, struct vmemu_victim *out)
{
	struct vm *vm = r->vm;
	struct frames *f = &vm->frames;
	uint32_t n = 0;

	if (r->nvictims || r->aged) {
		spaces_stale(vm);
		mark_peaks(vm);
		if (r->mapped || r->aged)
			each_table(r, 1, unmap_entries);
		VM_ASSERT(!r->mapped);
		for (uint32_t id = 1; r->nvictims && id < vm->objects.capacity; id++) {
			const struct object *obj = object_get(&vm->objects, id);

			if (obj && obj->nframes && !(obj->kind & VMEMU_OBJ_HUGETLB))
				leave_object(r, id, out, &n);
		}
		vm->tables.generation++;
	}
	for (uint32_t i = 0; i < r->nvictims; i++) {
		pfn_t pfn = r->victims[i];
		struct frame *fr = frame_of(f, pfn);
		uint32_t slot = f->swap.slot ? f->swap.slot[pfn] : 0;

		if (!slot)
			continue;
		fr->flags &= (uint16_t)~FRAME_EXCLUSIVE;
		if (fr->flags & FRAME_DIRTY) {
			hand_out(r, out, &n, (struct vmemu_victim){ .slot = slot, .pfn = pfn });
		} else {
			swap_leave(f, pfn); /* the slot holds the same */
			vm->reclaim.counts[VMEMU_RC_STEAL_ANON]++;
		}
	}
	host_free(&vm->host, r, sizeof(*r) + r->cap * sizeof(r->victims[0]));
	return n;
}

int reclaim_run(struct vm *vm, const struct vmemu_reclaim *what, struct vmemu_victim *out, uint32_t cap,
		uint32_t *nvictims)
{
	uint32_t want = (uint32_t)min_u64(what->npages, cap);
	struct reclaim *r;
	int rc;

	while (vm->frames.idle && folio_reclaim(&vm->frames))
		;
	rc = reclaim_begin(vm, want, &r);
	if (rc)
		return rc;
	r->what = what;
	if (!vm->tables.huge && !reclaim_possible(r)) { /* without a look at who maps what */
		*nvictims = reclaim_end(r, out);
		return 0;
	}
	reclaim_mark_locked(vm, 1);
	each_table(r, 1, look_at);
	reclaim_pick(r, want);
	if (r->nvictims < want && split_folios(r, want - r->nvictims)) {
		each_table(r, 1, look_at);
		reclaim_pick(r, want - r->nvictims);
	}
	reclaim_mark_locked(vm, 0);
	*nvictims = reclaim_end(r, out);
	return 0;
}

uint32_t reclaim_finish(struct vm *vm, const struct vmemu_victim *victims, uint32_t n)
{
	struct frames *f = &vm->frames;
	struct reclaim_state *s = &vm->reclaim;
	uint64_t *counts = s->counts;
	uint32_t freed = 0;

	if (n != s->npending || (n && (victims[0].pfn != s->pending[0].pfn || victims[0].slot != s->pending[0].slot)))
		reclaim_restore(vm); /* those of somebody else, who was interrupted */
	s->npending = 0;
	for (uint32_t i = 0; i < n; i++) {
		const struct vmemu_victim *v = &victims[i];
		struct object *obj = v->object ? object_get(&vm->objects, v->object) : NULL;
		struct frame *fr = frame_of(f, v->pfn);

		if (!still_there(vm, v)) /* gone meanwhile */
			continue;
		if (!v->written) {
			fr->flags |= FRAME_DIRTY;
			continue;
		}
		counts[VMEMU_RC_SWPOUT] += v->slot != 0;
		if (fr->refs > 1 || fr->flags & FRAME_DIRTY) /* wanted again */
			continue;
		if (v->slot)
			swap_leave(f, v->pfn);
		else
			object_drop(&vm->objects, obj, v->index, v->index + 1);
		counts[v->slot ? VMEMU_RC_STEAL_ANON : VMEMU_RC_STEAL_FILE]++;
		freed++;
	}
	return freed;
}
