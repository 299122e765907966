/* Invariants of frames, tables and objects, and of every reference. See check.h; spaces are in check_space.c. */
#include "check.h"

#include <stdarg.h>

int check_broken(const struct check *c, const char *format, ...)
{
	va_list args;

	va_start(args, format);
	(void)vsnprintf(c->msg, c->size, format, args);
	va_end(args);
	return -EUCLEAN;
}

/* ---- frames ---- */

static int check_frames(const struct check *c)
{
	const struct frames *f = &c->vm->frames;
	uint64_t free = 0, anon = 0, file = 0, shmem = 0, tables = 0;

	for (uint64_t b = 0; b < f->virgin; b++) {
		const struct block *blk = &f->blocks[b];
		uint32_t n = (uint32_t)min_u64(BLOCK_FRAMES, f->nframes - b * BLOCK_FRAMES), used = 0, listed = 0;

		for (uint32_t i = 0; i < n; i++) {
			uint32_t flags = f->of[b * BLOCK_FRAMES + i].flags;

			used += flags & FRAME_USED ? 1 : 0;
			anon += (flags & (FRAME_ANON | FRAME_HUGETLB)) == FRAME_ANON ? 1 : 0;
			file += flags & FRAME_FILE ? 1 : 0;
			shmem += flags & FRAME_SHMEM ? 1 : 0;
			tables += flags & FRAME_TABLE ? 1 : 0;
		}
		for (uint32_t i = blk->head; i; i = f->of[b * BLOCK_FRAMES + i - 1].refs) {
			CHECK(i <= n && !(f->of[b * BLOCK_FRAMES + i - 1].flags & FRAME_USED),
			      "block %llu: frame %u is in the free list and in use", (unsigned long long)b, i - 1);
			CHECK(++listed <= n, "block %llu: free list has a loop", (unsigned long long)b);
		}
		CHECK(used == blk->used && used + listed + (n - blk->fresh) == n,
		      "block %llu: %u frames used, counted %u, %u listed free, fresh from %u", (unsigned long long)b,
		      blk->used, used, listed, blk->fresh);
		free += n - used;
	}
	free += f->nframes - min_u64(f->virgin * BLOCK_FRAMES, f->nframes);
	CHECK(f->events[VMEMU_EV_PGALLOC] - f->events[VMEMU_EV_PGFREE] == f->nframes - free,
	      "%llu frames were taken and %llu given back, but %llu are in use",
	      (unsigned long long)f->events[VMEMU_EV_PGALLOC], (unsigned long long)f->events[VMEMU_EV_PGFREE],
	      (unsigned long long)(f->nframes - free));
	CHECK(free == f->free, "%llu frames free, counted %llu", (unsigned long long)f->free, (unsigned long long)free);
	CHECK(anon == f->anon && file == f->file && shmem == f->shmem && tables == f->tables,
	      "frames by kind: anon %llu file %llu shmem %llu tables %llu, counted %llu %llu %llu %llu",
	      (unsigned long long)f->anon, (unsigned long long)f->file, (unsigned long long)f->shmem,
	      (unsigned long long)f->tables, (unsigned long long)anon, (unsigned long long)file,
	      (unsigned long long)shmem, (unsigned long long)tables);
	return 0;
}

/* ---- tables ---- */

