/* Looking without touching. See look.h. */
#include "look.h"

#include "swap.h"

/* ---- mapcounts ---- */

/* Adds each table's paths to what its entries point to. Tables of one level are done before those below them. */
static void pass_level(struct vm *vm, int level)
{
	struct tables *t = &vm->tables;

	for (uint64_t b = 0; b < vm->frames.nblocks; b++) {
		if (!t->blocks[b])
			continue;
		for (uint32_t i = 0; i < BLOCK_FRAMES && b * BLOCK_FRAMES + i < vm->frames.nframes; i++) {
			pfn_t pfn = (pfn_t)(b * BLOCK_FRAMES + i);
			struct table_info *info = &t->blocks[b][i];
			const pte_t *e;

			if (!(vm->frames.of[pfn].flags & FRAME_TABLE) || info->level != (uint32_t)level)
				continue;
			if (level == LEVELS)
				info->paths = vm->frames.of[pfn].refs;
			e = table_entries(t, pfn);
			for (unsigned int k = 0, left = info->used; left; k++) {
				if (!e[k])
					continue;
				left--;
				if (level > 1 && !pte_huge(e[k]))
					table_info(t, pte_pfn(e[k]))->paths += info->paths;
				else if (pte_mapped(e[k]))
					for (uint32_t n = pte_frames(e[k]); n--;)
						vm->mapcounts.of[pte_pfn(e[k]) + n] += info->paths;
			}
		}
	}
}

int look_mapcounts(struct vm *vm)
{
	struct mapcounts *mc = &vm->mapcounts;
	uint64_t used = min_u64(vm->frames.virgin * BLOCK_FRAMES, vm->frames.nframes);

	if (!vm->tables.shared)
		return 0;
	if (mc->valid && mc->generation == vm->tables.generation)
		return 0;
	if (!mc->of) {
		mc->of = host_zalloc(&vm->host, vm->frames.nframes * sizeof(*mc->of));
		if (!mc->of)
			return -ENOMEM;
	}
	memset(mc->of, 0, used * sizeof(*mc->of));
	for (uint64_t b = 0; b < vm->frames.nblocks; b++)
		for (uint32_t i = 0; vm->tables.blocks[b] && i < BLOCK_FRAMES; i++)
			vm->tables.blocks[b][i].paths = 0;
	for (int level = LEVELS; level >= 1; level--)
		pass_level(vm, level);
	mc->valid = 1;
	mc->generation = vm->tables.generation;
	return 0;
}

void look_mapcounts_free(struct vm *vm)
{
	host_free(&vm->host, vm->mapcounts.of, vm->frames.nframes * sizeof(*vm->mapcounts.of));
	vm->mapcounts.of = NULL;
	vm->mapcounts.valid = 0;
}

uint64_t look_mapcount(const struct vm *vm, pfn_t pfn)
{
	const struct frame *fr = frame_of(&vm->frames, pfn);

	if (!(fr->flags & FRAME_USED) || fr->flags & (FRAME_TABLE | FRAME_ZERO))
		return 0;
	if (vm->tables.shared)
		return vm->mapcounts.of[pfn];
	if (fr->flags & FRAME_LARGE)
		return fr->refs + folio_of(&vm->frames, pfn)->entire;
	return fr->refs - (fr->flags & FRAME_OBJECT || frame_swapcached(fr) ? 1u : 0u);
}

void look_sharing(const struct vm *vm, uint64_t *mapped, uint64_t *shared)
{
	uint64_t used = min_u64(vm->frames.virgin * BLOCK_FRAMES, vm->frames.nframes);

	*mapped = *shared = 0;
	for (uint64_t pfn = 0; pfn < used; pfn++) {
		uint64_t n = look_mapcount(vm, (pfn_t)pfn);

		*mapped += n > 0;
		*shared += n > 1;
	}
}

/* Bits of /proc/kpageflags (include/uapi/linux/kernel-page-flags.h). */
enum kpf {
	KPF_REFERENCED = 2,
	KPF_UPTODATE = 3,
	KPF_DIRTY = 4,
	KPF_LRU = 5,
	KPF_RECLAIM = 9,
	KPF_BUDDY = 10,
	KPF_MMAP = 11,
	KPF_ANON = 12,
	KPF_SWAPCACHE = 13,
	KPF_SWAPBACKED = 14,
	KPF_COMPOUND_HEAD = 15,
	KPF_COMPOUND_TAIL = 16,
	KPF_HUGE = 17,
	KPF_KSM = 21,
	KPF_THP = 22,
	KPF_ZERO_PAGE = 24,
	KPF_PGTABLE = 26,
	KPF_RESERVED = 32,
	KPF_ANON_EXCLUSIVE = 34, /* PG_anon_exclusive, which is PG_owner_2 */
};

