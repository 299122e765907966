/* Page tables: four levels of 512 entries, each table in a frame of the emulated RAM.
 *
 *      root (4) ──► (3) ──► (2) ──► leaf (1) ──► frame          a table with refs > 1 is shared by several parents,
 *      and may be shared at any level, the root included         and every entry that points to it has W clear
 *
 * A huge page is a leaf in a table of level 2 (PS, pte.h). With each comes a spare table, taken together with it, so that the
 * entry can be split into 512 at any time without asking for memory (pgtable_trans_huge_deposit()).
 *
 * Invariants: refs of a table = parent entries + spaces of which it is the root; a shared table is reached only through
 * entries without W (the root has no entry: its refs say it), so a walk that finds W all the way may write; `used`
 * counts entries that are not 0, `resident` the frames that leaf entries map, by kind, and swap entries; zero pages are in `used` only; a
 * table of level 2 has as many spares as huge entries.
 * Anything that changes what one space maps first owns the path. Bits A may be set, W and EXCLUSIVE cleared, in place.
 * Callers: fault, space, fork, look, check.
 */
#ifndef VMEMU_TABLE_H
#define VMEMU_TABLE_H

#include "folio.h"
#include "pte.h"

enum resident_kind { RESIDENT_ANON, RESIDENT_FILE, RESIDENT_SHMEM, RESIDENT_HUGETLB, RESIDENT_SWAP, NRESIDENT };

/* What the host keeps beside each table. */
struct table_info {
	uint16_t used;
	uint16_t level;
	uint32_t resident[NRESIDENT];
	uint32_t paths; /* scratch of the pass that counts paths */
	uint32_t spare; /* level 2: first of its spare tables; a spare: the next one; plus one */
};

struct tables {
	struct frames *frames;
	struct table_info **blocks; /* by block of frames; NULL where no table ever was */
	uint64_t shared;	    /* sum of refs - 1 over all tables */
	uint64_t huge;		    /* huge entries */
	uint64_t generation;	    /* grows with every change of what is mapped where */
	uint64_t structure; /* grows when a table comes, goes, or is shared otherwise: where entries are found */
};

/* A leaf entry in place, or where one would be. */
struct leaf {
	pfn_t table;
	unsigned int index;
	pte_t *pte;
};

/* Bytes that a leaf entry maps. */
static inline uint64_t leaf_bytes(pte_t e)
{
	return (uint64_t)pte_frames(e) << PAGE_SHIFT;
}

/* The frame at va, which the leaf entry e maps. */
static inline pfn_t leaf_pfn(pte_t e, uint64_t va)
{
	return pte_pfn(e) + ((pfn_t)(va >> PAGE_SHIFT) & (pte_frames(e) - 1));
}

int tables_init(struct tables *t, struct frames *frames);
void tables_destroy(struct tables *t);

static inline pte_t *table_entries(const struct tables *t, pfn_t table)
{
	return (pte_t *)(void *)frame_bytes(t->frames, table);
}

static inline struct table_info *table_info(const struct tables *t, pfn_t table)
{
	return &t->blocks[table / BLOCK_FRAMES][table % BLOCK_FRAMES];
}

static inline int table_is_shared(const struct tables *t, pfn_t table)
{
	return frame_of(t->frames, table)->refs > 1;
}

/* The leaf entry for va, a huge one where there is one, or NULL if a table is missing on the way. *writable: W was set on the
 * whole path, entry aside. */
static inline pte_t *table_walk(const struct tables *t, pfn_t root, uint64_t va, int *writable)
{
	pte_t *e, all = PTE_W;
	pfn_t table = root;

	if (root == NO_PFN)
		return NULL;
	if (table_is_shared(t, root))
		all = 0;
	for (int level = LEVELS; level > 1; level--) {
		e = &table_entries(t, table)[pte_index(va, level)];
		if (!*e)
			return NULL;
		if (pte_huge(*e)) {
			*writable = all != 0;
			return e;
		}
		all &= *e;
		table = pte_pfn(*e);
	}
	*writable = all != 0;
	return &table_entries(t, table)[pte_index(va, 1)];
}

