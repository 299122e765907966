/* Page tables: walks, ownership of paths, unsharing, dropping. See table.h for the picture and the invariants; ranges are in
 * table_range.c, huge entries in table_huge.c. */
#include "table.h"

#include "swap.h"

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

int table_new(struct tables *t, int level, pfn_t *table)
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
	t->structure++;
	table_info(t, pfn)->level = (uint16_t)level;
	*table = pfn;
	return 0;
}

void table_get(struct tables *t, pfn_t table)
{
	frame_get(t->frames, table);
	t->shared++;
	t->generation++;
	t->structure++;
}

/* The same of an entry that has no frame: it may have a slot of the swap device. */
static __attribute__((noinline, cold)) void release_unmapped(struct tables *t, pte_t e)
{
	if (pte_swapped(e))
		swap_put(t->frames, pte_slot(e));
}

static __attribute__((noinline, cold)) void account_unmapped(struct table_info *info, pte_t e, int by)
{
	if (pte_swapped(e))
		info->resident[RESIDENT_SWAP] += (uint32_t)by;
}

/* An entry lets go of its frame; what was written through it is the page cache's to keep (folio_mark_dirty() at zap). */
void table_release(struct tables *t, pte_t e)
{
	struct frame *fr;

	if (!pte_mapped(e)) {
		if (__builtin_expect(e != 0, 0))
			release_unmapped(t, e);
		return;
	}
	if (pte_huge(e)) {
		folio_put(t->frames, pte_pfn(e));
		return;
	}
	fr = frame_of(t->frames, pte_pfn(e));
	if (e & PTE_D && fr->flags & (FRAME_OBJECT | FRAME_SWAPCACHE))
		fr->flags |= FRAME_DIRTY;
	if (fr->refs > 1 &&
	    !(fr->flags & (FRAME_LARGE | FRAME_ZERO | FRAME_SWAPCACHE))) /* most entries of a process that exits */
		fr->refs--;
	else
		frame_put(t->frames, pte_pfn(e));
}

/* The entries of a leaf table, of which `used` are not 0. Most are of frames that others map too, for most processes that exit
 * were forked. */
static void release_all(struct tables *t, const pte_t *e, unsigned int used)
{
	struct frame *of = t->frames->of;

	for (unsigned int i = 0; used; i++) {
		pte_t entry = e[i];

		if (!entry)
			continue;
		used--;
		if (!(entry & PTE_P) || !frame_leave(&of[pte_pfn(entry)]))
			table_release(t, entry);
	}
}

void table_put(struct tables *t, pfn_t table)
{
	struct table_info *info = table_info(t, table);
	pte_t *e = table_entries(t, table);

	t->generation++;
	t->structure++;
	if (table_is_shared(t, table)) {
		frame_of(t->frames, table)->refs--;
		t->shared--;
		return;
	}
	if (info->level == 1) {
		release_all(t, e, info->used);
		info->used = 0;
	}
	for (unsigned int i = 0; info->used; i++) {
		i = table_next(e, i);
		if (!pte_huge(e[i])) {
			table_put(t, pte_pfn(e[i]));
		} else {
			t->huge--;
			table_release(t, e[i]);
		}
		info->used--;
	}
	while (info->level == 2 && info->spare)
		table_drop_spare(t, table);
	frame_of(t->frames, table)->refs = 0;
	frame_free(t->frames, table);
}

/* Entry i of a shared table for its private copy: what holds of frames shared by fork holds of them. */
static void unshare_leaf(struct tables *t, pte_t *e)
{
	struct frame *fr = frame_of(t->frames, pte_pfn(*e));

	if (fr->flags & FRAME_ANON) {
		*e &= ~PTE_W;
		fr->flags &= (uint16_t)~FRAME_EXCLUSIVE;
	}
	if (fr->flags & FRAME_LARGE)
		folio_of(t->frames, pte_pfn(*e))->mixed = 1;
	if (pte_huge(*e)) {
		folio_get(t->frames, pte_pfn(*e));
		t->huge++;
	} else if (!(fr->flags & FRAME_ZERO)) {
		frame_get(t->frames, pte_pfn(*e));
	}
}