uint64_t look_frame_flags(const struct vm *vm, pfn_t pfn)
{
	uint32_t f = frame_of(&vm->frames, pfn)->flags;
	uint64_t out = UINT64_C(1) << KPF_UPTODATE | UINT64_C(1) << KPF_LRU;

	if (!(f & FRAME_USED))
		return UINT64_C(1) << KPF_BUDDY;
	if (f & FRAME_TABLE)
		return UINT64_C(1) << KPF_PGTABLE;
	if (f & FRAME_LARGE)
		out |= UINT64_C(1) << (f & FRAME_HUGETLB ? KPF_HUGE : KPF_THP) |
		       UINT64_C(1) << (pfn == folio_first(&vm->frames, pfn) ? KPF_COMPOUND_HEAD : KPF_COMPOUND_TAIL);
	if (f & FRAME_ZERO && !(f & FRAME_LARGE)) /* part of the kernel's image */
		return UINT64_C(1) << KPF_ZERO_PAGE | UINT64_C(1) << KPF_RESERVED;
	if (f & FRAME_ZERO)
		return (out & ~(UINT64_C(1) << KPF_UPTODATE | UINT64_C(1) << KPF_LRU)) | UINT64_C(1) << KPF_ZERO_PAGE;
	if (look_mapcount(vm, pfn))
		out |= UINT64_C(1) << KPF_MMAP;
	if (f & FRAME_HUGETLB && f & FRAME_LARGE) /* the head says for all; no pool page is PG_swapbacked */
		f |= frame_of(&vm->frames, folio_first(&vm->frames, pfn))->flags & FRAME_ANON;
	if (f & FRAME_ANON)
		out |= UINT64_C(1) << KPF_ANON |
		       (f & (FRAME_LAZYFREE | FRAME_HUGETLB) ? 0 : UINT64_C(1) << KPF_SWAPBACKED);
	if (frame_of(&vm->frames, f & FRAME_LARGE ? folio_first(&vm->frames, pfn) : pfn)->flags & FRAME_EXCLUSIVE &&
	    look_mapcount(vm, pfn) == 1) /* a folio shows the flags of its first frame */
		out |= UINT64_C(1) << KPF_ANON_EXCLUSIVE;
	if (f & FRAME_SHMEM)
		out |= UINT64_C(1) << KPF_SWAPBACKED;
	if (f & FRAME_KSM)
		out |= UINT64_C(1) << KPF_KSM | UINT64_C(1) << KPF_REFERENCED;
	if (frame_swapcached(frame_of(&vm->frames, pfn)))
		out |= UINT64_C(1) << KPF_SWAPCACHE;
	else if (f & FRAME_RECLAIM)
		out |= UINT64_C(1) << KPF_RECLAIM;
	if (f & FRAME_DIRTY)
		out |= UINT64_C(1) << KPF_DIRTY;
	return out;
}

uint64_t look_count_frames(const struct vm *vm, uint64_t with, uint64_t without)
{
	uint64_t n = 0, used = min_u64(vm->frames.virgin * BLOCK_FRAMES, vm->frames.nframes);

	for (uint64_t pfn = 0; pfn < used; pfn++)
		n += (look_frame_flags(vm, (pfn_t)pfn) & (with | without)) == with;
	if (with == UINT64_C(1) << KPF_BUDDY)
		n += vm->frames.nframes - used;
	return n;
}

/* ---- one space ---- */

/* Bits of /proc/PID/pagemap (Documentation/admin-guide/mm/pagemap.rst). */
#define PM_SOFT_DIRTY (UINT64_C(1) << 55)
#define PM_EXCLUSIVE (UINT64_C(1) << 56)
#define PM_GUARD (UINT64_C(1) << 58)
#define PM_SWAP (UINT64_C(1) << 62)
#define PM_FILE (UINT64_C(1) << 61)
#define PM_PRESENT (UINT64_C(1) << 63)