/* Where walks from one root came by: a table of level 2 for each of a few GiB, good as long as no table has come, gone or been
 * shared. All zero: none. What a CPU's paging-structure caches are. */
#define WALK_WAYS 8u

struct walk {
	uint64_t structure;
	int writable; /* of the last walk, as table_walk's */
	struct walk_way {
		uint64_t tag; /* va >> 30, plus one */
		pte_t *entries;
		pte_t writable;	 /* PTE_W: so far */
		uint64_t unused; /* a way is found by a shift */
	} way[WALK_WAYS];
};

/* table_walk from the root, remembered. */
pte_t *table_walk_root(const struct tables *t, pfn_t root, uint64_t va, struct walk *w);

/* table_walk with a memory. */
static inline pte_t *table_walk_next(const struct tables *t, pfn_t root, uint64_t va, struct walk *w)
{
	const struct walk_way *way = &w->way[(va >> LEVEL_SHIFT(3)) % WALK_WAYS];
	pte_t *e;

	if (w->structure != t->structure || way->tag != (va >> LEVEL_SHIFT(3)) + 1)
		return table_walk_root(t, root, va, w);
	e = &way->entries[pte_index(va, 2)];
	w->writable = (way->writable & *e) != 0;
	if (!pte_huge(*e))
		return *e ? &table_entries(t, pte_pfn(*e))[pte_index(va, 1)] : NULL;
	w->writable = way->writable != 0;
	return e;
}

/* Forgets what is no longer true. */
static inline void table_walk_settle(const struct tables *t, struct walk *w)
{
	if (w->structure != t->structure) {
		memset(w->way, 0, sizeof(w->way));
		w->structure = t->structure;
	}
}

/* The usual case of table_walk_next in few steps, once settled: the address of an entry in a leaf table, in bit 0 whether the path
 * to it may be written; 0: ask table_walk_next. */
static inline uintptr_t table_walk_known(const struct tables *t, const struct walk *w, uint64_t va)
{
	const struct walk_way *way = &w->way[(va >> LEVEL_SHIFT(3)) % WALK_WAYS];
	pte_t e;

	if (way->tag != (va >> LEVEL_SHIFT(3)) + 1)
		return 0;
	e = way->entries[pte_index(va, 2)];
	if ((e & (PTE_P | PTE_PS)) != PTE_P)
		return 0;
	return ((uintptr_t)(t->frames->ram + (e & PTE_FRAME)) + pte_index(va, 1) * sizeof(pte_t)) |
	       (way->writable & e) / PTE_W;
}

/* The place of an entry that was found. */
static inline struct leaf leaf_of(const struct tables *t, pte_t *e)
{
	uint64_t at = (uint64_t)((const uint8_t *)e - t->frames->ram);

	return (struct leaf){ (pfn_t)(at >> PAGE_SHIFT), (unsigned int)(at & PAGE_MASK) / sizeof(*e), e };
}

/* Makes the whole path to va this root's own: missing tables are made, shared ones copied (their occupied entries only). The
 * leaf is a huge entry where there is one. On failure -ENOMEM; the part already owned stays, which changes nothing that can
 * be seen. */
int table_own(struct tables *t, pfn_t *root, uint64_t va, struct leaf *leaf);
/* The same down to the table of `level`: the entry there, which may be 0, huge, or lead to a table. */
int table_own_level(struct tables *t, pfn_t *root, uint64_t va, int level, struct leaf *leaf);
/* Makes every table that maps something in [start, end) own, leaving alone those wholly inside unless `whole` != 0; huge
 * entries that reach across start or end are split. */
int table_own_range(struct tables *t, pfn_t *root, uint64_t start, uint64_t end, int whole);

/* Puts an entry into an owned leaf table; references move with the entry's frame: the caller brings one for the new frame,
 * the one of the old is dropped. */
void table_set(struct tables *t, const struct leaf *leaf, pte_t e);
/* The same where there is 0, in a table that nobody has looked at yet. */
void table_fill(struct tables *t, const struct leaf *leaf, pte_t e);
/* The same, handing the old frame's reference back to the caller instead of dropping it. */
void table_exchange(struct tables *t, const struct leaf *leaf, pte_t e);