/* A private copy of a shared table, which loses one reference. The frames of a leaf are then shared between the two copies. */
static int table_unshare(struct tables *t, pfn_t old, pfn_t *copy)
{
	struct table_info *from = table_info(t, old), *to;
	pte_t *oe = table_entries(t, old), *ne;
	pfn_t new;
	int rc = table_new(t, (int)from->level, &new);

	if (rc)
		return rc;
	to = table_info(t, new);
	ne = table_entries(t, new);
	rc = t->huge && from->level == 2 ? table_add_spares(t, new, table_spares(t, old)) : 0;
	if (rc) {
		table_put(t, new);
		return rc;
	}
	for (unsigned int i = 0; to->used < from->used; i++) {
		if (!oe[i])
			continue;
		to->used++;
		if (from->level > 1 && !pte_huge(oe[i])) {
			oe[i] &= ~PTE_W;
			table_get(t, pte_pfn(oe[i]));
		} else if (pte_mapped(oe[i])) {
			unshare_leaf(t, &oe[i]);
		} else if (pte_swapped(oe[i])) {
			oe[i] &= ~PTE_SWAP_EXCLUSIVE;
			swap_get(t->frames, pte_slot(oe[i]));
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
int table_own_root(struct tables *t, pfn_t *root)
{
	if (*root == NO_PFN)
		return table_new(t, LEVELS, root);
	return table_is_shared(t, *root) ? table_unshare(t, *root, root) : 0;
}

/* The table behind entry i of an owned table as its own. Requires the entry not to be 0. */
int table_own_child(struct tables *t, pte_t *e)
{
	pfn_t child = pte_pfn(*e);
	int rc;

	if (*e & PTE_W)
		return 0;
	if (table_is_shared(t, child)) {
		rc = table_unshare(t, child, &child);
		if (rc)
			return rc;
	}
	*e = pte_table(child);
	t->generation++;
	t->structure++;
	return 0;
}

pte_t *table_walk_root(const struct tables *t, pfn_t root, uint64_t va, struct walk *w)
{
	struct walk_way *way = &w->way[(va >> LEVEL_SHIFT(3)) % WALK_WAYS];
	pte_t *e = table_walk(t, root, va, &w->writable), *entries;
	pfn_t table = root;
	pte_t all = PTE_W;

	table_walk_settle(t, w);
	if (!e || pte_level(*e) > 2) /* nothing to remember: no table, or a page of 1 GiB */
		return e;
	if (table_is_shared(t, root))
		all = 0;
	for (int level = LEVELS; level > 2; level--) {
		entries = table_entries(t, table);
		all &= entries[pte_index(va, level)];
		table = pte_pfn(entries[pte_index(va, level)]);
	}
	*way = (struct walk_way){ .tag = (va >> LEVEL_SHIFT(3)) + 1,
				  .entries = table_entries(t, table),
				  .writable = all };
	return e;
}

int table_own_level(struct tables *t, pfn_t *root, uint64_t va, int level, struct leaf *leaf)
{
	int rc = table_own_root(t, root);
	pfn_t table = *root, child;

	if (rc)
		return rc;
	for (int at = LEVELS; at > level; at--) {
		pte_t *e = &table_entries(t, table)[pte_index(va, at)];

		if (!*e) {
			rc = table_new(t, at - 1, &child);
			if (rc)
				return rc;
			*e = pte_table(child);
			table_info(t, table)->used++;
			t->generation++;
		} else if (pte_huge(*e)) {
			*leaf = (struct leaf){ table, pte_index(va, at), e };
			return 0;
		} else if ((rc = table_own_child(t, e)) != 0) {
			return rc;
		}
		table = pte_pfn(*e);
	}
	leaf->table = table;
	leaf->index = pte_index(va, level);
	leaf->pte = &table_entries(t, table)[leaf->index];
	return 0;
}

int table_own(struct tables *t, pfn_t *root, uint64_t va, struct leaf *leaf)
{
	return table_own_level(t, root, va, 1, leaf);
}

/* ---- entries ---- */

static enum resident_kind resident_kind(const struct frame *fr)
{
	if (fr->flags & FRAME_HUGETLB)
		return RESIDENT_HUGETLB;
	if (fr->flags & FRAME_ANON)
		return RESIDENT_ANON;
	return fr->flags & FRAME_SHMEM ? RESIDENT_SHMEM : RESIDENT_FILE;
}

/* Counts an entry in (by = 1) or out (by = -1) of its table. */
void table_account(struct tables *t, pfn_t table, pte_t e, int by)
{
	struct table_info *info = table_info(t, table);
	const struct frame *fr;

	if (!e)
		return;
	info->used = (uint16_t)(info->used + by);
	if (!pte_mapped(e)) {
		account_unmapped(info, e, by);
		return;
	}
	fr = frame_of(t->frames, pte_pfn(e));
	if (!(fr->flags & FRAME_ZERO)) {
		uint32_t *n = &info->resident[resident_kind(fr)], frames = pte_frames(e);

		*n = by > 0 ? *n + frames : *n - frames;
	}
}

/* One 4 KiB page instead of another of the same kind: nothing to count. */
static int same_kind(const struct tables *t, pte_t a, pte_t b)
{
	const uint32_t kinds = FRAME_ANON | FRAME_OBJECT | FRAME_ZERO | FRAME_HUGETLB;

	return pte_mapped(a) && pte_mapped(b) && !pte_huge(a | b) &&
	       !((frame_of(t->frames, pte_pfn(a))->flags ^ frame_of(t->frames, pte_pfn(b))->flags) & kinds);
}

void table_exchange(struct tables *t, const struct leaf *leaf, pte_t e)
{
	int alike = same_kind(t, *leaf->pte, e);

	if (!alike)
		table_account(t, leaf->table, *leaf->pte, -1);
	*leaf->pte = e;
	if (!alike)
		table_account(t, leaf->table, e, 1);
	t->generation++;
}

void table_fill(struct tables *t, const struct leaf *leaf, pte_t e)
{
	VM_ASSERT(!*leaf->pte);
	*leaf->pte = e;
	table_account(t, leaf->table, e, 1);
}

void table_set(struct tables *t, const struct leaf *leaf, pte_t e)
{
	pte_t old = *leaf->pte;

	table_exchange(t, leaf, e);
	table_release(t, old);
}

void table_sum(const struct tables *t, pfn_t table, struct table_sum *sum)
{
	const struct table_info *info;
	const pte_t *e;

	if (table == NO_PFN)
		return;
	info = table_info(t, table);
	sum->tables++;
	sum->shared += (uint64_t)table_is_shared(t, table);
	for (int k = 0; k < NRESIDENT; k++)
		sum->resident[k] += info->resident[k];
	if (info->level == 1)
		return;
	e = table_entries(t, table);
	for (unsigned int i = 0, left = info->used; left; i++)
		if (e[i]) {
			left--;
			if (!pte_huge(e[i]))
				table_sum(t, pte_pfn(e[i]), sum);
		}
	if (t->huge && info->level == 2)
		sum->tables += table_spares(t, table);
}
