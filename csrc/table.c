/* Page tables: walks, ownership of paths, unsharing, dropping. See table.h for the picture and the invariants. */
#include "table.h"

int tables_init(struct tables *t, struct frames *frames)
{
	memset(t, 0, sizeof(*t));
	t->frames = frames;
	t->blocks = host_zalloc(frames->host, frames->nblocks * sizeof(*t->blocks));
	return t->blocks ? 0 : -ENOMEM;
}

void tables_destroy(struct tables *t)
{
	if (!t->blocks)
		return;
	for (uint64_t b = 0; b < t->frames->nblocks; b++)
		host_free(t->frames->host, t->blocks[b], BLOCK_FRAMES * sizeof(**t->blocks));
	host_free(t->frames->host, t->blocks, t->frames->nblocks * sizeof(*t->blocks));
	t->blocks = NULL;
}

static int is_shared(const struct tables *t, pfn_t table)
{
	return frame_of(t->frames, table)->refs > 1;
}

static int table_alloc(struct tables *t, int level, pfn_t *table)
{
	struct table_info **side;
	pfn_t pfn;
	int rc = frame_alloc_zeroed(t->frames, FRAME_TABLE, &pfn);

	if (rc)
		return rc;
	side = &t->blocks[pfn / BLOCK_FRAMES];
	if (!*side && !(*side = host_zalloc(t->frames->host, BLOCK_FRAMES * sizeof(**side)))) {
		frame_free(t->frames, pfn);
		return -ENOMEM;
	}
	memset(table_info(t, pfn), 0, sizeof(**side));
	table_info(t, pfn)->level = (uint32_t)level;
	*table = pfn;
	return 0;
}

void table_get(struct tables *t, pfn_t table)
{
	frame_get(t->frames, table);
	t->shared++;
	t->generation++;
}

/* An entry lets go of its frame; what was written through it is the page cache's to keep (folio_mark_dirty() at zap). */
static void release(struct tables *t, pte_t e)
{
	struct frame *fr;

	if (!pte_mapped(e))
		return;
	fr = frame_of(t->frames, pte_pfn(e));
	if (e & PTE_D && fr->flags & FRAME_OBJECT)
		fr->flags |= FRAME_DIRTY;
	frame_put(t->frames, pte_pfn(e));
}

void table_put(struct tables *t, pfn_t table)
{
	struct table_info *info = table_info(t, table);
	pte_t *e = table_entries(t, table);

	t->generation++;
	if (is_shared(t, table)) {
		frame_of(t->frames, table)->refs--;
		t->shared--;
		return;
	}
	for (unsigned int i = 0; info->used; i++) {
		if (!e[i])
			continue;
		if (info->level > 1)
			table_put(t, pte_pfn(e[i]));
		else
			release(t, e[i]);
		info->used--;
	}
	frame_of(t->frames, table)->refs = 0;
	frame_free(t->frames, table);
}

/* A private copy of a shared table, which loses one reference. The frames of a leaf are then shared between the two copies:
 * what holds of frames shared by fork holds of them. */
static int table_unshare(struct tables *t, pfn_t old, pfn_t *copy)
{
	struct table_info *from = table_info(t, old), *to;
	pte_t *oe = table_entries(t, old), *ne;
	pfn_t new;
	int rc = table_alloc(t, (int)from->level, &new);

	if (rc)
		return rc;
	to = table_info(t, new);
	ne = table_entries(t, new);
	for (unsigned int i = 0; to->used < from->used; i++) {
		if (!oe[i])
			continue;
		to->used++;
		if (from->level > 1) {
			oe[i] &= ~PTE_W;
			table_get(t, pte_pfn(oe[i]));
		} else if (pte_mapped(oe[i])) {
			struct frame *fr = frame_of(t->frames, pte_pfn(oe[i]));

			if (fr->flags & FRAME_ANON) {
				oe[i] &= ~PTE_W;
				fr->flags &= (uint16_t)~FRAME_EXCLUSIVE;
			}
			if (!(fr->flags & FRAME_ZERO))
				fr->refs++;
		}
		ne[i] = oe[i];
	}
	memcpy(to->resident, from->resident, sizeof(to->resident));
	frame_of(t->frames, old)->refs--;
	t->shared--;
	t->generation++;
	*copy = new;
	return 0;
}

