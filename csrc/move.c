/* Spaces: moving pages from one mapping to another place, as mremap(2) does. Entries go over as they are. See space.h. */
#include "space.h"

struct mover {
	struct vm *vm;
	struct space *to_space;
	uint64_t delta; /* new address - old address, modulo 2^64 */
	int rc;
};

/* A huge page goes over as one if it fits there: aligned alike, and no table is in the way (move_huge_pmd()). Else it is split. */
static int split_misfits(void *ctx, pfn_t table, pte_t *e, unsigned int first, unsigned int last, uint64_t va)
{
	struct mover *mv = ctx;
	struct leaf from = { table, first, &e[first] }, to;

	(void)last;
	if (!pte_huge(e[first]))
		return 0;
	if (!(mv->delta & (leaf_bytes(e[first]) - 1))) {
		int rc =
			table_own_level(&mv->vm->tables, &mv->to_space->root, va + mv->delta, pte_level(e[first]), &to);

		if (rc || !*to.pte)
			return rc;
	}
	if (frame_of(&mv->vm->frames, pte_pfn(e[first]))->flags & FRAME_HUGETLB)
		return -EINVAL;
	table_split(&mv->vm->tables, &from);
	return 0;
}

/* Makes a leaf table wherever the old pages have one, even if it is empty (move_page_tables()). */
static int make_room(void *ctx, pfn_t table, pte_t *e, unsigned int first, unsigned int last, uint64_t va)
{
	struct mover *mv = ctx;
	struct leaf leaf;
	uint64_t to = va + mv->delta;
	int rc;

	(void)table;
	if (pte_huge(e[first]))
		return 0;
	rc = table_own(&mv->vm->tables, &mv->to_space->root, to, &leaf);
	if (rc || leaf.index + (last - first) <= TABLE_ENTRIES)
		return rc;
	return table_own(&mv->vm->tables, &mv->to_space->root, to + (last - first - 1) * PAGE_BYTES, &leaf);
}

/* Entries go over as they are: frame, W, A, D; nothing is counted or copied. They are soft-dirty there (move_soft_dirty_pte()). */
static int move_entries(void *ctx, pfn_t table, pte_t *e, unsigned int first, unsigned int last, uint64_t va)
{
	struct mover *mv = ctx;

	for (unsigned int i = first; i < last; i++) {
		struct leaf from = { table, i, &e[i] }, to;
		pte_t entry = e[i];

		if (!entry)
			continue;
		if (pte_huge(entry)) {
			if (table_own_level(&mv->vm->tables, &mv->to_space->root, va + mv->delta, pte_level(entry),
					    &to))
				VM_ASSERT(!"the table was made before");
			table_move_huge(&mv->vm->tables, &from, &to);
			*to.pte |= PTE_SOFT;
			continue;
		}
		if (table_own(&mv->vm->tables, &mv->to_space->root, va + (i - first) * PAGE_BYTES + mv->delta, &to))
			VM_ASSERT(!"the tables were made before");
		table_exchange(&mv->vm->tables, &from, 0);
		entry |= pte_mapped(entry) ? PTE_SOFT : pte_swapped(entry) ? PTE_SWAP_SOFT : 0;
		table_exchange(&mv->vm->tables, &to, entry);
	}
	return 0;
}

/* The old range of a move that took everything along. What cannot be freed for want of memory stays: it is empty. */
static void drop_tables(struct vm *vm, struct space *s, uint64_t start, uint64_t end)
{
	uint64_t floor, ceiling;

	space_room_around(s, start, end, &floor, &ceiling);
	if (!table_own_range(&vm->tables, &s->root, floor, ceiling, 0))
		table_zap(&vm->tables, &s->root, floor, ceiling);
}

/* Of old pages that stay mapped, tables that went over whole are missing: those aligned alike and wholly inside, the first one
 * also if nothing else uses it on either side (move_normal_pmd(), try_realign_addr()). Requires an owned range. */
static void leave_no_tables(struct vm *vm, struct space *s, uint64_t start, uint64_t end, uint64_t to)
{
	const uint64_t mask = ENTRY_BYTES(2) - 1;
	uint64_t first = start & ~mask, last = end & ~mask;

	if ((start ^ to) & mask)
		return;
	if (first < start && (space_is_mapped(s, first, start) || space_is_mapped(s, to & ~mask, to)))
		first += ENTRY_BYTES(2);
	if (first < last)
		table_zap(&vm->tables, &s->root, first, last);
}

/* MREMAP_DONTUNMAP: the old mapping stays as if never touched, and all of it unlocked (dontunmap_complete()); neither is a
 * reason to split or merge. Requires its block owned. */
static void leave_behind(struct vm *vm, struct space *s, uint64_t start, uint64_t end)
{
	const uint64_t locked = VMEMU_VM_LOCKED | VMEMU_VM_LOCKONFAULT;
	struct vma_pos pos;
	const vma_t *v = vmas_find(&s->vmas, start, &pos);

	if (v->flags & locked)
		vmas_set_flags(&vm->env, &s->vmas, start, v->flags & ~locked);
	if (v->start == start &&
	    v->end == end) /* else others of its pages still have the identity (unlink_anon_vmas()) */
		vmas_set_anon(&s->vmas, start, 0);
}

int space_move(struct vm *vm, struct space *s, uint64_t start, uint64_t end, uint64_t to, uint64_t length, int keep)
{
	struct mover mv = { .vm = vm, .to_space = s, .delta = to - start };
	struct vma_pos pos;
	const vma_t *v;
	vma_t new;
	int rc = vmas_own(&vm->env, &s->vmas, start, end);

	if (!rc)
		rc = vmas_own(&vm->env, &s->vmas, to, to + length);
	if (rc)
		return rc;
	v = vmas_find(&s->vmas, start, &pos);
	if (!v || v->start > start || v->end < end || start >= end)
		return -EINVAL;
	if (v->flags & VMEMU_VM_HUGETLB && (keep || length != end - start)) /* would promise more pages */
		return -EINVAL;
	if (space_is_mapped(s, to, to + length))
		return -EEXIST;
	new = vma_part(v, start, end);
	new.start = to;
	new.end = to + length;
	if (!v->object && !v->anon) /* nothing anonymous yet: it may as well have been made there (copy_vma()) */
		new.pgoff = to >> PAGE_SHIFT;
	rc = table_own_range(&vm->tables, &s->root, start, end, 1);
	if (!rc && vm->tables.huge)
		rc = table_visit(&vm->tables, s->root, start, end, split_misfits, &mv);
	if (!rc)
		rc = table_visit(&vm->tables, s->root, start, end, make_room, &mv);
	if (!rc)
		rc = space_replace(vm, s, to, to + length, &new);
	if (rc)
		return rc;
	if (keep)
		leave_behind(vm, s, start, end);
	else if ((rc = space_replace(vm, s, start, end, NULL)) != 0) {
		(void)space_replace(vm, s, to, to + length, NULL);
		return rc;
	}
	(void)table_visit(&vm->tables, s->root, start, end, move_entries, &mv);
	if (keep)
		leave_no_tables(vm, s, start, end, to);
	else
		drop_tables(vm, s, start, end);
	return 0;
}
