/* Pages that may go: what MADV_FREE, MADV_COLD and MADV_PAGEOUT do to the pages of one mapping.
 *
 * Anonymous memory goes if it was freed lazily and not written since, else to the swap device, if there is one; a clean page of
 * the page cache goes for good, a dirty one leaves the mapping and stays in the cache. Pages that others map too are left alone.
 * Ranges are page aligned, inside the user half and inside one mapping; the door has checked.
 * Source: Linux mm/madvise.c, mm/swap.c, shrink_folio_list(). Callers: api.
 */
#ifndef VMEMU_LRU_H
#define VMEMU_LRU_H

#include "mm.h"

/* Frames marked so far are FRAME_LAZYFREE (lru_add_drain()). */
void lru_drain(struct vm *vm);
/* Pages need not be kept until they are written again. -EINVAL for other than private anonymous memory, -ENOMEM: nothing
 * happened. */
int lru_free(struct vm *vm, struct space *s, uint64_t start, uint64_t end);
/* Pages count as not accessed. -ENOMEM: nothing happened. */
int lru_cold(struct vm *vm, struct space *s, uint64_t start, uint64_t end);
/* Pages are reclaimed. -ENOMEM: nothing happened. */
int lru_pageout(struct vm *vm, struct space *s, uint64_t start, uint64_t end);
/* The same where there is swap; at most cap pages, those that must be written into out. */
int lru_swap_out(struct vm *vm, struct space *s, uint64_t start, uint64_t end, struct vmemu_victim *out, uint32_t cap,
		 uint32_t *nvictims);

#endif
