/* Swap: slots, their holders, the swap cache. See swap.h. */
#define _GNU_SOURCE /* pwritev */
#include "swap.h"

#include <sys/uio.h>
#include <unistd.h>

/* Frames written at once. */
#define BATCH 64u

int swap_on(struct frames *f, uint32_t n)
{
	struct swap *s = &f->swap;

	s->count = host_zalloc(f->host, (n + UINT64_C(1)) * sizeof(*s->count));
	s->frame = host_zalloc(f->host, (n + UINT64_C(1)) * sizeof(*s->frame));
	s->slot = host_zalloc(f->host, f->nframes * sizeof(*s->slot));
	s->payer = host_zalloc(f->host, (n + UINT64_C(1)) * sizeof(*s->payer));
	s->nslots = n;
	s->fresh = 1;
	s->fd = -1;
	if (s->count && s->frame && s->slot && s->payer)
		return 0;
	swap_destroy(f);
	return -ENOMEM;
}

void swap_destroy(struct frames *f)
{
	struct swap *s = &f->swap;

	host_free(f->host, s->count, (s->nslots + UINT64_C(1)) * sizeof(*s->count));
	host_free(f->host, s->frame, (s->nslots + UINT64_C(1)) * sizeof(*s->frame));
	host_free(f->host, s->slot, f->nframes * sizeof(*s->slot));
	host_free(f->host, s->payer, (s->nslots + UINT64_C(1)) * sizeof(*s->payer));
	memset(s, 0, sizeof(*s));
}

uint32_t swap_take(struct frames *f, uint32_t cgroup)
{
	struct swap *s = &f->swap;
	uint32_t slot = s->head;

	if (slot)
		s->head = s->frame[slot];
	else if (s->nslots && s->fresh <= s->nslots)
		slot = s->fresh++;
	else
		return 0;
	s->frame[slot] = 0;
	s->used++;
	s->payer[slot] = (uint16_t)cgroup;
	if (cgroup)
		cgroup_charge_swap(&f->cgroups, cgroup);
	return slot;
}

static void give(struct frames *f, uint32_t slot)
{
	struct swap *s = &f->swap;

	s->frame[slot] = s->head;
	s->head = slot;
	s->used--;
	cgroup_uncharge_swap(&f->cgroups, s->payer[slot]);
	s->payer[slot] = 0;
}

void swap_get(struct frames *f, uint32_t slot)
{
	VM_ASSERT(f->swap.count[slot]);
	f->swap.count[slot]++;
}

void swap_put(struct frames *f, uint32_t slot)
{
	struct swap *s = &f->swap;
	pfn_t pfn = swap_find(f, slot);

	VM_ASSERT(s->count[slot]);
	if (--s->count[slot])
		return;
	if (pfn == NO_PFN)
		give(f, slot);
	else if (frame_of(f, pfn)->refs == 1)
		swap_leave(f, pfn);
}

/* ---- bytes ---- */

static off_t offset_of(uint32_t slot)
{
	return (off_t)(slot - 1) << PAGE_SHIFT;
}

static int read_slot(const struct swap *s, uint32_t slot, uint8_t *to)
{
	size_t done = 0;

	if (s->memory) {
		memcpy(to, s->memory + offset_of(slot), PAGE_BYTES);
		return 0;
	}
	while (done < PAGE_BYTES) {
		ssize_t n = pread(s->fd, to + done, PAGE_BYTES - done, offset_of(slot) + (off_t)done);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return -EIO;
		done += (size_t)n;
	}
	return 0;
}

int swap_bring(struct frames *f, uint32_t slot, uint32_t flags, const void *data, pfn_t *pfn)
{
	struct swap *s = &f->swap;
	uint32_t payer = f->payer;
	int rc;

	if (f->contents && !data && !s->memory && s->fd < 0)
		return -ENXIO;
	f->payer = s->payer[slot];
	rc = frame_alloc(f, flags, pfn, NULL);
	f->payer = payer;
	if (rc)
		return rc;
	if (f->contents && data)
		memcpy(frame_bytes(f, *pfn), data, PAGE_BYTES);
	else if (f->contents)
		rc = read_slot(s, slot, frame_bytes(f, *pfn));
	if (rc)
		frame_put(f, *pfn);
	else
		s->ins++;
	return rc;
}