static int check_leaf_entry(const struct check *c, pfn_t table, pte_t e, uint32_t *resident)
{
	const struct frames *f = &c->vm->frames;
	const struct frame *fr;
	pfn_t pfn = pte_pfn(e);

	if (e == PTE_GUARD)
		return 0;
	if (pte_swapped(e)) {
		resident[RESIDENT_SWAP]++;
		return check_slot(c, pte_slot(e));
	}
	CHECK(pte_mapped(e), "table %u: entry %#llx holds nothing", table, (unsigned long long)e);
	CHECK(pfn < f->nframes && f->of[pfn].flags & FRAME_USED && !(f->of[pfn].flags & FRAME_TABLE),
	      "table %u: entry %#llx maps a frame that is free or a table", table, (unsigned long long)e);
	fr = &f->of[pfn];
	if (pte_huge(e)) {
		CHECK(fr->flags & FRAME_LARGE && pfn % BLOCK_FRAMES == 0,
		      "table %u: huge entry %#llx does not map a folio", table, (unsigned long long)e);
		c->entire[pfn / BLOCK_FRAMES]++;
	}
	if (fr->flags & FRAME_ZERO) {
		CHECK(!(e & PTE_W), "table %u: the zero page is mapped writable", table);
		CHECK(pte_huge(e) == (pfn == f->huge_zero), "table %u: entry %#llx is not of its zero page's size",
		      table, (unsigned long long)e);
		return 0;
	}
	if (!pte_huge(e))
		c->refs[pfn]++;
	CHECK(!(fr->flags & FRAME_KSM) || (fr->flags & (FRAME_ANON | FRAME_EXCLUSIVE | FRAME_LARGE)) == FRAME_ANON,
	      "frame %u: merged, and not anonymous or exclusive or part of a folio", pfn);
	CHECK(!(fr->flags & FRAME_ANON && e & PTE_W) || fr->flags & FRAME_EXCLUSIVE,
	      "frame %u: anonymous, writable, not exclusive", pfn);
	resident[fr->flags & FRAME_HUGETLB ? RESIDENT_HUGETLB
		 : fr->flags & FRAME_ANON  ? RESIDENT_ANON
		 : fr->flags & FRAME_SHMEM ? RESIDENT_SHMEM
					   : RESIDENT_FILE] += pte_frames(e);
	return 0;
}

/* A table of level 2 has a spare for each huge entry. */
static int check_spares(const struct check *c, pfn_t table, uint32_t huge)
{
	const struct tables *t = &c->vm->tables;
	uint32_t n = 0;

	for (uint32_t next = table_info(t, table)->spare; next; next = table_info(t, next - 1)->spare) {
		CHECK(++n <= huge && table_info(t, next - 1)->level == 1 && !table_info(t, next - 1)->used,
		      "table %u: spare table %u is in use", table, next - 1);
		c->refs[next - 1]++;
	}
	CHECK(n == huge, "table %u: %u huge entries, %u spare tables", table, huge, n);
	return 0;
}

static int check_table(const struct check *c, pfn_t table, uint64_t *huge_entries)
{
	const struct tables *t = &c->vm->tables;
	const struct table_info *info = table_info(t, table);
	const pte_t *e = table_entries(t, table);
	uint32_t used = 0, huge = 0, spares = 0, resident[NRESIDENT] = { 0 };

	CHECK(info->level >= 1 && info->level <= LEVELS, "table %u: level %u", table, info->level);
	for (unsigned int i = 0; i < TABLE_ENTRIES; i++) {
		pfn_t pfn = pte_pfn(e[i]);
		int rc;

		if (!e[i])
			continue;
		used++;
		if (info->level == 1 || pte_huge(e[i])) {
			huge += (uint32_t)pte_huge(e[i]);
			spares += pte_huge(e[i]) && pfn < c->vm->frames.nframes &&
				  !(c->vm->frames.of[pfn].flags & FRAME_HUGETLB);
			rc = check_leaf_entry(c, table, e[i], resident);
			if (rc)
				return rc;
			continue;
		}
		CHECK(pfn < c->vm->frames.nframes && c->vm->frames.of[pfn].flags & FRAME_TABLE &&
			      table_info(t, pfn)->level == info->level - 1,
		      "table %u: entry %u does not point to a table of the next level", table, i);
		CHECK(!(e[i] & PTE_W) || c->vm->frames.of[pfn].refs == 1,
		      "table %u: entry %u leads writable to a shared table", table, i);
		c->refs[pfn]++;
	}
	CHECK(used == info->used, "table %u: %u entries used, counted %u", table, info->used, used);
	for (int k = 0; k < NRESIDENT; k++)
		CHECK(resident[k] == info->resident[k], "table %u: %u resident of kind %d, counted %u", table,
		      info->resident[k], k, resident[k]);
	*huge_entries += huge;
	return info->level == 2 ? check_spares(c, table, spares) : 0;
}

