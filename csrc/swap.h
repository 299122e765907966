/* Swap: slots of a swap device, who holds them, and the swap cache.
 *
 *      swap entries, objects ──► slot: count      slot ──► frame that holds the same bytes, or is on its way (the swap cache)
 *
 * The device is the caller's; here are numbers, and bytes are moved if it is lent. A slot is in use while something holds it or a frame of the swap
 * cache does. The cache has a reference to its frames; a frame that nothing maps stays while the slot is held by somebody who will
 * look for it there, and goes when nobody does (free_swap_cache()). FRAME_DIRTY, or D in an entry, says that the frame holds other
 * bytes than the slot.
 *
 * Invariants: count = swap entries plus memory objects that hold the slot; a frame of the swap cache has FRAME_SWAPCACHE and is in
 * no memory object; slot and frame point to each other; a cached slot that nobody holds has a frame that is mapped.
 * Linux: swap_map of struct swap_info_struct, SWAP_HAS_CACHE, folio_free_swap(). Callers: table, object, fault, fork, reclaim.
 */
#ifndef VMEMU_SWAP_H
#define VMEMU_SWAP_H

#include "frame.h"

/* Requires that there is none, and n >= 1. -ENOMEM. */
int swap_on(struct frames *f, uint32_t n);
void swap_destroy(struct frames *f);

/* A free slot for a frame's cgroup, which has room for it, or 0; it is the caller's to have it held at once. */
uint32_t swap_take(struct frames *f, uint32_t cgroup);
/* One more holder, one less; the last one frees it if nothing maps its frame. */
void swap_get(struct frames *f, uint32_t slot);
void swap_put(struct frames *f, uint32_t slot);

/* The frame in the swap cache, or NO_PFN. */
static inline pfn_t swap_find(const struct frames *f, uint32_t slot)
{
	return f->swap.frame[slot] - 1;
}

/* A new frame with the bytes of a slot, FRAME_USED | flags, for which pays who paid before (mem_cgroup_swapin_charge_folio()).
 * From data, or if that is NULL, from the device: -ENXIO where the caller has to read it. -ENOMEM, -EIO. */
int swap_bring(struct frames *f, uint32_t slot, uint32_t flags, const void *data, pfn_t *pfn);
/* The same, put into the cache as just read for a fault. */
int swap_bring_cached(struct frames *f, uint32_t slot, const void *data, pfn_t *pfn);
/* Writes a frame to its slot, and those that follow in the array to the slots that follow. Returns how many of the n frames, at
 * least 1, or -errno. */
int swap_write(const struct frames *f, const pfn_t *pfns, uint32_t n);

/* Puts a frame into the cache, which takes a reference of its own. */
void swap_cache(struct frames *f, uint32_t slot, pfn_t pfn);
/* Takes it out again, with the cache's reference: the last one frees it. Its bytes are nowhere else then, unless the slot is held. */
void swap_leave(struct frames *f, pfn_t pfn);
/* 1 if a frame of the swap cache may leave it, for nobody looks for it there; else 0. */
int swap_can_leave(const struct frames *f, pfn_t pfn);
/* So much is in use, of the device or of what the slot's cgroup may have, that slots are freed as soon as they are read
 * (mem_cgroup_swap_full()). */
int swap_full(const struct frames *f, uint32_t slot);

#endif