struct pagemap_ctx {
	const struct vm *vm;
	uint64_t va;
	uint64_t end;
	uint64_t *out;
};

static uint64_t pagemap_entry(const struct vm *vm, pte_t e, pfn_t pfn)
{
	uint32_t flags = frame_of(&vm->frames, pte_pfn(e))->flags;
	uint64_t bits = PM_PRESENT | pfn;

	if (flags & FRAME_OBJECT || (flags & (FRAME_HUGETLB | FRAME_ANON)) == FRAME_HUGETLB ||
	    (flags & FRAME_ZERO && pte_huge(e))) /* pagemap_pmd_range() asks for PageAnon */
		bits |= PM_FILE;
	if (look_mapcount(vm, pte_pfn(e)) == 1) /* of a huge entry the first page (pagemap_pmd_range()) */
		bits |= PM_EXCLUSIVE;
	if (e & PTE_SOFT && vm->options & VMEMU_OPT_SOFT_DIRTY)
		bits |= PM_SOFT_DIRTY;
	return bits;
}

/* Type 0; the offset is the slot (pte_to_pagemap_entry()). */
static uint64_t pagemap_swapped(const struct vm *vm, pte_t e)
{
	return PM_SWAP | (uint64_t)pte_slot(e) << 5 |
	       (e & PTE_SWAP_SOFT && vm->options & VMEMU_OPT_SOFT_DIRTY ? PM_SOFT_DIRTY : 0);
}

static int pagemap_entries(void *ctx, pfn_t table, pte_t *e, unsigned int first, unsigned int last, uint64_t va)
{
	const struct pagemap_ctx *c = ctx;

	(void)table;
	for (unsigned int i = first; i < last; i++) {
		uint64_t from = max_u64(va, c->va), end = va + leaf_bytes(e[i]);

		if (e[i] == PTE_GUARD) /* a swap entry: its type and offset, which are those of the marker */
			c->out[(va - c->va) >> PAGE_SHIFT] = PM_GUARD | PM_SWAP | 31 | 4 << 5;
		else if (pte_swapped(e[i]))
			c->out[(va - c->va) >> PAGE_SHIFT] = pagemap_swapped(c->vm, e[i]);
		for (; pte_mapped(e[i]) && from < min_u64(end, c->end); from += PAGE_BYTES)
			c->out[(from - c->va) >> PAGE_SHIFT] = pagemap_entry(c->vm, e[i], leaf_pfn(e[i], from));
		va = end;
	}
	return 0;
}

void look_pagemap(const struct vm *vm, const struct space *s, uint64_t va, uint64_t npages, uint64_t *out)
{
	struct pagemap_ctx c = { vm, va & ~PAGE_MASK, (va & ~PAGE_MASK) + npages * PAGE_BYTES, out };

	struct vma_pos pos;
	const vma_t *v = vm->options & VMEMU_OPT_SOFT_DIRTY ? vmas_find(&s->vmas, va, &pos) : NULL;

	memset(out, 0, npages * sizeof(*out));
	(void)table_visit(&vm->tables, s->root, c.va, c.end, pagemap_entries, &c);
	for (; v && v->start < c.end; v = vmas_next(&s->vmas, &pos)) /* all of a new mapping, present or not */
		for (uint64_t at = max_u64(v->start, c.va);
		     v->flags & VMEMU_VM_SOFTDIRTY && at < min_u64(v->end, c.end); at += PAGE_BYTES)
			out[(at - c.va) >> PAGE_SHIFT] |= PM_SOFT_DIRTY;
}

struct usage_ctx {
	const struct vm *vm;
	uint64_t start;
	uint64_t end;
	struct vmemu_usage *out;
};

/* One page of those that an entry maps (smaps_account()). */
static void add_usage(const struct vm *vm, pte_t e, pfn_t pfn, struct vmemu_usage *u)
{
	const struct frame *fr = frame_of(&vm->frames, pfn);
	uint64_t n = look_mapcount(vm, pfn), pss;
	int dirty = e & PTE_D || fr->flags & FRAME_DIRTY;

	VM_ASSERT(n);
	pss = (PAGE_BYTES << 12) / n;
	u->rss += PAGE_BYTES;
	u->pss += pss;
	if (dirty)
		u->pss_dirty += pss;
	*(n > 1	  ? dirty ? &u->shared_dirty : &u->shared_clean
	  : dirty ? &u->private_dirty
		  : &u->private_clean) += PAGE_BYTES;
	if (e & PTE_A || fr->flags & FRAME_KSM) /* mark_page_accessed() */
		u->referenced += PAGE_BYTES;
	if (fr->flags & FRAME_ANON) {
		u->anonymous += PAGE_BYTES;
		u->lazyfree += fr->flags & FRAME_LAZYFREE && !dirty ? PAGE_BYTES : 0;
		u->ksm += fr->flags & FRAME_KSM ? PAGE_BYTES : 0;
		u->pss_anon += pss;
	} else {
		*(fr->flags & FRAME_SHMEM ? &u->pss_shmem : &u->pss_file) += pss;
	}
}