static int check_tables(const struct check *c)
{
	const struct frames *f = &c->vm->frames;
	uint64_t used = min_u64(f->virgin * BLOCK_FRAMES, f->nframes), shared = 0, huge = 0;

	for (uint32_t id = 1; id < c->vm->capacity; id++)
		if (c->vm->spaces[id] && c->vm->spaces[id]->root != NO_PFN)
			c->refs[c->vm->spaces[id]->root]++;
	for (uint64_t pfn = 0; pfn < used; pfn++) {
		int rc;

		if (!(f->of[pfn].flags & FRAME_TABLE))
			continue;
		shared += f->of[pfn].refs - 1;
		rc = check_table(c, (pfn_t)pfn, &huge);
		if (rc)
			return rc;
	}
	CHECK(shared == c->vm->tables.shared, "%llu references to shared tables, counted %llu",
	      (unsigned long long)c->vm->tables.shared, (unsigned long long)shared);
	CHECK(huge == c->vm->tables.huge, "%llu huge entries, counted %llu", (unsigned long long)c->vm->tables.huge,
	      (unsigned long long)huge);
	return 0;
}

/* ---- objects ---- */

static int check_objects(const struct check *c)
{
	const struct objects *o = &c->vm->objects;

	for (uint32_t id = 1; id < o->capacity; id++) {
		const struct object *obj = object_get(o, id);
		uint64_t n = 0, swapped = 0;

		if (!obj)
			continue;
		CHECK(obj->held || c->vm->env.users.of[id].count, "object %u: nobody needs it", id);
		for (uint64_t i = object_next(obj, 0); i != UINT64_MAX; i = object_next(obj, i + 1), n++) {
			pfn_t pfn = object_lookup(obj, i);
			uint32_t kind = obj->kind & VMEMU_OBJ_HUGETLB ? FRAME_HUGETLB
					: obj->kind & VMEMU_OBJ_SHMEM ? FRAME_SHMEM
								      : FRAME_FILE;

			CHECK(i < object_pages(obj), "object %u: page %llu is beyond its end", id,
			      (unsigned long long)i);
			CHECK(frame_of(&c->vm->frames, pfn)->flags & kind, "object %u: frame %u is not of its kind", id,
			      pfn);
			c->refs[pfn]++;
		}
		for (uint64_t i = object_next_any(obj, 0); i != UINT64_MAX; i = object_next_any(obj, i + 1)) {
			int rc = object_slot(obj, i) ? check_slot(c, object_slot(obj, i)) : 0;

			if (rc)
				return rc;
			swapped += object_slot(obj, i) != 0;
			CHECK(i < object_pages(obj), "object %u: page %llu is beyond its end", id,
			      (unsigned long long)i);
		}
		CHECK(swapped == obj->nswapped, "object %u: %llu pages on the swap device, counted %llu", id,
		      (unsigned long long)obj->nswapped, (unsigned long long)swapped);
		CHECK(n == obj->nframes, "object %u: %llu frames, counted %llu", id, (unsigned long long)obj->nframes,
		      (unsigned long long)n);
	}
	return 0;
}

/* Who holds a page of a pool, and that it is in the right place: free, or on somebody's account. */
static int check_pool_page(const struct check *c, pfn_t head, struct pool *found)
{
	const struct folio *fo = folio_of(&c->vm->frames, head);

	CHECK(fo->entire == c->entire[head / BLOCK_FRAMES] && fo->cached == c->refs[head] &&
		      fo->refs == fo->entire + fo->cached,
	      "pool page %u: %u references, %u entries, cached %u; found %u and %u", head, fo->refs, fo->entire,
	      fo->cached, c->entire[head / BLOCK_FRAMES], c->refs[head]);
	CHECK(!(frame_of(&c->vm->frames, head)->flags & FRAME_EXCLUSIVE) || fo->refs == 1,
	      "pool page %u: exclusive with %u references", head, fo->refs);
	found[fo->giant].total++;
	found[fo->giant].free += !fo->refs;
	found[fo->giant].consumed += fo->reserved;
	return 0;
}

