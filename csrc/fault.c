/* Page faults: the effects, one handler an action. See fault.h; the decision is in classify.c. Source: Linux mm/memory.c. */
#include "fault.h"

#include "faultlog.h"
#include "swap.h"

int fault_prepare_anon(struct fault *f)
{
	if (f->vma.anon)
		return 0;
	f->known = 0;
	return vmas_prepare_anon(&f->vm->env, &f->space->vmas, f->va);
}

int fault_own(struct fault *f, struct leaf *leaf)
{
	struct tables *tables = &f->vm->tables;
	pte_t *e = table_walk_next(tables, f->space->root, f->va, &f->walk);

	if (!e || !f->walk.writable)
		return table_own(tables, &f->space->root, f->va, leaf);
	*leaf = leaf_of(tables, e);
	return 0;
}

pte_t fault_entry(const struct fault *f, pfn_t pfn, int writable)
{
	pte_t e = pte_leaf(pfn, f->vma.flags) | PTE_A;

	if (writable)
		e |= PTE_W | PTE_SOFT;
	return f->access == VMEMU_WRITE ? e | PTE_D : e;
}

static int do_no_mapping(struct fault *f)
{
	(void)f;
	return VMEMU_SEGV_MAPERR;
}

static int do_forbidden(struct fault *f)
{
	(void)f;
	return VMEMU_SEGV_ACCERR;
}

static int do_grow_stack(struct fault *f)
{
	(void)f;
	return -VMEMU_TRAP_STACK;
}

static int do_spurious(struct fault *f)
{
	struct leaf leaf;

	if (f->access == VMEMU_WRITE && fault_own(f, &leaf))
		return VMEMU_OOM;
	return VMEMU_SPURIOUS;
}

static int (*const handlers[NACTIONS])(struct fault *f) = {
	[ACT_NO_MAPPING] = do_no_mapping,
	[ACT_FORBIDDEN] = do_forbidden,
	[ACT_GROW_STACK] = do_grow_stack,
	[ACT_BEYOND_EOF] = fault_beyond_eof,
	[ACT_SPURIOUS] = do_spurious,
	[ACT_MAP_ZERO] = fault_map_zero,
	[ACT_FILL] = fault_fill,
	[ACT_REPLACE_ZERO] = fault_fill,
	[ACT_SWAP_IN] = fault_swap_in,
	[ACT_FILL_POOL] = fault_fill_pool,
	[ACT_WRITE_POOL] = fault_write_pool,
	[ACT_FILL_HUGE] = fault_fill_huge,
	[ACT_MAP_HUGE_ZERO] = fault_map_huge_zero,
	[ACT_REPLACE_HUGE_ZERO] = fault_replace_huge_zero,
	[ACT_SPLIT] = fault_split,
	[ACT_COPY] = fault_copy,
	[ACT_REUSE] = fault_reuse,
	[ACT_MKWRITE] = fault_mkwrite,
	[ACT_MAP_CACHED] = fault_map_cached,
	[ACT_COPY_CACHED] = fault_copy_cached,
	[ACT_WRITE_CACHED] = fault_write_cached,
};

/* References to the frame of an entry that others have, and this one: of a folio, or of a frame that may be in the swap cache. */
static uint32_t owners(const struct frames *frames, pte_t e)
{
	const struct frame *fr = frame_of(frames, pte_pfn(e));

	if (pte_huge(e))
		return folio_of(frames, pte_pfn(e))->refs;
	if (fr->flags & FRAME_LARGE)
		return folio_reusable(frames, pte_pfn(e)) ? 1 : 2;
	return fr->refs - (uint32_t)swap_can_leave(frames, pte_pfn(e));
}

void fault_look(struct fault *f, pte_t e)
{
	const struct frames *frames = &f->vm->frames;
	struct fault_facts *facts = &f->facts;
	const struct frame *fr;

	facts->pte = e;
	if (!pte_mapped(e))
		return;
	fr = frame_of(frames, pte_pfn(e));
	facts->frame_flags = fr->flags;
	facts->frame_refs = fr->refs;
	if (__builtin_expect(fr->flags & (FRAME_LARGE | FRAME_SWAPCACHE), 0))
		facts->frame_refs = owners(frames, e);
}

/* What there is at f->va. -ENOMEM. */
static int find_entry(struct fault *f)
{
	const pte_t *e = table_walk_next(&f->vm->tables, f->space->root, f->va, &f->walk);
	struct leaf leaf;

	f->leaf_missing = f->facts.table_missing = !e;
	/* whether a frame is shared can be told only when the tables that lead to it are not */
	if (e && pte_mapped(*e) && f->access == VMEMU_WRITE && !f->walk.writable &&
	    fault_allowed(f->vma.flags, f->access)) {
		f->facts.pte = *e;
		if (fault_own(f, &leaf))
			return -ENOMEM;
		e = leaf.pte;
	}
	fault_look(f, e ? *e : 0);
	return 0;
}