/* The root as this space's own, made if there is none. */
static int own_root(struct tables *t, pfn_t *root)
{
	if (*root == NO_PFN)
		return table_alloc(t, LEVELS, root);
	return is_shared(t, *root) ? table_unshare(t, *root, root) : 0;
}

/* The table behind entry i of an owned table as its own. Requires the entry not to be 0. */
static int own_child(struct tables *t, pte_t *e)
{
	pfn_t child = pte_pfn(*e);
	int rc;

	if (*e & PTE_W)
		return 0;
	if (is_shared(t, child)) {
		rc = table_unshare(t, child, &child);
		if (rc)
			return rc;
	}
	*e = pte_table(child);
	t->generation++;
	return 0;
}

pte_t *table_walk(const struct tables *t, pfn_t root, uint64_t va, int *writable)
{
	pte_t e, all = PTE_W;
	pfn_t table = root;

	if (root == NO_PFN)
		return NULL;
	if (is_shared(t, root))
		all = 0;
	for (int level = LEVELS; level > 1; level--) {
		e = table_entries(t, table)[pte_index(va, level)];
		if (!e)
			return NULL;
		all &= e;
		table = pte_pfn(e);
	}
	*writable = all != 0;
	return &table_entries(t, table)[pte_index(va, 1)];
}

int table_own(struct tables *t, pfn_t *root, uint64_t va, struct leaf *leaf)
{
	int rc = own_root(t, root);
	pfn_t table = *root, child;

	if (rc)
		return rc;
	for (int level = LEVELS; level > 1; level--) {
		pte_t *e = &table_entries(t, table)[pte_index(va, level)];

		if (!*e) {
			rc = table_alloc(t, level - 1, &child);
			if (rc)
				return rc;
			*e = pte_table(child);
			table_info(t, table)->used++;
			t->generation++;
		} else if ((rc = own_child(t, e)) != 0) {
			return rc;
		}
		table = pte_pfn(*e);
	}
	leaf->table = table;
	leaf->index = pte_index(va, 1);
	leaf->pte = &table_entries(t, table)[leaf->index];
	return 0;
}

/* ---- ranges ---- */

/* The entries of a table at `level` with base address `base` that overlap [start, end). */
static void index_range(uint64_t base, int level, uint64_t start, uint64_t end, unsigned int *first, unsigned int *last)
{
	uint64_t lo = max_u64(start, base), hi = min_u64(end, base + TABLE_BYTES(level));

	*first = (unsigned int)((lo - base) >> LEVEL_SHIFT(level));
	*last = hi > lo ? (unsigned int)((hi - base + ENTRY_BYTES(level) - 1) >> LEVEL_SHIFT(level)) : *first;
}

static int covers(uint64_t va, int level, uint64_t start, uint64_t end)
{
	return start <= va && va + ENTRY_BYTES(level) <= end;
}

/* Something hangs below this table inside [start, end). */
static int occupied(const struct tables *t, pfn_t table, int level, uint64_t base, uint64_t start, uint64_t end)
{
	const pte_t *e = table_entries(t, table);
	unsigned int i, last;

	index_range(base, level, start, end, &i, &last);
	for (; i < last; i++) {
		uint64_t va = base + i * ENTRY_BYTES(level);

		if (e[i] && (level == 1 || covers(va, level, start, end) ||
			     occupied(t, pte_pfn(e[i]), level - 1, va, start, end)))
			return 1;
	}
	return 0;
}

static int own_below(struct tables *t, pfn_t table, int level, uint64_t base, uint64_t start, uint64_t end, int whole)
{
	pte_t *e = table_entries(t, table);
	unsigned int i, last;
	int rc;

	if (level == 1)
		return 0;
	index_range(base, level, start, end, &i, &last);
	for (; i < last; i++) {
		uint64_t va = base + i * ENTRY_BYTES(level);

		if (!e[i] || (!whole && covers(va, level, start, end)) ||
		    !occupied(t, pte_pfn(e[i]), level - 1, va, start, end))
			continue;
		rc = own_child(t, &e[i]);
		if (!rc)
			rc = own_below(t, pte_pfn(e[i]), level - 1, va, start, end, whole);
		if (rc)
			return rc;
	}
	return 0;
}

int table_own_range(struct tables *t, pfn_t *root, uint64_t start, uint64_t end, int whole)
{
	int rc;

	if (!t->shared || *root == NO_PFN || start >= end || !occupied(t, *root, LEVELS, 0, start, end))
		return 0;
	rc = own_root(t, root);
	return rc ? rc : own_below(t, *root, LEVELS, 0, start, end, whole);
}