static int usage_entries(void *ctx, pfn_t table, pte_t *e, unsigned int first, unsigned int last, uint64_t va)
{
	const struct usage_ctx *c = ctx;

	(void)table;
	for (unsigned int i = first; i < last; i++) {
		uint64_t from = max_u64(va, c->start), end = min_u64(va + leaf_bytes(e[i]), c->end);

		va += leaf_bytes(e[i]);
		if (pte_swapped(e[i])) { /* smaps_pte_entry(): by the holders of its slot */
			c->out->swap += PAGE_BYTES;
			c->out->swap_pss += (PAGE_BYTES << 12) / c->vm->frames.swap.count[pte_slot(e[i])];
			continue;
		}
		if (!pte_mapped(e[i]) || frame_of(&c->vm->frames, pte_pfn(e[i]))->flags & FRAME_ZERO)
			continue;
		if (frame_of(&c->vm->frames, pte_pfn(e[i]))->flags & FRAME_HUGETLB) {
			*(look_mapcount(c->vm, pte_pfn(e[i])) > 1 ? &c->out->shared_hugetlb
								  : &c->out->private_hugetlb) += end - from;
			continue;
		}
		if (pte_huge(e[i]))
			c->out->anon_huge += end - from;
		for (; from < end; from += PAGE_BYTES)
			add_usage(c->vm, e[i], leaf_pfn(e[i], from), c->out);
	}
	return 0;
}

void look_usage(const struct vm *vm, const struct space *s, uint64_t start, uint64_t end, struct vmemu_usage *out)
{
	struct usage_ctx c = { vm, start, end, out };

	memset(out, 0, sizeof(*out));
	(void)table_visit(&vm->tables, s->root, start, end, usage_entries, &c);
}

int look_translate(const struct vm *vm, const struct space *s, uint64_t va, struct vmemu_translation *out)
{
	int writable = 0;
	const pte_t *e = va < TASK_SIZE ? table_walk(&vm->tables, s->root, va, &writable) : NULL;
	const struct frame *fr;

	if (!e || !pte_mapped(*e))
		return -ENOENT;
	fr = frame_of(&vm->frames, pte_pfn(*e));
	memset(out, 0, sizeof(*out));
	out->pfn = leaf_pfn(*e, va);
	out->level = (uint32_t)pte_level(*e);
	if (*e & PTE_P)
		out->prot = 1u | (*e & PTE_W && writable ? 2u : 0u) | (*e & PTE_NX ? 0u : 4u);
	out->accessed = (*e & PTE_A) != 0;
	out->dirty = (*e & PTE_D) != 0;
	/* while a huge entry maps a folio its first frame speaks for all */
	out->exclusive = fr->flags & FRAME_EXCLUSIVE && writable;
	out->table = (uint32_t)((uint64_t)((const uint8_t *)e - vm->frames.ram) >> PAGE_SHIFT);
	return 0;
}

uint64_t look_peek(const struct vm *vm, const struct space *s, uint64_t va, uint8_t *to, uint64_t length)
{
	uint64_t done = 0, n;

	for (; done < length; done += n) {
		uint64_t at = va + done;
		struct vmemu_translation t;
		struct vma_pos pos;
		const vma_t *v = vmas_find(&s->vmas, at, &pos);
		int writable;
		const pte_t *e = table_walk(&vm->tables, s->root, at, &writable);

		pfn_t pfn = NO_PFN; /* in the swap cache */

		if (e && pte_swapped(*e))
			pfn = swap_find(&vm->frames, pte_slot(*e));
		if (!v || v->start > at || v->object || (e && *e && !pte_mapped(*e) && pfn == NO_PFN))
			break;
		if (!(v->flags & (VMEMU_VM_READ | VMEMU_VM_WRITE | VMEMU_VM_EXEC)))
			break;
		n = min_u64(PAGE_BYTES - (at & PAGE_MASK), length - done);
		if (vm->frames.contents && pfn != NO_PFN)
			memcpy(to + done, frame_bytes(&vm->frames, pfn) + (at & PAGE_MASK), n);
		else if (vm->frames.contents && !look_translate(vm, s, at, &t))
			memcpy(to + done, frame_bytes(&vm->frames, (pfn_t)t.pfn) + (at & PAGE_MASK), n);
		else
			memset(to + done, 0, n);
	}
	return done;
}

