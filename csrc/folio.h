/* Folios: 512 frames handed out as one, an aligned 2 MiB block, so that one huge entry can map them.
 *
 *      huge entry ──► folio: entire 1      leaf entries ──► frames of the folio, each with its own count
 *
 * A folio is freed when nothing maps it or any part of it. While a huge entry maps it, the flags of its first frame speak for
 * all (EXCLUSIVE); once it is mapped by leaf entries, each frame's speak for itself. Linux: struct folio, page_type and
 * _entire_mapcount, _large_mapcount, _mm_id of include/linux/mm_types.h.
 *
 * Invariants: every frame of a folio has FRAME_LARGE; its refs count leaf entries, the folio's refs those and the huge ones;
 * `pages` counts frames with leaf entries; `idle` of struct frames the frames that nothing maps, all folios together. Who maps
 * it is remembered for two spaces only (folio_maybe_mapped_shared()): a third one's mappings count as shared even when they
 * are the last ones. The huge zero page is a folio whose refs count only; it never owns anything.
 * Callers: frame (get and put of a frame in a folio), table, fault, fork, look, check.
 */
#ifndef VMEMU_FOLIO_H
#define VMEMU_FOLIO_H

#include "frame.h"

static inline struct folio *folio_of(const struct frames *f, pfn_t pfn)
{
	struct folio *fo = &f->folios[pfn / BLOCK_FRAMES];

	return fo - fo->offset;
}

/* Its first frame; of one of 2 MiB. */
static inline pfn_t folio_head(pfn_t pfn)
{
	return pfn - pfn % BLOCK_FRAMES;
}

/* The same of any size. */
static inline pfn_t folio_first(const struct frames *f, pfn_t pfn)
{
	return (pfn_t)(folio_of(f, pfn) - f->folios) * BLOCK_FRAMES;
}

static inline uint32_t folio_frames(const struct folio *fo)
{
	return HUGE_PAGES(fo->giant);
}

/* A folio of zeros (zeroed != 0) or of unknown bytes, mapped by one huge entry on behalf of f->space. -ENOMEM: there is no
 * whole block. */
int folio_alloc(struct frames *f, uint32_t flags, int zeroed, pfn_t *head);
/* One more huge entry (folio_put in frame.h: one less). */
void folio_get(struct frames *f, pfn_t head);
/* A huge entry has become 512 leaf entries. EXCLUSIVE goes to each frame. */
void folio_split_entry(struct frames *f, pfn_t head);
/* A frame of a folio mapped by leaf entries may be written in place by f->space: nobody else maps any part of the folio, and
 * more than this one frame is mapped (__wp_can_reuse_large_anon_folio()). */
int folio_reusable(const struct frames *f, pfn_t pfn);
/* Makes ordinary frames of a folio without huge entries; those that nothing maps are freed. */
void folio_dissolve(struct frames *f, pfn_t head);

/* In pool.c: the last reference to a page of a pool went. */
void pool_give(struct frames *f, pfn_t head);

#endif
