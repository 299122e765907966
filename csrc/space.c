/* Spaces: changes of VMAs and tables together. See space.h. */
#include "space.h"

/* Room for the VMAs that one change makes of those it touches: what is left on both sides, two neighbours, the new one. */
#define MAX_PIECES 6

/* ---- life ---- */

/* Ids go round: one that was given back is not given out again soon, so that whoever still has it finds nothing there. The
 * table is kept half empty, which keeps the search short. */
int space_new(struct vm *vm, struct space **out)
{
	struct space *s;

	if (vm->capacity / 2 <= vm->nspaces) {
		uint32_t grown = vm->capacity ? vm->capacity * 2 : 64;
		struct space **table = host_zalloc(&vm->host, grown * sizeof(*table));

		if (!table)
			return -ENOMEM;
		if (vm->spaces)
			memcpy(table, vm->spaces, vm->capacity * sizeof(*table));
		host_free(&vm->host, vm->spaces, vm->capacity * sizeof(*table));
		vm->spaces = table;
		host_free(&vm->host, vm->worth, vm->capacity * sizeof(*vm->worth));
		vm->worth = NULL;
		vm->capacity = grown;
	}
	s = host_zalloc(&vm->host, sizeof(*s));
	if (!s)
		return -ENOMEM;
	do
		vm->cursor = vm->cursor + 1 < vm->capacity ? vm->cursor + 1 : 1;
	while (vm->spaces[vm->cursor]);
	s->id = vm->cursor;
	s->birth = ++vm->births;
	s->root = NO_PFN;
	vm->spaces[s->id] = s;
	vm->nspaces++;
	space_stale(vm, s);
	*out = s;
	return 0;
}

void space_free(struct vm *vm, struct space *s)
{
	vm->frames.space = s->birth;
	space_reserve_again(vm, s, 0, TASK_SIZE, 0);
	if (s->root != NO_PFN)
		table_put(&vm->tables, s->root);
	vmas_destroy(&vm->env, &s->vmas);
	vm->spaces[s->id] = NULL;
	vm->nspaces--;
	vm->tables.generation++;
	host_free(&vm->host, s, sizeof(*s));
}

void space_mark_peak(struct vm *vm, struct space *s, uint64_t start, uint64_t end)
{
	struct table_sum sum = { { 0 }, 0, 0 };
	uint64_t rss = 0;

	s->peak_total = max_u64(s->peak_total, vmas_sums(&s->vmas)->total);
	/* no more can be resident, or no less will be: summing up looks at every table of the space */
	if (vmas_sums(&s->vmas)->total <= s->peak_rss || !table_occupied(&vm->tables, s->root, start, end))
		return;
	table_sum(&vm->tables, s->root, &sum);
	for (int kind = 0; kind < NRESIDENT; kind++)
		rss += kind == RESIDENT_HUGETLB || kind == RESIDENT_SWAP ? 0 : sum.resident[kind];
	s->peak_rss = max_u64(s->peak_rss, rss);
}

/* ---- changes of VMAs ---- */

/* What stands in for the VMAs that [start, end) touches once `middle` (NULL: nothing) takes its place. Neighbours that touch
 * the range are included, so that they can merge (apart: they don't). Returns the number of pieces, where they go and how many go away. */
static uint32_t replan(const struct vmas *vmas, uint64_t start, uint64_t end, const vma_t *middle, int apart,
		       vma_t *pieces, struct vma_pos *at, uint32_t *ndel)
{
	const vma_t *v = vmas_find(vmas, start, at), *before;
	struct vma_pos pos = *at, prev = *at;
	vma_t left, right;
	uint32_t n = 0, deleted = 0;
	int has_left = 0, has_right = 0;

	before = vmas_prev(vmas, &prev);
	if (before && before->end == start) {
		left = *before;
		has_left = 1;
		*at = prev;
		deleted++;
	}
	for (; v && v->start < end; v = vmas_next(vmas, &pos)) {
		if (v->start < start) {
			left = vma_part(v, v->start, start);
			has_left = 1;
		}
		if (v->end > end) {
			right = vma_part(v, end, v->end);
			has_right = 1;
		}
		deleted++;
	}
	if (!has_right && v && v->start == end) {
		right = *v;
		has_right = 1;
		deleted++;
	}
	if (has_left)
		pieces[n++] = left;
	if (middle)
		n = apart ? (pieces[n] = *middle, n + 1) : vma_append_merged(pieces, n, middle);
	if (has_right)
		n = middle && !apart ? vma_append_merged(pieces, n, &right) : (pieces[n] = right, n + 1);
	*ndel = deleted;
	return n;
}

