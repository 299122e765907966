/* Pools of huge pages set aside at boot (hugetlbpage.rst): they are never split, swapped or counted as resident.
 *
 *      free ──► taken by a fault ──► mapped by huge entries, held by a memory object ──► free again with the last of them
 *
 * What mappings were promised and have not touched yet is reserved: free pages beyond that are for those without a promise.
 * Private promises are the sums of the mappings that own one (vma.h) less `consumed`, shared ones are `shared`.
 * Invariants: every frame of a pool has FRAME_LARGE and FRAME_HUGETLB; a page's refs count huge entries plus its object's hold;
 * a page with `reserved` counts in `consumed`, also one that the owner
 * dropped (MADV_DONTNEED) and a child keeps: the owner's next page is then at the expense of what others were promised, as on
 * Linux (__unmap_hugepage_range()).
 * Callers: folio (give), fault, object, space, api.
 */
#ifndef VMEMU_POOL_H
#define VMEMU_POOL_H

#include "folio.h"

/* Adds a page. -ENOMEM: no whole run of frames is left. */
int pool_grow(struct frames *f, int giant);
/* A page of zeros without references. Requires a free one. */
pfn_t pool_take(struct frames *f, int giant);
/* The page counts for a private reservation, or not. */
void pool_account(struct frames *f, pfn_t head, int reserved);

#endif
