/* Page tables: ranges. What is done to all entries of [start, end). See table.h. */
#include "table.h"

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

		if (e[i] && (level == 1 || pte_huge(e[i]) || covers(va, level, start, end) ||
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

		if (!e[i] || pte_huge(e[i]) || (!whole && covers(va, level, start, end)) ||
		    !occupied(t, pte_pfn(e[i]), level - 1, va, start, end))
			continue;
		rc = table_own_child(t, &e[i]);
		if (!rc)
			rc = own_below(t, pte_pfn(e[i]), level - 1, va, start, end, whole);
		if (rc)
			return rc;
	}
	return 0;
}

int table_occupied(const struct tables *t, pfn_t root, uint64_t start, uint64_t end)
{
	return root != NO_PFN && start < end && occupied(t, root, LEVELS, 0, start, end);
}

int table_own_range(struct tables *t, pfn_t *root, uint64_t start, uint64_t end, int whole)
{
	int rc = 0;

	if (*root == NO_PFN || start >= end)
		return 0;
	if (t->shared && table_occupied(t, *root, start, end)) {
		rc = table_own_root(t, root);
		if (!rc)
			rc = own_below(t, *root, LEVELS, 0, start, end, whole);
	}
	if (!rc)
		rc = table_split_at(t, root, start);
	return rc ? rc : table_split_at(t, root, end);
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

			VM_ASSERT(!table_is_shared(t, table));
			table_set(t, &leaf, 0);
		} else if (pte_huge(e[i])) {
			struct leaf leaf = { table, i, &e[i] };

			VM_ASSERT(!table_is_shared(t, table) && covers(va, level, start, end));
			table_drop_huge(t, &leaf);
		} else if (drop && covers(va, level, start, end)) {
			VM_ASSERT(!table_is_shared(t, table));
			table_put(t, pte_pfn(e[i]));
			e[i] = 0;
			table_info(t, table)->used--;
		} else {
			zap(t, pte_pfn(e[i]), level - 1, va, start, end, drop);
			if (level == 2 && covers(va, level, start, end) && !table_info(t, pte_pfn(e[i]))->used) {
				table_put(t, pte_pfn(e[i])); /* try_get_and_clear_pmd(), reclaim_pt */
				e[i] = 0;
				table_info(t, table)->used--;
			}
		}
	}
}

void table_zap(struct tables *t, pfn_t *root, uint64_t start, uint64_t end)
{
	if (*root == NO_PFN)
		return;
	zap(t, *root, LEVELS, 0, start, end, 1);
	if (!table_info(t, *root)->used && !table_is_shared(t, *root)) {
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
		if (pte_huge(e[i]))
			rc = fn(ctx, table, e, i, i + 1, base + i * ENTRY_BYTES(level));
		else if (e[i])
			rc = visit(t, pte_pfn(e[i]), level - 1, base + i * ENTRY_BYTES(level), start, end, fn, ctx);
	return rc;
}

int table_visit(const struct tables *t, pfn_t root, uint64_t start, uint64_t end, table_visit_fn *fn, void *ctx)
{
	return root == NO_PFN ? 0 : visit(t, root, LEVELS, 0, start, end, fn, ctx);
}

static int mirror(struct tables *t, pfn_t table, int level, uint64_t base, uint64_t start, uint64_t end, pfn_t *to)
{
	const pte_t *e = table_entries(t, table);
	unsigned int i, last;
	struct leaf leaf;
	int rc = 0;

	index_range(base, level, start, end, &i, &last);
	for (; i < last && !rc; i++) {
		uint64_t va = base + i * ENTRY_BYTES(level);

		if (!e[i] || pte_huge(e[i]))
			continue;
		rc = table_own_level(t, to, max_u64(va, start), level - 1, &leaf);
		if (!rc && level > 3)
			rc = mirror(t, pte_pfn(e[i]), level - 1, va, start, end, to);
	}
	return rc;
}

int table_mirror(struct tables *t, pfn_t from, pfn_t *to, uint64_t start, uint64_t end)
{
	return from == NO_PFN ? 0 : mirror(t, from, LEVELS, 0, start, end, to);
}
