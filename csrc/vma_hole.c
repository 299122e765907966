/* VMAs: holes. Each index entry keeps the largest hole before one of its block's VMAs, each group of entries the largest of
 * theirs; a search looks into those groups and blocks only. */
#include "vma.h"

/* A stack keeps a gap below itself (vm_start_gap()). */
static uint64_t hole_end(const vma_t *v)
{
	if (!(v->flags & VMEMU_VM_GROWSDOWN))
		return v->start;
	return v->start > STACK_GUARD ? v->start - STACK_GUARD : 0;
}

static uint64_t hole_before(const vma_t *v, uint64_t prev_end)
{
	uint64_t end = hole_end(v);

	return end > prev_end ? end - prev_end : 0;
}

void vma_slot_update(struct vma_index *ix, uint32_t k)
{
	struct vma_slot *slot = &ix->slot[k];
	const struct vma_block *b = slot->block;
	const struct vma_block *before = k ? ix->slot[k - 1].block : NULL;
	uint64_t prev_end = before ? before->v[before->count - 1].end : 0;

	slot->start = b->v[0].start;
	slot->hole = 0;
	for (uint32_t i = 0; i < b->count; i++) {
		slot->hole = max_u64(slot->hole, hole_before(&b->v[i], prev_end));
		prev_end = b->v[i].end;
	}
}

void vma_group_update(struct vma_index *ix, uint32_t k)
{
	uint32_t first = k / VMA_GROUP * VMA_GROUP;
	uint64_t hole = 0;

	for (k = first; k < first + VMA_GROUP && k < ix->count; k++)
		hole = max_u64(hole, ix->slot[k].hole);
	ix->hole[first / VMA_GROUP] = hole;
}

void vma_groups_update(struct vma_index *ix, uint32_t k)
{
	for (; k < ix->count; k = (k / VMA_GROUP + 1) * VMA_GROUP)
		vma_group_update(ix, k);
}

/* Tries the hole [from, to) cut to [low, high). */
static int fits(uint64_t from, uint64_t to, uint64_t low, uint64_t high, uint64_t length, uint64_t align, int top,
		uint64_t *out)
{
	uint64_t at;

	from = max_u64(from, low);
	to = min_u64(to, high);
	if (to < from || to - from < length)
		return 0;
	at = top ? (to - length) / align * align : (from + align - 1) / align * align;
	if (at < from || at > to - length)
		return 0;
	*out = at;
	return 1;
}

/* The holes before the VMAs of one block. */
static int in_block(const struct vma_index *ix, uint32_t k, uint64_t low, uint64_t high, uint64_t length,
		    uint64_t align, int top, uint64_t *out)
{
	const struct vma_block *b = ix->slot[k].block;
	const struct vma_block *before = k ? ix->slot[k - 1].block : NULL;

	for (uint32_t j = 0; j < b->count; j++) {
		uint32_t i = top ? b->count - 1u - j : j;
		uint64_t from = i ? b->v[i - 1].end : before ? before->v[before->count - 1].end : 0;

		if (fits(from, hole_end(&b->v[i]), low, high, length, align, top, out))
			return 0;
	}
	return -ENOMEM;
}

int vmas_hole(const struct vmas *s, uint64_t low, uint64_t high, uint64_t length, uint64_t align, int top,
	      uint64_t *out)
{
	const struct vma_index *ix = s->index;
	uint32_t n = ix ? ix->count : 0;
	const vma_t *last = n ? &ix->slot[n - 1].block->v[ix->slot[n - 1].block->count - 1] : NULL;

	if (top && fits(last ? last->end : 0, UINT64_MAX, low, high, length, align, top, out))
		return 0;
	for (uint32_t step = 0; step < n; step++) {
		uint32_t k = top ? n - 1 - step : step, rest = top ? k % VMA_GROUP : VMA_GROUP - 1 - k % VMA_GROUP;

		if (ix->hole[k / VMA_GROUP] < length)
			step += rest; /* the others of the group */
		else if (ix->slot[k].hole >= length && !in_block(ix, k, low, high, length, align, top, out))
			return 0;
	}
	if (!top && fits(last ? last->end : 0, UINT64_MAX, low, high, length, align, top, out))
		return 0;
	return -ENOMEM;
}