static int check_pools(const struct check *c, const struct pool *found)
{
	for (int giant = 0; giant < 2; giant++) {
		const struct pool *p = &c->vm->frames.pools[giant];
		int64_t reserved = (int64_t)(c->vm->env.pool[giant] + p->shared - p->consumed);

		CHECK(p->total == found[giant].total && p->free == found[giant].free &&
			      p->consumed == found[giant].consumed,
		      "pool %d: %llu pages, %llu free, %llu consumed; found %llu, %llu, %llu", giant,
		      (unsigned long long)p->total, (unsigned long long)p->free, (unsigned long long)p->consumed,
		      (unsigned long long)found[giant].total, (unsigned long long)found[giant].free,
		      (unsigned long long)found[giant].consumed);
		CHECK(reserved <= (int64_t)p->free, "pool %d: %llu pages reserved, %llu free", giant,
		      (unsigned long long)reserved, (unsigned long long)p->free);
	}
	return 0;
}

/* Who maps a folio how often, and that only frames mapped once are exclusive. *idle: its frames that nothing maps; *huge: 1 if
 * a huge entry does. */
static int check_folio(const struct check *c, pfn_t head, uint64_t *idle, uint64_t *huge)
{
	const struct frames *f = &c->vm->frames;
	const struct folio *fo = folio_of(f, head);
	uint32_t refs = fo->entire, pages = 0;

	CHECK(fo->entire == c->entire[head / BLOCK_FRAMES], "folio %u: %u huge entries, found %u", head, fo->entire,
	      c->entire[head / BLOCK_FRAMES]);
	for (pfn_t pfn = head; pfn < head + BLOCK_FRAMES; pfn++) {
		const struct frame *fr = frame_of(f, pfn);

		CHECK(fr->flags & FRAME_LARGE, "folio %u: frame %u is not part of it", head, pfn);
		CHECK(fr->refs == c->refs[pfn], "frame %u of a folio: %u references, found %u", pfn, fr->refs,
		      c->refs[pfn]);
		CHECK(!(fr->flags & FRAME_EXCLUSIVE) || (fo->entire ? pfn == head && fo->refs == 1 : fr->refs == 1),
		      "frame %u: exclusive in a folio with %u references", pfn, fo->refs);
		refs += fr->refs;
		pages += fr->refs != 0;
	}
	CHECK(fo->refs == refs && fo->pages == pages && (refs || head == f->huge_zero),
	      "folio %u: %u references to %u pages, counted %u to %u", head, fo->refs, fo->pages, refs, pages);
	CHECK(fo->mixed || fo->owned[0] + fo->owned[1] <= refs, "folio %u: owners have %u and %u of %u references",
	      head, fo->owned[0], fo->owned[1], refs);
	if (head == f->huge_zero)
		return 0;
	*huge += fo->entire != 0;
	if (!fo->entire) {
		CHECK(fo->listed == (pages < BLOCK_FRAMES), "folio %u: not in the list of partly unmapped ones", head);
		*idle += BLOCK_FRAMES - pages;
	}
	return 0;
}

static int check_refs(const struct check *c)
{
	const struct frames *f = &c->vm->frames;
	uint64_t used = min_u64(f->virgin * BLOCK_FRAMES, f->nframes), idle = 0, huge = 0;
	struct pool pools[2] = { { 0 } };

	if (f->zero != NO_PFN)
		c->refs[f->zero]++; /* the boot's */
	for (uint64_t pfn = 0; pfn < used; pfn++) {
		const struct frame *fr = &f->of[pfn];

		if (fr->flags & FRAME_LARGE) {
			int rc = 0;

			if (fr->flags & FRAME_HUGETLB && pfn == folio_first(f, (pfn_t)pfn))
				rc = check_pool_page(c, (pfn_t)pfn, pools);
			else if (!(fr->flags & FRAME_HUGETLB) && pfn % BLOCK_FRAMES == 0)
				rc = check_folio(c, (pfn_t)pfn, &idle, &huge);
			if (rc)
				return rc;
			continue;
		}
		if (!(fr->flags & FRAME_USED))
			continue;
		CHECK(fr->refs == c->refs[pfn], "frame %llu (flags %#x): %u references, found %u",
		      (unsigned long long)pfn, fr->flags, fr->refs, c->refs[pfn]);
		CHECK(!(fr->flags & FRAME_EXCLUSIVE) ||
			      (fr->flags & FRAME_ANON && fr->refs == 1u + (unsigned int)frame_swapcached(fr)),
		      "frame %llu: exclusive with %u references", (unsigned long long)pfn, fr->refs);
	}
	CHECK(idle == f->idle && huge == f->huge, "%llu folios mapped whole, %llu frames unmapped, counted %llu, %llu",
	      (unsigned long long)f->huge, (unsigned long long)f->idle, (unsigned long long)huge,
	      (unsigned long long)idle);
	return check_pools(c, pools);
}

