/* Same-page merging: what it takes to make one frame of many equal pages. Which pages to compare, and when, is the caller's.
 *
 *      page A ──► ▣        ksm_make(A)        page A ─r─► ▣ KSM       ksm_merge(B)      page A ─r─┐
 *      page B ──► ▣ equal                     page B ──► ▣                              page B ─r─┴─► ▣ KSM
 *
 * A frame with FRAME_KSM is anonymous and dirty, exclusive to nobody, and no entry may write it: a write copies, even for the
 * last owner. It stops being one when nothing maps it any more, or is taken back by ksm_break, page by page.
 * Pages merged with the zero page have D in their entry, which no other entry of the zero page has.
 * Source: Linux mm/ksm.c. Callers: api.
 */
#ifndef VMEMU_KSM_H
#define VMEMU_KSM_H

#include "mm.h"

/* Anonymous pages present in [start, end), each with a hash of its bytes, at most `cap`. Returns how many. */
uint32_t ksm_pages(const struct vm *vm, const struct space *s, uint64_t start, uint64_t end, struct vmemu_ksm_page *out,
		   uint32_t cap);
/* The frame of an anonymous page becomes a KSM frame. -EBUSY if somebody holds it, -ENOENT without such a page, -ENOMEM. */
int ksm_make(struct vm *vm, struct space *s, uint64_t va);
/* The page is mapped to a KSM frame, or to the zero page, of the same bytes instead. -ESTALE: pfn is neither; -EAGAIN: the bytes
 * differ; as ksm_make. */
int ksm_merge(struct vm *vm, struct space *s, uint64_t va, pfn_t pfn);
/* Gives each merged page of [start, end) a frame of its own (break_ksm()). -ENOMEM: some are left. */
int ksm_break(struct vm *vm, struct space *s, uint64_t start, uint64_t end);
/* Pages of [start, end) that are merged with the zero page. */
uint64_t ksm_zero_pages(const struct vm *vm, const struct space *s, uint64_t start, uint64_t end);

#endif