/* Drops the table behind an entry above level 1, if there is one, with all that is below it. */
void table_drop_empty(struct tables *t, const struct leaf *leaf);
/* Puts a huge entry where there is 0 or a huge one, as table_set does; one in place of 0 brings a spare table. -ENOMEM without a
 * frame for that, nothing changed. */
int table_set_huge(struct tables *t, const struct leaf *leaf, pte_t e);
/* Takes a huge entry away, its spare table too, and drops its reference. */
void table_drop_huge(struct tables *t, const struct leaf *leaf);
/* Moves a huge entry, its spare table too, to where there is 0. */
void table_move_huge(struct tables *t, const struct leaf *from, const struct leaf *to);
/* Makes 512 entries of a huge one, in its spare table (__split_huge_pmd()). Requires an owned table. */
void table_split(struct tables *t, const struct leaf *leaf);
/* The other way round: the table behind an entry of level 2, owned, becomes a spare and the entry huge. */
void table_collapse(struct tables *t, const struct leaf *leaf, pte_t huge);
/* Splits the huge entry that reaches across va, if there is one. -ENOMEM: its table was shared. */
int table_split_at(struct tables *t, pfn_t *root, uint64_t va);
/* Splits every huge entry that maps part of [start, end). -ENOMEM: a table was shared. */
int table_split_range(struct tables *t, pfn_t *root, uint64_t start, uint64_t end);
/* Between table.c and table_huge.c. A new table; the root, or the table behind an entry of an owned table, as this space's
 * own; an entry counted in its table (by = 1 or -1); what an entry held, let go of; the spares of
 * a table of level 2, n more (-ENOMEM: none), one less. */
int table_new(struct tables *t, int level, pfn_t *table);
int table_own_root(struct tables *t, pfn_t *root);
int table_own_child(struct tables *t, pte_t *e);
void table_account(struct tables *t, pfn_t table, pte_t e, int by);
void table_release(struct tables *t, pte_t e);
unsigned int table_spares(const struct tables *t, pfn_t table);
int table_add_spares(struct tables *t, pfn_t table, unsigned int n);
void table_drop_spare(struct tables *t, pfn_t table);

/* Some entry, or a table that may have one, lies inside [start, end). */
int table_occupied(const struct tables *t, pfn_t root, uint64_t start, uint64_t end);
/* Empties [start, end). Requires table_own_range(..., whole = 0) just before. Tables wholly inside are dropped. */
void table_zap(struct tables *t, pfn_t *root, uint64_t start, uint64_t end);
/* The same, keeping guards and the tables but those of level 1 that are empty then and wholly inside (MADV_DONTNEED). Requires
 * table_own_range(..., whole = 1). */
void table_clear(struct tables *t, pfn_t root, uint64_t start, uint64_t end);

/* Another reference to a table, and the end of one; the last frees all below it. */
void table_get(struct tables *t, pfn_t table);
void table_put(struct tables *t, pfn_t table);

/* Calls fn for each leaf table that maps part of [start, end), with the entries [first, last) of it that lie inside; va is
 * that of entry `first`. For a huge entry it is called with that one (pte_huge()), va being where it begins, which may be below
 * `start`. Stops at a result other than 0 and returns it. The tables may not be added to or dropped meanwhile. */
typedef int table_visit_fn(void *ctx, pfn_t table, pte_t *entries, unsigned int first, unsigned int last, uint64_t va);
int table_visit(const struct tables *t, pfn_t root, uint64_t start, uint64_t end, table_visit_fn *fn, void *ctx);

/* Gives root *to the tables above the leaves that root `from` has for [start, end), empty ones too. -ENOMEM: some. */
int table_mirror(struct tables *t, pfn_t from, pfn_t *to, uint64_t start, uint64_t end);

/* Resident pages by kind and tables in reach of a root, added up; shared tables once for each path. */
struct table_sum {
	uint64_t resident[NRESIDENT];
	uint64_t tables;
	uint64_t shared;
};
void table_sum(const struct tables *t, pfn_t root, struct table_sum *sum);

#endif