/* What memory cgroups are charged for, summed up from the frames into of[kind][id]. */
static int check_charges(const struct check *c)
{
	const struct frames *f = &c->vm->frames;
	const struct cgroups *g = &f->cgroups;
	uint64_t used = min_u64(f->virgin * BLOCK_FRAMES, f->nframes);
	uint64_t *n = calloc((uint64_t)g->n * VMEMU_NCHARGES + 1, sizeof(*n));
	int rc = n ? 0 : -ENOMEM;

	for (uint64_t pfn = 0; !rc && pfn < used; pfn++) {
		const struct frame *fr = &f->of[pfn];
		enum vmemu_charge kind = fr->flags & FRAME_ANON	   ? VMEMU_CHARGE_ANON
					 : fr->flags & FRAME_TABLE ? VMEMU_CHARGE_TABLES
					 : fr->flags & FRAME_SHMEM ? VMEMU_CHARGE_SHMEM
								   : VMEMU_CHARGE_FILE;

		if (!fr->cgroup)
			continue;
		if (!(fr->flags & FRAME_USED) || !cgroup_get(g, fr->cgroup))
			rc = check_broken(c, "frame %llu (flags %#x) is charged to cgroup %u", (unsigned long long)pfn,
					  fr->flags, fr->cgroup);
		else
			n[fr->cgroup * VMEMU_NCHARGES + kind]++;
	}
	for (uint32_t id = 1; !rc && id < g->n; id++) {
		uint64_t usage = 0;

		for (uint32_t i = 1; cgroup_get(g, id) && i < g->n; i++) {
			uint32_t at = i;

			while (cgroup_get(g, i) && at && at != id)
				at = g->of[at].parent;
			for (int kind = 0; at == id && kind < VMEMU_NCHARGES; kind++)
				usage += n[i * VMEMU_NCHARGES + (uint32_t)kind];
		}
		if (cgroup_get(g, id) && (memcmp(g->of[id].kinds, &n[id * VMEMU_NCHARGES], sizeof(g->of[id].kinds)) ||
					  g->of[id].usage != usage || g->of[id].peak < usage))
			rc = check_broken(c, "cgroup %u: %llu frames charged, counted %llu, or not of these kinds", id,
					  (unsigned long long)g->of[id].usage, (unsigned long long)usage);
	}
	free(n);
	return rc;
}

int check_machine(struct vm *vm, char *msg, size_t size)
{
	struct check c = { .vm = vm, .msg = msg, .size = size };
	int rc = -ENOMEM;

	c.refs = calloc(min_u64(vm->frames.virgin * BLOCK_FRAMES, vm->frames.nframes) + 1, sizeof(*c.refs));
	c.entire = calloc(vm->frames.virgin + 1, sizeof(*c.entire));
	c.slots = calloc(vm->frames.swap.nslots + UINT64_C(1), sizeof(*c.slots));
	if (c.refs && c.entire && c.slots)
		rc = check_frames(&c);
	if (!rc)
		rc = check_tables(&c);
	if (!rc)
		rc = check_objects(&c);
	if (!rc)
		rc = check_swap(&c);
	if (!rc)
		rc = check_refs(&c);
	if (!rc)
		rc = check_spaces(&c);
	if (!rc)
		rc = check_charges(&c);
	free(c.refs);
	free(c.entire);
	free(c.slots);
	return rc;
}