static int splice(struct vm *vm, struct space *s, uint64_t start, uint64_t end, const vma_t *middle, int apart)
{
	vma_t pieces[MAX_PIECES];
	struct vma_pos at;
	uint32_t n, ndel;
	int rc = vmas_own(&vm->env, &s->vmas, start, end);

	if (rc)
		return rc;
	n = replan(&s->vmas, start, end, middle, apart, pieces, &at, &ndel);
	for (uint32_t i = 0; i < n; i++)
		if (!vma_aligned(&pieces[i]))
			return -EINVAL;
	return vmas_splice(&vm->env, &s->vmas, at, ndel, pieces, n);
}

int space_replace(struct vm *vm, struct space *s, uint64_t start, uint64_t end, const vma_t *middle)
{
	return splice(vm, s, start, end, middle, 0);
}

/* The range around [start, end) in which nothing else is mapped: tables wholly inside it are of no more use
 * (free_pgtables()). */
void space_room_around(const struct space *s, uint64_t start, uint64_t end, uint64_t *floor, uint64_t *ceiling)
{
	struct vma_pos pos;
	const vma_t *v = vmas_find(&s->vmas, end, &pos);

	*ceiling = v ? max_u64(v->start, end) : UINT64_C(1) << LEVEL_SHIFT(LEVELS + 1);
	v = vmas_find(&s->vmas, start, &pos);
	if (v && v->start < start) {
		*floor = start;
		return;
	}
	v = vmas_prev(&s->vmas, &pos);
	*floor = v ? v->end : 0;
}

int space_is_mapped(const struct space *s, uint64_t start, uint64_t end)
{
	struct vma_pos pos;
	const vma_t *v = vmas_find(&s->vmas, start, &pos);

	return v && v->start < end;
}

int space_unmap(struct vm *vm, struct space *s, uint64_t start, uint64_t end)
{
	uint64_t floor, ceiling;
	int rc;

	if (!space_is_mapped(s, start, end))
		return 0;
	space_mark_peak(vm, s, start, end);
	space_room_around(s, start, end, &floor, &ceiling);
	rc = table_own_range(&vm->tables, &s->root, floor, ceiling, 0);
	if (rc)
		return rc;
	space_reserve_again(vm, s, start, end, 0);
	rc = space_replace(vm, s, start, end, NULL);
	if (!rc)
		table_zap(&vm->tables, &s->root, floor, ceiling);
	else
		space_reserve_again(vm, s, start, end, 1);
	return rc;
}

int space_map(struct vm *vm, struct space *s, const vma_t *v, int apart)
{
	vma_t new = *v;
	uint64_t floor, ceiling;
	int rc, old = space_is_mapped(s, v->start, v->end);

	if (old) {
		space_mark_peak(vm, s, v->start, v->end);
		space_room_around(s, v->start, v->end, &floor, &ceiling);
		rc = table_own_range(&vm->tables, &s->root, floor, ceiling, 0);
		if (rc)
			return rc;
	}
	new.anon = 0;
	new.flags |= VMEMU_VM_SOFTDIRTY; /* what it grew from too */
	space_reserve_again(vm, s, v->start, v->end, 0);
	rc = splice(vm, s, v->start, v->end, &new, apart);
	if (rc)
		space_reserve_again(vm, s, v->start, v->end, 1);
	if (!rc && old)
		table_zap(&vm->tables, &s->root, floor, ceiling);
	return rc;
}

/* ---- changes of entries ---- */

struct reflag {
	struct vm *vm;
	uint64_t flags;
};

/* Entries follow their mapping's flags. W comes back at once only where a write needs no decision (can_change_pte_writable()):
 * to an anonymous frame known to be exclusive, to a page of a shared mapping already dirty or that nobody wants to hear of. */
static int reflag_entries(void *ctx, pfn_t table, pte_t *e, unsigned int first, unsigned int last, uint64_t va)
{
	const struct reflag *r = ctx;

	(void)table;
	(void)va;
	for (unsigned int i = first; i < last; i++) {
		const struct frame *fr;
		pte_t new;

		if (!pte_mapped(e[i]))
			continue;
		fr = frame_of(&r->vm->frames, pte_pfn(e[i]));
		new = pte_reflag(e[i], r->flags);
		if (fr->flags &
		    FRAME_HUGETLB) { /* hugetlb_change_protection(): vm_page_prot has W where it is shared */
			if ((r->flags & (VMEMU_VM_WRITE | VMEMU_VM_SHARED)) == (VMEMU_VM_WRITE | VMEMU_VM_SHARED))
				new |= PTE_W;
		} else if (r->flags & VMEMU_VM_WRITE) {
			int may = r->flags & VMEMU_VM_SHARED ? e[i] & PTE_D || fr->flags & FRAME_SHMEM
							     : (fr->flags & (FRAME_ANON | FRAME_EXCLUSIVE)) ==
								       (FRAME_ANON | FRAME_EXCLUSIVE);

			if (!(r->flags & VMEMU_VM_SOFTDIRTY) && !(e[i] & PTE_SOFT)) /* pte_needs_soft_dirty_wp() */
				may = 0;
			if (may || e[i] & PTE_W)
				new |= PTE_W;
		}
		e[i] = new;
	}
	return 0;
}