int look_mincore(const struct vm *vm, const struct space *s, uint64_t start, uint64_t end, uint8_t *out)
{
	struct vma_pos pos;
	const vma_t *v = vmas_find(&s->vmas, start, &pos);

	for (uint64_t va = start; va < end; v = vmas_next(&s->vmas, &pos)) {
		if (!v || v->start > va)
			return -ENOMEM;
		va = min_u64(v->end, end);
	}
	v = vmas_find(&s->vmas, start, &pos);
	for (uint64_t va = start; va < end; va += PAGE_BYTES) {
		const struct object *obj;
		const pte_t *e;
		int writable;

		while (v->end <= va)
			v = vmas_next(&s->vmas, &pos);
		obj = v->object && !(v->flags & VMEMU_VM_HUGETLB) ? object_get(&vm->objects, v->object) : NULL;
		e = table_walk(&vm->tables, s->root, va, &writable);
		out[(va - start) >> PAGE_SHIFT] =
			(e && pte_mapped(*e)) ||
			(e && pte_swapped(*e) && swap_find(&vm->frames, pte_slot(*e)) != NO_PFN) ||
			(obj && object_lookup(obj, vma_index_of(v, va)) != NO_PFN);
	}
	return 0;
}

void look_space(const struct vm *vm, const struct space *s, struct vmemu_space_info *out)
{
	struct table_sum sum = { { 0 }, 0, 0 };

	table_sum(&vm->tables, s->root, &sum);
	out->sums = *vmas_sums(&s->vmas);
	out->anon = sum.resident[RESIDENT_ANON];
	out->file = sum.resident[RESIDENT_FILE];
	out->shmem = sum.resident[RESIDENT_SHMEM];
	out->hugetlb = sum.resident[RESIDENT_HUGETLB];
	out->swap = sum.resident[RESIDENT_SWAP];
	out->tables = sum.tables;
	out->shared_tables = sum.shared;
	out->peak_rss = max_u64(s->peak_rss, out->anon + out->file + out->shmem);
	out->peak_total = max_u64(s->peak_total, vmas_sums(&s->vmas)->total);
}

void look_size(const struct vm *vm, const struct space *s, struct vmemu_space_size *out)
{
	struct table_sum sum = { { 0 }, 0, 0 };

	table_sum(&vm->tables, s->root, &sum);
	*out = (struct vmemu_space_size){
		.total = vmas_sums(&s->vmas)->total,
		.anon = sum.resident[RESIDENT_ANON],
		.file = sum.resident[RESIDENT_FILE],
		.shmem = sum.resident[RESIDENT_SHMEM],
		.tables = sum.tables ? sum.tables - 1 : 0,
		.swap = sum.resident[RESIDENT_SWAP],
	};
}

void look_machine(const struct vm *vm, struct vmemu_machine_info *out)
{
	const struct frames *f = &vm->frames;

	*out = (struct vmemu_machine_info){
		.nframes = f->nframes,
		.free = f->free,
		.tables = f->tables,
		.anon = f->anon - f->idle,
		.anon_huge = f->huge * BLOCK_FRAMES,
		.file = f->file,
		.shmem = f->shmem,
		.zero = (f->zero != NO_PFN) + (f->huge_zero != NO_PFN ? BLOCK_FRAMES : 0),
		.pooled = f->pools[0].total * BLOCK_FRAMES + f->pools[1].total * BLOCK_FRAMES * TABLE_BLOCKS,
		.copied = f->copied,
		.shared_tables = vm->tables.shared,
		.account = vm->env.account,
		.nspaces = vm->nspaces,
		.nobjects = vm->objects.count,
		.generation = vm->tables.generation,
		.host_bytes = vm->host.bytes,
	};
}