void fault_begin(struct fault *f, struct vm *vm, struct space *s, struct vmemu_trap *trap)
{
	*f = (struct fault){ .vm = vm, .space = s, .trap = trap, .facts.options = vm->options };
	if (vm->frames.zero == NO_PFN)
		f->facts.options &= ~(uint32_t)VMEMU_OPT_ZERO_PAGE;
	if (s->no_thp)
		f->facts.options &= ~(uint32_t)(VMEMU_OPT_THP_ALWAYS | VMEMU_OPT_THP_MADVISE);
}

/* The mapping at f->va, copied to f->vma, or the first above, or NULL. */
static const vma_t *find_mapping(struct fault *f)
{
	struct vma_pos pos;
	const vma_t *v;

	if (f->known && f->vma.start <= f->va && f->va < f->vma.end)
		return &f->vma;
	f->known = 0;
	v = vmas_find(&f->space->vmas, f->va, &pos);
	if (!v || v->start > f->va)
		return v;
	f->known = 1;
	f->vma = *v;
	f->object = v->object ? object_get(&f->vm->objects, v->object) : NULL;
	return &f->vma;
}

/* So few frames are free that an access has to wait for some, unless nothing came of the last attempt to get them. */
static int must_wait(const struct vm *vm)
{
	const struct reclaim_state *s = &vm->reclaim;

	if (vm->frames.free >= s->low)
		return 0;
	return vm->frames.free < s->floor || vm->events[VMEMU_EV_PGFREE] - s->stalled >= STALL_FREED;
}

/* Pages that a group may be beyond its `high` before it is brought back within one call. */
#define HIGH_BATCH 32u

/* Pages of a run that leave the frames that should be free, and do not lead a group far beyond its `high`: a processor is back in
 * user mode after each. */
static uint64_t within_bounds(const struct vm *vm, const struct space *s, uint64_t npages)
{
	uint64_t room = s->cgroup ? cgroup_high_room(&vm->frames.cgroups, s->cgroup) : UINT64_MAX;

	if (room != UINT64_MAX)
		npages = min_u64(npages, room + HIGH_BATCH);
	return min_u64(npages, vm->frames.free > vm->reclaim.low ? vm->frames.free - vm->reclaim.low : 1);
}

static void count(struct fault *f, int kind, uint64_t n)
{
	f->space->faults[kind] += n;
	f->vm->faults[kind] += n;
}

/* A frame is missing. Returns what is to be done about it: nothing, or a trap. */
static int out_of_frames(const struct fault *f)
{
	uint32_t refused = f->vm->frames.refused;

	f->trap->object = refused == NO_FRAME_LEFT ? 0 : refused;
	if (refused == NO_FRAME_LEFT)
		return f->vm->options & VMEMU_OPT_RELIEVE ? -VMEMU_TRAP_FRAMES : VMEMU_OOM;
	return refused ? -VMEMU_TRAP_CHARGE : VMEMU_OOM;
}

int fault_run(struct fault *f, uint64_t va, int access, uint64_t npages)
{
	int kind, mapped;

	if (__builtin_expect(f->vm->reclaim.low != 0, 0)) {
		uint32_t over = f->vm->frames.cgroups.over;

		if (over || must_wait(f->vm)) {
			f->before = 0;
			f->trap->access = (uint32_t)access;
			f->trap->object = over;
			return -VMEMU_TRAP_RECLAIM;
		}
		npages = within_bounds(f->vm, f->space, npages);
	}
	f->va = f->facts.va = va;
	f->access = f->facts.access = access;
	f->before = 0;
	if (npages > 1 && f->vm->log.ring) /* each page is recorded */
		npages = 1;
	f->facts.vma = find_mapping(f);
	mapped = f->facts.vma == &f->vma;
	if (mapped && f->object) {
		f->index = vma_index_of(&f->vma, va);
		f->facts.object_pages = object_pages(f->object);
	}
	do {
		kind = VMEMU_OOM;
		if (mapped && find_entry(f))
			break;
		f->action = fault_classify(&f->facts);
		f->limit = pte_huge(f->facts.pte) || !mapped ? 1 : TABLE_ENTRIES - pte_index(va, 1);
		f->limit =
			min_u64(npages, min_u64(f->limit, mapped ? (f->vma.end - va + PAGE_MASK) >> PAGE_SHIFT : 1)) -
			1;
		kind = handlers[f->action](f);
	} while (kind == FAULT_AGAIN);
	if (f->before)
		count(f, f->kind, f->before);
	if (kind == VMEMU_OOM)
		kind = out_of_frames(f);
	if (kind >= 0)
		fault_count(f->vm, f->space, va, access, kind, mapped ? f->facts.pte : 0);
	else
		f->trap->access = (uint32_t)access;
	return kind;
}

int fault_resolve(struct vm *vm, struct space *s, uint64_t va, int access, struct vmemu_trap *trap)
{
	struct fault f;

	fault_begin(&f, vm, s, trap);
	return fault_run(&f, va, access, 1);
}
