/* Page tables: four levels of 512 entries, each table in a frame of the emulated RAM.
 *
 *      root (4) ──► (3) ──► (2) ──► leaf (1) ──► frame          a table with refs > 1 is shared by several parents,
 *      and may be shared at any level, the root included         and every entry that points to it has W clear
 *
 * Invariants: refs of a table = parent entries + spaces of which it is the root; a shared table is reached only through
 * entries without W (the root has no entry: its refs say it), so a walk that finds W all the way may write; `used`
 * counts entries that are not 0, `resident` leaf entries by kind of frame; the zero page is in `used` only.
 * Anything that changes what one space maps first owns the path. Bits A may be set, W and EXCLUSIVE cleared, in place.
 * Callers: fault, space, fork, look, check.
 */
#ifndef VMEMU_TABLE_H
#define VMEMU_TABLE_H

#include "frame.h"
#include "pte.h"

enum resident_kind { RESIDENT_ANON, RESIDENT_FILE, RESIDENT_SHMEM, NRESIDENT };

/* What the host keeps beside each table. */
struct table_info {
	uint16_t used;
	uint16_t resident[NRESIDENT];
	uint32_t paths; /* scratch of the pass that counts paths */
	uint32_t level;
};

struct tables {
	struct frames *frames;
	struct table_info **blocks; /* by block of frames; NULL where no table ever was */
	uint64_t shared;	    /* sum of refs - 1 over all tables */
	uint64_t generation;	    /* grows with every change of what is mapped where */
};

/* A leaf entry in place. */
struct leaf {
	pfn_t table;
	unsigned int index;
	pte_t *pte;
};

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

/* The leaf entry for va, or NULL if a table is missing on the way. *writable: W was set on the whole path, entry aside. */
pte_t *table_walk(const struct tables *t, pfn_t root, uint64_t va, int *writable);

/* Makes the whole path to va this root's own: missing tables are made, shared ones copied (their occupied entries only).
 * On failure -ENOMEM; the part already owned stays, which changes nothing that can be seen. */
int table_own(struct tables *t, pfn_t *root, uint64_t va, struct leaf *leaf);
/* Makes every table that maps something in [start, end) own, leaving alone those wholly inside unless `whole` != 0. */
int table_own_range(struct tables *t, pfn_t *root, uint64_t start, uint64_t end, int whole);

/* Puts an entry into an owned leaf table; references move with the entry's frame: the caller brings one for the new frame,
 * the one of the old is dropped. */
void table_set(struct tables *t, const struct leaf *leaf, pte_t e);
/* The same, handing the old frame's reference back to the caller instead of dropping it. */
void table_exchange(struct tables *t, const struct leaf *leaf, pte_t e);

/* Empties [start, end). Requires table_own_range(..., whole = 0) just before. Tables wholly inside are dropped. */
void table_zap(struct tables *t, pfn_t *root, uint64_t start, uint64_t end);
/* The same, keeping the tables and the guards (MADV_DONTNEED). Requires table_own_range(..., whole = 1). */
void table_clear(struct tables *t, pfn_t root, uint64_t start, uint64_t end);

/* Another reference to a table, and the end of one; the last frees all below it. */
void table_get(struct tables *t, pfn_t table);
void table_put(struct tables *t, pfn_t table);

/* Calls fn for each leaf table that maps part of [start, end), with the entries [first, last) of it that lie inside; va is
 * that of entry `first`. Stops at a result other than 0 and returns it. The tables may not be added to or dropped meanwhile. */
typedef int table_visit_fn(void *ctx, pfn_t table, pte_t *entries, unsigned int first, unsigned int last, uint64_t va);
int table_visit(const struct tables *t, pfn_t root, uint64_t start, uint64_t end, table_visit_fn *fn, void *ctx);

/* Resident pages by kind and tables in reach of a root, added up; shared tables once for each path. */
struct table_sum {
	uint64_t resident[NRESIDENT];
	uint64_t tables;
	uint64_t shared;
};
void table_sum(const struct tables *t, pfn_t root, struct table_sum *sum);

#endif