/* A huge entry lies in one mapping: those that reach across start or end are split (vma_adjust_trans_huge()). */
static int split_huge(struct vm *vm, struct space *s, uint64_t start, uint64_t end)
{
	int rc = table_split_at(&vm->tables, &s->root, start);

	return rc ? rc : table_split_at(&vm->tables, &s->root, end);
}

int space_reflag(struct vm *vm, struct space *s, uint64_t start, uint64_t end, uint64_t flags)
{
	const uint64_t access = VMEMU_VM_READ | VMEMU_VM_WRITE | VMEMU_VM_EXEC | VMEMU_VM_SHARED;
	struct reflag ctx = { vm, flags };
	struct vma_pos pos;
	const vma_t *v = vmas_find(&s->vmas, start, &pos);
	int rc = 0, entries;
	vma_t middle;

	if (!v || v->start > start || v->end < end || start >= end)
		return -EINVAL;
	if (v->flags == flags)
		return 0;
	entries = ((v->flags ^ flags) & access) != 0;
	rc = vmas_own(&vm->env, &s->vmas, start, end);
	if (!rc && entries)
		rc = table_own_range(&vm->tables, &s->root, start, end, 1);
	else if (!rc)
		rc = split_huge(vm, s, start, end);
	if (rc)
		return rc;
	v = vmas_find(&s->vmas, start, &pos);
	middle = vma_part(v, start, end);
	middle.flags = flags;
	if (flags & VMEMU_VM_MERGEABLE && !s->ksm)
		s->ksm = ++vm->ksm;
	rc = space_replace(vm, s, start, end, &middle);
	if (!rc && entries) {
		(void)table_visit(&vm->tables, s->root, start, end, reflag_entries, &ctx);
		vm->tables.generation++;
	}
	return rc;
}

int space_zap(struct vm *vm, struct space *s, uint64_t start, uint64_t end)
{
	int rc;

	space_mark_peak(vm, s, start, end);
	rc = table_own_range(&vm->tables, &s->root, start, end, 1);
	if (!rc)
		table_clear(&vm->tables, s->root, start, end);
	return rc;
}

/* A mapping that grows up to one without an identity takes that in, also if its own came through fork: the kernel asks that of
 * mappings that it moves, not of the new range (vma_merge_extend(), is_mergeable_anon_vma()). */
static void absorb_next(const struct vmas *vmas, vma_t *grown)
{
	struct vma_pos pos;
	const vma_t *next = vmas_find(vmas, grown->end, &pos);
	vma_t plain = *grown;

	plain.anon = 0;
	if (!next || next->anon || !vma_mergeable(&plain, next))
		return;
	grown->end = next->end;
	grown->flags |= next->flags & VMA_STICKY;
}

int space_extend(struct vm *vm, struct space *s, uint64_t edge, uint64_t to, int down)
{
	struct vma_pos pos;
	const vma_t *v = vmas_find(&s->vmas, down ? edge : edge - 1, &pos);
	uint64_t start = down ? to : edge, end = down ? edge : to;
	vma_t grown;
	int rc;

	if (start >= end || !v || (down ? v->start != edge : v->end != edge))
		return -EINVAL;
	if (down && v->pgoff < (edge - to) >> PAGE_SHIFT)
		return -ENOMEM;
	if (space_is_mapped(s, start, end))
		return -EEXIST;
	if (v->flags & VMEMU_VM_HUGETLB)
		return -EINVAL;
	rc = vmas_own(&vm->env, &s->vmas, start, end);
	if (!rc && down) /* expand_downwards() wants the identity for its lock */
		rc = vmas_prepare_anon(&vm->env, &s->vmas, edge);
	if (rc)
		return rc;
	v = vmas_find(&s->vmas, down ? edge : edge - 1, &pos);
	grown = *v;
	if (!down) {
		grown.end = to;
		absorb_next(&s->vmas, &grown);
		return space_replace(vm, s, grown.start, grown.end, &grown);
	}
	grown.pgoff -= (edge - to) >> PAGE_SHIFT;
	grown.start = to;
	return vmas_splice(&vm->env, &s->vmas, pos, 1, &grown, 1); /* a stack that grows does not merge */
}

int space_split(struct vm *vm, struct space *s, uint64_t at)
{
	struct vma_pos pos;
	const vma_t *v;
	vma_t parts[2];
	int rc = vmas_own(&vm->env, &s->vmas, at, at);

	v = rc ? NULL : vmas_find(&s->vmas, at, &pos);
	if (!v || v->start >= at)
		return rc;
	rc = table_split_at(&vm->tables, &s->root, at);
	if (rc)
		return rc;
	parts[0] = vma_part(v, v->start, at);
	parts[1] = vma_part(v, at, v->end);
	if (!vma_aligned(&parts[1]))
		return -EINVAL;
	return vmas_splice(&vm->env, &s->vmas, pos, 1, parts, 2);
}
