/* Page tables: huge entries, their spare tables, their splits. See table.h. */
#include "table.h"

/* ---- spares ---- */

unsigned int table_spares(const struct tables *t, pfn_t table)
{
	unsigned int n = 0;

	for (uint32_t next = table_info(t, table)->spare; next; next = table_info(t, next - 1)->spare)
		n++;
	return n;
}

static pfn_t take_spare(struct tables *t, pfn_t table)
{
	struct table_info *info = table_info(t, table);
	pfn_t spare = info->spare - 1;

	VM_ASSERT(info->spare);
	info->spare = table_info(t, spare)->spare;
	table_info(t, spare)->spare = 0;
	return spare;
}

void table_drop_spare(struct tables *t, pfn_t table)
{
	pfn_t spare = take_spare(t, table);

	frame_of(t->frames, spare)->refs = 0;
	frame_free(t->frames, spare);
}

int table_add_spares(struct tables *t, pfn_t table, unsigned int n)
{
	struct table_info *info = table_info(t, table);
	pfn_t spare;

	for (unsigned int i = 0; i < n; i++) {
		int rc = table_new(t, 1, &spare);

		if (rc) {
			while (i--)
				table_drop_spare(t, table);
			return rc;
		}
		table_info(t, spare)->spare = info->spare;
		info->spare = spare + 1;
	}
	return 0;
}

/* ---- huge entries ---- */

/* Pages of a reserved pool are never split. */
static int needs_spare(const struct tables *t, pte_t e)
{
	return !(frame_of(t->frames, pte_pfn(e))->flags & FRAME_HUGETLB);
}

void table_drop_empty(struct tables *t, const struct leaf *leaf)
{
	if (!*leaf->pte || pte_huge(*leaf->pte))
		return;
	table_put(t, pte_pfn(*leaf->pte));
	*leaf->pte = 0;
	table_info(t, leaf->table)->used--;
}

int table_set_huge(struct tables *t, const struct leaf *leaf, pte_t e)
{
	pte_t old = *leaf->pte;

	if (!old) {
		if (needs_spare(t, e)) {
			int rc = table_add_spares(t, leaf->table, 1);

			if (rc)
				return rc;
		}
		t->huge++;
	}
	VM_ASSERT(!old || pte_huge(old));
	t->structure++;
	table_exchange(t, leaf, e);
	if (old)
		table_release(t, old);
	return 0;
}

void table_drop_huge(struct tables *t, const struct leaf *leaf)
{
	pte_t old = *leaf->pte;

	t->structure++;
	table_exchange(t, leaf, 0);
	t->huge--;
	if (needs_spare(t, old))
		table_drop_spare(t, leaf->table);
	table_release(t, old);
}

void table_move_huge(struct tables *t, const struct leaf *from, const struct leaf *to)
{
	pte_t e = *from->pte;
	pfn_t spare;

	VM_ASSERT(pte_huge(e) && !*to->pte);
	t->structure++;
	table_exchange(t, from, 0);
	table_exchange(t, to, e);
	if (!needs_spare(t, e))
		return;
	spare = take_spare(t, from->table);
	table_info(t, spare)->spare = table_info(t, to->table)->spare;
	table_info(t, to->table)->spare = spare + 1;
}

void table_split(struct tables *t, const struct leaf *leaf)
{
	pte_t huge = *leaf->pte, *e;
	const struct frame *fr = frame_of(t->frames, pte_pfn(huge));
	struct table_info *info;
	pfn_t table;

	VM_ASSERT(pte_huge(huge) && needs_spare(t, huge));
	table_account(t, leaf->table, huge, -1);
	table = take_spare(t, leaf->table);
	t->huge--;
	info = table_info(t, table);
	e = table_entries(t, table);
	for (unsigned int i = 0; i < TABLE_ENTRIES; i++)
		e[i] = fr->flags & FRAME_ZERO ? (pte_of_huge(huge, 0) & ~(PTE_FRAME | PTE_D)) |
							((uint64_t)t->frames->zero << PAGE_SHIFT)
					      : pte_of_huge(huge, i);
	info->used = TABLE_ENTRIES;
	if (fr->flags & FRAME_ZERO) {
		folio_put(t->frames, pte_pfn(huge));
	} else {
		info->resident[RESIDENT_ANON] = TABLE_ENTRIES;
		folio_split_entry(t->frames, pte_pfn(huge));
		for (unsigned int i = 0; huge & PTE_D && i < TABLE_ENTRIES; i++) /* folio_set_dirty() */
			frame_of(t->frames, pte_pfn(huge) + i)->flags |= FRAME_DIRTY;
	}
	*leaf->pte = pte_table(table);
	table_info(t, leaf->table)->used++;
	t->generation++;
	t->structure++;
	t->frames->events[VMEMU_EV_THP_SPLIT_PMD]++;
}

void table_collapse(struct tables *t, const struct leaf *leaf, pte_t huge)
{
	pfn_t table = pte_pfn(*leaf->pte);
	struct table_info *info = table_info(t, table);
	pte_t *e = table_entries(t, table);

	for (unsigned int i = 0; i < TABLE_ENTRIES; i++) {
		struct leaf small = { table, i, &e[i] };

		if (e[i])
			table_set(t, &small, 0);
	}
	VM_ASSERT(!info->used);
	table_info(t, leaf->table)->used--;
	*leaf->pte = 0;
	info->spare = table_info(t, leaf->table)->spare;
	table_info(t, leaf->table)->spare = table + 1;
	t->huge++;
	t->structure++;
	table_exchange(t, leaf, huge);
}

int table_split_at(struct tables *t, pfn_t *root, uint64_t va)
{
	struct leaf leaf;
	int rc, writable;
	const pte_t *e;

	if (!t->huge || !(va & (ENTRY_BYTES(2) - 1)) || *root == NO_PFN)
		return 0;
	e = table_walk(t, *root, va, &writable);
	if (!e || !pte_huge(*e) || !(va & (leaf_bytes(*e) - 1)))
		return 0;
	if (!needs_spare(t, *e))
		return -EINVAL;
	rc = table_own(t, root, va, &leaf);
	if (!rc)
		table_split(t, &leaf);
	return rc;
}

static int split_one(void *ctx, pfn_t table, pte_t *e, unsigned int first, unsigned int last, uint64_t va)
{
	struct leaf leaf = { table, first, &e[first] };

	(void)last;
	(void)va;
	if (pte_huge(e[first]) && !needs_spare(ctx, e[first]))
		return -EINVAL;
	if (pte_huge(e[first]))
		table_split(ctx, &leaf);
	return 0;
}

int table_split_range(struct tables *t, pfn_t *root, uint64_t start, uint64_t end)
{
	int rc = t->huge ? table_own_range(t, root, start, end, 1) : 0;

	return rc || !t->huge ? rc : table_visit(t, *root, start, end, split_one, t);
}
