/* Page faults: the effects, one handler an action. See fault.h; the decision is in classify.c. Source: Linux mm/memory.c. */
#include "fault.h"

#include "faultlog.h"

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

/* Installs a frame of which the caller has a reference. */
static void install(struct fault *f, const struct leaf *leaf, pfn_t pfn, int writable)
{
	table_set(&f->vm->tables, leaf, fault_entry(f, pfn, writable));
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

int fault_map_zero(struct fault *f)
{
	struct leaf leaf;

	if (fault_own(f, &leaf))
		return VMEMU_OOM;
	install(f, &leaf, f->vm->frames.zero, 0);
	return VMEMU_ZERO_MAP;
}

/* A new anonymous frame in place of whatever the entry holds; from == NO_PFN: zeros, else a copy of that frame. */
static int new_anon(struct fault *f, pfn_t from)
{
	const uint32_t flags = fault_anon_flags(f) | FRAME_EXCLUSIVE;
	struct frames *frames = &f->vm->frames;
	struct leaf leaf;
	pfn_t pfn;

	if (fault_prepare_anon(f) || fault_own(f, &leaf))
		return VMEMU_OOM;
	if (from == NO_PFN ? frame_alloc_zeroed(frames, flags, &pfn) : frame_alloc_copy(frames, flags, from, &pfn))
		return VMEMU_OOM;
	install(f, &leaf, pfn, (f->vma.flags & VMEMU_VM_WRITE) != 0);
	return from == NO_PFN ? VMEMU_ZERO_FILL : VMEMU_COW_COPY;
}

int fault_fill(struct fault *f)
{
	return new_anon(f, NO_PFN);
}

static int do_copy(struct fault *f)
{
	int merged = (frame_of(&f->vm->frames, pte_pfn(f->pte))->flags & FRAME_KSM) != 0;
	int kind = new_anon(f, pte_pfn(f->pte));

	f->vm->events[VMEMU_EV_COW_KSM] += merged && kind == VMEMU_COW_COPY;
	return kind;
}

static int do_reuse(struct fault *f)
{
	struct leaf leaf;

	if (fault_own(f, &leaf))
		return VMEMU_OOM;
	frame_of(&f->vm->frames, pte_pfn(*leaf.pte))->flags |= FRAME_EXCLUSIVE;
	*leaf.pte = pte_written(*leaf.pte);
	f->vm->events[VMEMU_EV_PGREUSE] += !pte_huge(*leaf.pte); /* do_huge_pmd_wp_page() does not count it */
	f->vm->tables.generation++;
	return VMEMU_COW_REUSE;
}

static int do_mkwrite(struct fault *f)
{
	struct leaf leaf;

	if (fault_own(f, &leaf))
		return VMEMU_OOM;
	frame_of(&f->vm->frames, pte_pfn(*leaf.pte))->flags |= FRAME_DIRTY;
	*leaf.pte = pte_written(*leaf.pte);
	f->vm->events[VMEMU_EV_PGREUSE]++;
	f->vm->tables.generation++;
	return VMEMU_FILE_MINOR;
}

/* Shared and writable mappings are mapped writable at once if neither the object nor who watches for soft-dirty pages wants to
 * hear of the first write (vma_wants_writenotify()). */
static int mapped_writable(const struct fault *f)
{
	const uint64_t all = VMEMU_VM_SHARED | VMEMU_VM_WRITE | VMEMU_VM_SOFTDIRTY;

	return (f->vma.flags & all) == all && !(f->object->kind & VMEMU_OBJ_WRITENOTIFY);
}

/* Fault-around (do_fault_around(), filemap_map_pages()): a read fault maps the cached pages of the window around it. The window
 * is aligned by virtual address and cut by the VMA at its start, so it may run past the aligned end; it ends with the VMA, the
 * leaf table and the file. -ENOMEM if a table is needed and there is no frame. */
static int map_around(struct fault *f)
{
	uint64_t window = (uint64_t)f->vm->around << PAGE_SHIFT, lo, hi, eof = object_pages(f->object);
	uint64_t first, index, table_end = (f->va | (TABLE_BYTES(1) - 1)) + 1;
	struct leaf leaf;

	if (f->vm->around <= 1)
		return 0;
	lo = max_u64(f->va / window * window, f->vma.start);
	lo = max_u64(lo, table_end - TABLE_BYTES(1));
	hi = min_u64(min_u64(lo + window, f->vma.end), table_end);
	first = vma_index_of(&f->vma, lo);
	index = object_next(f->object, first);
	if (index >= min_u64(first + ((hi - lo) >> PAGE_SHIFT), eof))
		return 0;
	/* Without a leaf table, a file whose first cached page in the window is its last page maps nothing: only a folio that
	 * ends before EOF may bring the table (can_map_large in filemap_map_pages()). */
	if (f->leaf_missing && !(f->object->kind & VMEMU_OBJ_SHMEM) && index + 1 >= eof)
		return 0;
	if (fault_own(f, &leaf))
		return -ENOMEM;
	for (uint64_t va = lo; va < hi; va += PAGE_BYTES) {
		struct leaf at = leaf;
		pte_t e;
		pfn_t pfn;

		index = vma_index_of(&f->vma, va);
		if (index >= eof)
			break;
		at.index = pte_index(va, 1);
		at.pte = leaf.pte - leaf.index + at.index;
		pfn = object_lookup(f->object, index);
		if (*at.pte || pfn == NO_PFN || frame_of(&f->vm->frames, pfn)->flags & FRAME_RECLAIM)
			continue;
		e = pte_leaf(pfn, f->vma.flags) | PTE_A; /* accessed too: x86 is not arch_wants_old_prefaulted_pte() */
		if (mapped_writable(f))
			e |= PTE_W;
		frame_get(&f->vm->frames, pfn);
		table_set(&f->vm->tables, &at, e);
	}
	return 0;
}

/* Too late: the upper tables are there by now (__handle_mm_fault()), a read has mapped its neighbours, a private write has made
 * the VMA's identity (do_cow_fault()). */
static int do_beyond_eof(struct fault *f)
{
	int shared = (f->vma.flags & VMEMU_VM_SHARED) != 0;
	struct leaf upper;

	if (table_own_level(&f->vm->tables, &f->space->root, f->va, 2, &upper))
		return VMEMU_OOM;
	if (f->access != VMEMU_WRITE ? map_around(f) : !shared && fault_prepare_anon(f))
		return VMEMU_OOM;
	return VMEMU_BUS_ADRERR;
}

/* The page's frame in the cache. Returns the kind of fault it makes, or a trap or OOM. */
static int cached(struct fault *f, pfn_t *pfn)
{
	*pfn = object_lookup(f->object, f->index);
	if (*pfn != NO_PFN) {
		struct frame *fr = frame_of(&f->vm->frames, *pfn);

		fr->flags &= (uint16_t)~FRAME_RECLAIM;
		return fr->flags & FRAME_MAJOR ? VMEMU_FILE_MAJOR : VMEMU_FILE_MINOR;
	}
	if (f->object->kind & VMEMU_OBJ_SHMEM)
		return object_add(&f->vm->objects, f->object, f->index, pfn) ? VMEMU_OOM : VMEMU_SHM_FILL;
	f->trap->object = f->vma.object;
	f->trap->index = f->index;
	return -VMEMU_TRAP_PAGE;
}

/* The fault for which a page was read is over. */
static int finish(struct fault *f, pfn_t pfn, int kind)
{
	frame_of(&f->vm->frames, pfn)->flags &= (uint16_t)~FRAME_MAJOR;
	return kind;
}

/* A page that had to be read comes here twice: the fault is retried after the I/O, neighbours that came with it included
 * (VM_FAULT_RETRY after do_sync_mmap_readahead()). */
static int do_map_cached(struct fault *f)
{
	struct leaf leaf;
	int writable, kind = VMEMU_FILE_MINOR;
	const pte_t *e;
	pfn_t pfn;

	if (map_around(f))
		return VMEMU_OOM;
	e = table_walk(&f->vm->tables, f->space->root, f->va, &writable);
	if (e && *e) {
		pfn = pte_pfn(*e);
		return finish(f, pfn, frame_of(&f->vm->frames, pfn)->flags & FRAME_MAJOR ? VMEMU_FILE_MAJOR : kind);
	}
	kind = cached(f, &pfn);
	if (kind < 0 || kind == VMEMU_OOM)
		return kind;
	if (fault_own(f, &leaf))
		return VMEMU_OOM;
	frame_get(&f->vm->frames, pfn);
	install(f, &leaf, pfn, mapped_writable(f));
	return finish(f, pfn, kind);
}

static int do_copy_cached(struct fault *f)
{
	pfn_t pfn;
	int kind = cached(f, &pfn), rc;

	if (kind < 0 || kind == VMEMU_OOM)
		return kind;
	rc = new_anon(f, pfn);
	if (rc == VMEMU_OOM)
		return rc;
	return finish(f, pfn, kind == VMEMU_FILE_MAJOR ? kind : VMEMU_COW_COPY);
}

static int do_write_cached(struct fault *f)
{
	struct leaf leaf;
	pfn_t pfn;
	int kind = cached(f, &pfn);

	if (kind < 0 || kind == VMEMU_OOM)
		return kind;
	if (fault_own(f, &leaf))
		return VMEMU_OOM;
	frame_of(&f->vm->frames, pfn)->flags |= FRAME_DIRTY;
	frame_get(&f->vm->frames, pfn);
	install(f, &leaf, pfn, 1);
	return finish(f, pfn, kind);
}

static int (*const handlers[NACTIONS])(struct fault *f) = {
	[ACT_NO_MAPPING] = do_no_mapping,
	[ACT_FORBIDDEN] = do_forbidden,
	[ACT_GROW_STACK] = do_grow_stack,
	[ACT_BEYOND_EOF] = do_beyond_eof,
	[ACT_SPURIOUS] = do_spurious,
	[ACT_MAP_ZERO] = fault_map_zero,
	[ACT_FILL] = fault_fill,
	[ACT_REPLACE_ZERO] = fault_fill,
	[ACT_FILL_POOL] = fault_fill_pool,
	[ACT_WRITE_POOL] = fault_write_pool,
	[ACT_FILL_HUGE] = fault_fill_huge,
	[ACT_MAP_HUGE_ZERO] = fault_map_huge_zero,
	[ACT_REPLACE_HUGE_ZERO] = fault_replace_huge_zero,
	[ACT_SPLIT] = fault_split,
	[ACT_COPY] = do_copy,
	[ACT_REUSE] = do_reuse,
	[ACT_MKWRITE] = do_mkwrite,
	[ACT_MAP_CACHED] = do_map_cached,
	[ACT_COPY_CACHED] = do_copy_cached,
	[ACT_WRITE_CACHED] = do_write_cached,
};

/* What there is at f->va. -ENOMEM. */
static int find_facts(struct fault *f, struct fault_facts *facts)
{
	struct vm *vm = f->vm;
	const struct frame *fr;
	const pte_t *e = table_walk_next(&vm->tables, f->space->root, f->va, &f->walk);
	struct leaf leaf;

	f->pte = facts->pte = 0;
	f->leaf_missing = facts->table_missing = !e;
	if (e)
		f->pte = facts->pte = *e;
	if (!e || !pte_mapped(*e))
		return 0;
	/* whether a frame is shared can be told only when the tables that lead to it are not */
	if (f->access == VMEMU_WRITE && !f->walk.writable && fault_allowed(f->vma.flags, f->access)) {
		if (fault_own(f, &leaf))
			return -ENOMEM;
		e = leaf.pte;
	}
	fr = frame_of(&vm->frames, pte_pfn(*e));
	f->pte = facts->pte = *e;
	facts->frame_flags = fr->flags;
	facts->frame_refs = fr->refs;
	if (pte_huge(*e))
		facts->frame_refs = folio_of(&vm->frames, pte_pfn(*e))->refs;
	else if (fr->flags & FRAME_LARGE)
		facts->frame_refs = folio_reusable(&vm->frames, pte_pfn(*e)) ? 1 : 2;
	return 0;
}

void fault_begin(struct fault *f, struct vm *vm, struct space *s, struct vmemu_trap *trap)
{
	*f = (struct fault){ .vm = vm, .space = s, .trap = trap, .options = vm->options };
	if (vm->frames.zero == NO_PFN)
		f->options &= ~(uint32_t)VMEMU_OPT_ZERO_PAGE;
	if (s->no_thp)
		f->options &= ~(uint32_t)(VMEMU_OPT_THP_ALWAYS | VMEMU_OPT_THP_MADVISE);
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

int fault_at(struct fault *f, uint64_t va, int access)
{
	struct fault_facts facts = { .va = va, .access = access, .options = f->options };
	int kind;

	f->va = va;
	f->access = access;
	f->pte = 0;
	facts.vma = find_mapping(f);
	if (f->known && f->object) {
		f->index = vma_index_of(&f->vma, va);
		facts.object_pages = object_pages(f->object);
	}
	do {
		kind = VMEMU_OOM;
		if (facts.vma != &f->vma || !find_facts(f, &facts))
			kind = handlers[fault_classify(&facts)](f);
	} while (kind == FAULT_AGAIN);
	if (kind >= 0)
		fault_count(f->vm, f->space, va, access, kind, f->pte);
	else
		f->trap->access = (uint32_t)access;
	return kind;
}

int fault_resolve(struct vm *vm, struct space *s, uint64_t va, int access, struct vmemu_trap *trap)
{
	struct fault f;

	fault_begin(&f, vm, s, trap);
	return fault_at(&f, va, access);
}
