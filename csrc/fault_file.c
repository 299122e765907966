/* Page faults: the effects on mappings of files and shared memory. See fault.h. Source: Linux mm/memory.c, mm/filemap.c. */
#include "fault.h"

#include "swap.h"

int fault_mkwrite(struct fault *f)
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
int fault_beyond_eof(struct fault *f)
{
	int shared = (f->vma.flags & VMEMU_VM_SHARED) != 0;
	struct leaf upper;

	if (table_own_level(&f->vm->tables, &f->space->root, f->va, 2, &upper))
		return VMEMU_OOM;
	if (f->access != VMEMU_WRITE ? map_around(f) : !shared && fault_prepare_anon(f))
		return VMEMU_OOM;
	return VMEMU_BUS_ADRERR;
}

/* The fault that finds a page in the cache: major if it was read for it, shared memory from the swap device. */
static int found(const struct frame *fr)
{
	if (!(fr->flags & FRAME_MAJOR))
		return VMEMU_FILE_MINOR;
	return fr->flags & FRAME_SHMEM ? VMEMU_SWAP_IN : VMEMU_FILE_MAJOR;
}

/* The page's frame in the cache. Returns the kind of fault it makes, or a trap or OOM. */
static int cached(struct fault *f, pfn_t *pfn)
{
	*pfn = object_find(&f->vm->objects, f->object, f->index);
	if (*pfn != NO_PFN) {
		struct frame *fr = frame_of(&f->vm->frames, *pfn);

		fr->flags &= (uint16_t)~FRAME_RECLAIM;
		return found(fr);
	}
	if (object_slot(f->object, f->index)) {
		int rc = swap_bring(&f->vm->frames, object_slot(f->object, f->index), FRAME_SHMEM | FRAME_MAJOR, NULL,
				    pfn);

		if (rc == -ENOMEM)
			return VMEMU_OOM;
		if (!rc) {
			object_swap_in(&f->vm->objects, f->object, f->index, *pfn);
			return VMEMU_SWAP_IN;
		}
		f->trap->object = f->vma.object;
		f->trap->index = f->index;
		return -VMEMU_TRAP_SWAP;
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
int fault_map_cached(struct fault *f)
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
		return finish(f, pfn, found(frame_of(&f->vm->frames, pfn)));
	}
	kind = cached(f, &pfn);
	if (kind < 0 || kind == VMEMU_OOM)
		return kind;
	if (fault_own(f, &leaf))
		return VMEMU_OOM;
	frame_get(&f->vm->frames, pfn);
	table_set(&f->vm->tables, &leaf, fault_entry(f, pfn, mapped_writable(f)));
	return finish(f, pfn, kind);
}

int fault_copy_cached(struct fault *f)
{
	pfn_t pfn;
	int kind = cached(f, &pfn), rc;

	if (kind < 0 || kind == VMEMU_OOM)
		return kind;
	rc = fault_copy_from(f, pfn);
	if (rc == VMEMU_OOM)
		return rc;
	return finish(f, pfn, kind == VMEMU_FILE_MAJOR || kind == VMEMU_SWAP_IN ? kind : VMEMU_COW_COPY);
}

int fault_write_cached(struct fault *f)
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
	table_set(&f->vm->tables, &leaf, fault_entry(f, pfn, 1));
	return finish(f, pfn, kind);
}