int swap_bring_cached(struct frames *f, uint32_t slot, const void *data, pfn_t *pfn)
{
	int rc = swap_bring(f, slot, FRAME_ANON | FRAME_MAJOR, data, pfn);

	if (rc)
		return rc;
	swap_cache(f, slot, *pfn);
	frame_of(f, *pfn)->refs--; /* the cache has it */
	return 0;
}

int swap_write(const struct frames *f, const pfn_t *pfns, uint32_t n)
{
	const struct swap *s = &f->swap;
	uint32_t first = s->slot[pfns[0]], run = 1;
	struct iovec parts[BATCH];
	ssize_t done;

	if (!f->contents)
		return (int)n;
	while (run < n && run < BATCH && s->slot[pfns[run]] == first + run)
		run++;
	for (uint32_t i = 0; i < run; i++) {
		if (s->memory)
			memcpy(s->memory + offset_of(first + i), frame_bytes(f, pfns[i]), PAGE_BYTES);
		parts[i] = (struct iovec){ frame_bytes(f, pfns[i]), PAGE_BYTES };
	}
	if (s->memory)
		return (int)run;
	if (s->fd < 0)
		return -ENXIO;
	do
		done = pwritev(s->fd, parts, (int)run, offset_of(first));
	while (done < 0 && errno == EINTR);
	if (done < 0)
		return -errno;
	return done < (ssize_t)PAGE_BYTES ? -ENOSPC : (int)(done >> PAGE_SHIFT);
}

/* ---- the cache ---- */

void swap_cache(struct frames *f, uint32_t slot, pfn_t pfn)
{
	struct frame *fr = frame_of(f, pfn);

	VM_ASSERT(!f->swap.slot[pfn] && swap_find(f, slot) == NO_PFN);
	f->swap.slot[pfn] = slot;
	f->swap.frame[slot] = pfn + 1;
	f->swap.cached++;
	if (fr->cgroup)
		f->cgroups.of[fr->cgroup].cached++;
	fr->flags |= FRAME_SWAPCACHE;
	fr->refs++;
}

void swap_leave(struct frames *f, pfn_t pfn)
{
	struct swap *s = &f->swap;
	struct frame *fr = frame_of(f, pfn);
	uint32_t slot = s->slot[pfn];

	VM_ASSERT(slot && fr->refs);
	s->slot[pfn] = 0;
	s->frame[slot] = 0;
	s->cached--;
	if (fr->cgroup)
		f->cgroups.of[fr->cgroup].cached--;
	if (!s->count[slot])
		give(f, slot);
	fr->flags = (uint16_t)((fr->flags & ~(FRAME_SWAPCACHE | FRAME_MAJOR)) | FRAME_DIRTY);
	if (--fr->refs == 0)
		frame_free(f, pfn);
}

int swap_full(const struct frames *f, uint32_t slot)
{
	const struct cgroups *c = &f->cgroups;

	if ((uint64_t)f->swap.used * 2 >= f->swap.nslots)
		return 1;
	for (uint32_t id = f->swap.payer[slot]; id; id = c->of[id].parent)
		if (c->of[id].swap * 2 >= c->of[id].swap_max)
			return 1;
	return 0;
}

int swap_can_leave(const struct frames *f, pfn_t pfn)
{
	return frame_swapcached(frame_of(f, pfn)) && !f->swap.count[f->swap.slot[pfn]];
}

void swap_idle(struct frames *f, pfn_t pfn)
{
	if (swap_can_leave(f, pfn))
		swap_leave(f, pfn);
}