static enum resident_kind resident_kind(const struct frame *fr)
{
	if (fr->flags & FRAME_ANON)
		return RESIDENT_ANON;
	return fr->flags & FRAME_SHMEM ? RESIDENT_SHMEM : RESIDENT_FILE;
}

/* Counts an entry in (by = 1) or out (by = -1) of its table. */
static void account(struct tables *t, pfn_t table, pte_t e, int by)
{
	struct table_info *info = table_info(t, table);
	const struct frame *fr;

	if (!e)
		return;
	info->used = (uint16_t)(info->used + by);
	if (!pte_mapped(e))
		return;
	fr = frame_of(t->frames, pte_pfn(e));
	if (!(fr->flags & FRAME_ZERO)) {
		uint16_t *n = &info->resident[resident_kind(fr)];

		*n = (uint16_t)(*n + by);
	}
}

void table_exchange(struct tables *t, const struct leaf *leaf, pte_t e)
{
	account(t, leaf->table, *leaf->pte, -1);
	*leaf->pte = e;
	account(t, leaf->table, e, 1);
	t->generation++;
}

void table_set(struct tables *t, const struct leaf *leaf, pte_t e)
{
	pte_t old = *leaf->pte;

	table_exchange(t, leaf, e);
	release(t, old);
}

static void zap(struct tables *t, pfn_t table, int level, uint64_t base, uint64_t start, uint64_t end, int drop)
{
	pte_t *e = table_entries(t, table);
	unsigned int i, last;

	index_range(base, level, start, end, &i, &last);
	for (; i < last; i++) {
		uint64_t va = base + i * ENTRY_BYTES(level);

		if (!e[i] || (e[i] == PTE_GUARD && !drop && level == 1))
			continue;
		if (level == 1) {
			struct leaf leaf = { table, i, &e[i] };

			VM_ASSERT(!is_shared(t, table));
			table_set(t, &leaf, 0);
		} else if (drop && covers(va, level, start, end)) {
			VM_ASSERT(!is_shared(t, table));
			table_put(t, pte_pfn(e[i]));
			e[i] = 0;
			table_info(t, table)->used--;
		} else {
			zap(t, pte_pfn(e[i]), level - 1, va, start, end, drop);
		}
	}
}

void table_zap(struct tables *t, pfn_t *root, uint64_t start, uint64_t end)
{
	if (*root == NO_PFN)
		return;
	zap(t, *root, LEVELS, 0, start, end, 1);
	if (!table_info(t, *root)->used && !is_shared(t, *root)) {
		table_put(t, *root);
		*root = NO_PFN;
	}
}

void table_clear(struct tables *t, pfn_t root, uint64_t start, uint64_t end)
{
	if (root != NO_PFN)
		zap(t, root, LEVELS, 0, start, end, 0);
}

static int visit(const struct tables *t, pfn_t table, int level, uint64_t base, uint64_t start, uint64_t end,
		 table_visit_fn *fn, void *ctx)
{
	pte_t *e = table_entries(t, table);
	unsigned int i, last;
	int rc = 0;

	index_range(base, level, start, end, &i, &last);
	if (level == 1)
		return i < last ? fn(ctx, table, e, i, last, base + i * ENTRY_BYTES(1)) : 0;
	for (; i < last && !rc; i++)
		if (e[i])
			rc = visit(t, pte_pfn(e[i]), level - 1, base + i * ENTRY_BYTES(level), start, end, fn, ctx);
	return rc;
}

int table_visit(const struct tables *t, pfn_t root, uint64_t start, uint64_t end, table_visit_fn *fn, void *ctx)
{
	return root == NO_PFN ? 0 : visit(t, root, LEVELS, 0, start, end, fn, ctx);
}

void table_sum(const struct tables *t, pfn_t table, struct table_sum *sum)
{
	const struct table_info *info;
	const pte_t *e;

	if (table == NO_PFN)
		return;
	info = table_info(t, table);
	sum->tables++;
	sum->shared += (uint64_t)is_shared(t, table);
	if (info->level == 1) {
		for (int k = 0; k < NRESIDENT; k++)
			sum->resident[k] += info->resident[k];
		return;
	}
	e = table_entries(t, table);
	for (unsigned int i = 0, left = info->used; left; i++)
		if (e[i]) {
			left--;
			table_sum(t, pte_pfn(e[i]), sum);
		}
}
