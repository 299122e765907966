/* Invariants of the swap device's slots and of the swap cache. See check.h. */
#include "check.h"
#include "swap.h"

int check_slot(const struct check *c, uint32_t slot)
{
	CHECK(slot && slot < c->vm->frames.swap.fresh, "slot %u of the swap device is held and was never given out",
	      slot);
	c->slots[slot]++;
	return 0;
}

static int check_cached(const struct check *c, uint32_t slot, pfn_t pfn)
{
	const struct frames *f = &c->vm->frames;
	const struct frame *fr;

	CHECK(pfn < f->nframes && f->swap.slot[pfn] == slot, "slot %u: its frame %u is not that of the slot", slot,
	      pfn);
	fr = &f->of[pfn];
	CHECK(fr->flags & FRAME_USED && frame_swapcached(fr) && !(fr->flags & (FRAME_LARGE | FRAME_TABLE)),
	      "slot %u: frame %u (flags %#x) is not in the swap cache", slot, pfn, fr->flags);
	CHECK(f->swap.count[slot] || fr->refs > 1, "slot %u: nobody needs it, nor frame %u", slot, pfn);
	c->refs[pfn]++;
	return 0;
}

/* What memory cgroups have of the device, and of the swap cache. */
static int check_payers(const struct check *c)
{
	const struct frames *f = &c->vm->frames;
	const struct cgroups *g = &f->cgroups;
	uint64_t used = min_u64(f->virgin * BLOCK_FRAMES, f->nframes);

	for (uint32_t id = 1; id < g->n; id++) {
		uint64_t slots = 0, cached = 0;

		if (!cgroup_get(g, id))
			continue;
		for (uint32_t slot = 1; slot < f->swap.fresh; slot++) {
			uint32_t at = f->swap.payer[slot];

			CHECK(!at || cgroup_get(g, at), "slot %u is charged to cgroup %u", slot, at);
			while (at && at != id)
				at = g->of[at].parent;
			slots += at != 0;
		}
		for (uint64_t pfn = 0; pfn < used; pfn++)
			cached += f->of[pfn].cgroup == id && f->of[pfn].flags & FRAME_USED &&
				  frame_swapcached(&f->of[pfn]);
		CHECK(g->of[id].swap == slots && g->of[id].swap_peak >= slots && g->of[id].cached == cached,
		      "cgroup %u: %llu slots and %llu frames in the swap cache, counted %llu and %llu", id,
		      (unsigned long long)g->of[id].swap, (unsigned long long)g->of[id].cached,
		      (unsigned long long)slots, (unsigned long long)cached);
	}
	return 0;
}

int check_swap(const struct check *c)
{
	const struct frames *f = &c->vm->frames;
	const struct swap *s = &f->swap;
	uint64_t used = min_u64(f->virgin * BLOCK_FRAMES, f->nframes);
	uint32_t cached = 0, free = 0, flagged = 0, n = 0;

	if (!s->nslots)
		return 0;
	for (uint32_t slot = s->head; slot; slot = s->frame[slot], free++) {
		CHECK(slot < s->fresh && free <= s->nslots && !s->count[slot], "slot %u is in the free list and in use",
		      slot);
		c->slots[slot]--; /* none can be so low otherwise */
	}
	for (uint32_t slot = 1; slot < s->fresh; slot++) {
		int rc = 0;

		if (c->slots[slot] == UINT32_MAX)
			continue;
		CHECK(s->count[slot] == c->slots[slot], "slot %u: %u holders, found %u", slot, s->count[slot],
		      c->slots[slot]);
		CHECK(s->count[slot] || s->frame[slot], "slot %u: in use and nobody holds it", slot);
		n++;
		if (!s->frame[slot])
			continue;
		cached++;
		rc = check_cached(c, slot, s->frame[slot] - 1);
		if (rc)
			return rc;
	}
	for (uint64_t pfn = 0; pfn < used; pfn++)
		flagged += f->of[pfn].flags & FRAME_USED && frame_swapcached(&f->of[pfn]);
	CHECK(cached == s->cached && flagged == cached, "%u frames in the swap cache, counted %u, marked %u", s->cached,
	      cached, flagged);
	CHECK(n == s->used && n + free + 1 == s->fresh, "%u slots in use, counted %u, and %u free of %u", s->used, n,
	      free, s->fresh - 1);
	return check_payers(c);
}
