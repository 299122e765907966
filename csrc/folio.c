/* Folios: who maps them how often. See folio.h. */
#include "folio.h"

/* ---- who maps it ---- */

static int is_huge_zero(const struct frames *f, const struct folio *fo)
{
	return f->huge_zero != NO_PFN && fo == folio_of(f, f->huge_zero);
}

/* n entries more by the space on whose behalf we act (folio_add_return_large_mapcount()). */
static void own_more(struct frames *f, struct folio *fo, uint32_t n)
{
	fo->refs += n;
	if (is_huge_zero(f, fo))
		return;
	for (int i = 0; i < 2; i++)
		if (fo->owner[i] == f->space) {
			fo->owned[i] += n;
			return;
		}
	for (int i = 0; i < 2; i++)
		if (!fo->owner[i]) {
			fo->owner[i] = f->space;
			fo->owned[i] = n;
			fo->shared |= i || fo->refs != n;
			return;
		}
}

/* No more than there are: a space that is gone may have left its entries, in a table that it shared, to another one. */
static void trim_owners(struct folio *fo)
{
	for (int i = 0; i < 2; i++) {
		uint32_t all = fo->owned[0] + fo->owned[1];

		if (all > fo->refs)
			fo->owned[i] -= (uint32_t)min_u64(fo->owned[i], all - fo->refs);
		if (!fo->owned[i])
			fo->owner[i] = 0;
	}
}

/* n entries less (folio_sub_return_large_mapcount()); what was counted for a space may be less than what it had. */
static void own_less(struct frames *f, struct folio *fo, uint32_t n)
{
	fo->refs -= n;
	if (is_huge_zero(f, fo))
		return;
	for (int i = 0; i < 2; i++) {
		if (fo->owner[i] != f->space)
			continue;
		if (fo->owned[i] > n) {
			fo->owned[i] -= n;
			return;
		}
		fo->owned[i] = 0;
		fo->owner[i] = 0;
		break;
	}
	trim_owners(fo);
	if (fo->owned[0] == fo->refs || fo->owned[1] == fo->refs)
		fo->shared = 0;
}

/* ---- frames that nothing maps ---- */

static uint32_t idle_frames(const struct folio *fo)
{
	return fo->entire ? 0 : BLOCK_FRAMES - fo->pages;
}

static void list_remove(struct frames *f, struct folio *fo)
{
	if (fo->prev)
		f->folios[fo->prev - 1].next = fo->next;
	else
		f->unmapped = fo->next;
	if (fo->next)
		f->folios[fo->next - 1].prev = fo->prev;
	fo->prev = fo->next = 0;
	fo->listed = 0;
}

/* Brings what depends on how much is mapped up to date, `before` frames having been idle (deferred_split_folio()). */
static void settle(struct frames *f, pfn_t head, uint32_t before)
{
	struct folio *fo = folio_of(f, head);
	uint32_t idle = idle_frames(fo);

	if (head == f->huge_zero)
		return;
	if (frame_of(f, head)->flags & FRAME_HUGETLB) {
		if (!fo->refs)
			pool_give(f, head);
		return;
	}
	f->idle = f->idle - before + idle;
	if (!fo->refs) {
		if (fo->listed)
			list_remove(f, fo);
		f->idle -= idle;
		frame_free_block(f, head);
		return;
	}
	if (idle && !fo->listed) {
		fo->prev = 0;
		fo->next = f->unmapped;
		if (f->unmapped)
			f->folios[f->unmapped - 1].prev = head / BLOCK_FRAMES + 1;
		f->unmapped = head / BLOCK_FRAMES + 1;
		fo->listed = 1;
		f->events[VMEMU_EV_THP_DEFERRED_SPLIT_PAGE]++;
	}
}

/* Counts as a transparent huge page of anonymous memory. */
static int transparent(const struct frames *f, pfn_t head)
{
	return !(frame_of(f, head)->flags & (FRAME_ZERO | FRAME_HUGETLB));
}

/* ---- life ---- */

int folio_alloc(struct frames *f, uint32_t flags, int zeroed, pfn_t *head)
{
	struct folio *fo;
	int rc = frame_alloc_block(f, flags | FRAME_LARGE, zeroed, head);

	if (rc)
		return rc;
	fo = folio_of(f, *head);
	memset(fo, 0, sizeof(*fo));
	fo->entire = 1;
	f->huge++;
	own_more(f, fo, 1);
	return 0;
}

void folio_get(struct frames *f, pfn_t head)
{
	struct folio *fo = folio_of(f, head);
	uint32_t before = idle_frames(fo);

	f->huge += !fo->entire++ && transparent(f, head);
	own_more(f, fo, 1);
	settle(f, head, before);
}

void folio_put(struct frames *f, pfn_t head)
{
	struct folio *fo = folio_of(f, head);
	uint32_t before = idle_frames(fo);

	VM_ASSERT(fo->entire);
	f->huge -= !--fo->entire && transparent(f, head);
	own_less(f, fo, 1);
	settle(f, head, before);
}

void folio_split_entry(struct frames *f, pfn_t head)
{
	struct folio *fo = folio_of(f, head);
	uint16_t exclusive = frame_of(f, head)->flags & FRAME_EXCLUSIVE;

	f->huge -= !--fo->entire;
	own_more(f, fo, BLOCK_FRAMES);
	own_less(f, fo, 1);
	for (uint32_t i = 0; i < BLOCK_FRAMES; i++) {
		struct frame *fr = frame_of(f, head + i);

		fo->pages = (uint16_t)(fo->pages + !fr->refs);
		fr->refs++;
		fr->flags |= exclusive;
	}
}

void folio_get_frame(struct frames *f, pfn_t pfn)
{
	struct folio *fo = folio_of(f, pfn);
	uint32_t before = idle_frames(fo);

	fo->pages = (uint16_t)(fo->pages + !frame_of(f, pfn)->refs++);
	own_more(f, fo, 1);
	settle(f, folio_first(f, pfn), before);
}

void folio_put_frame(struct frames *f, pfn_t pfn)
{
	struct folio *fo = folio_of(f, pfn);
	struct frame *fr = frame_of(f, pfn);
	uint32_t before = idle_frames(fo);

	VM_ASSERT(fr->refs);
	if (!--fr->refs) {
		fo->pages--;
		fr->flags &= (uint16_t)~FRAME_EXCLUSIVE;
	}
	own_less(f, fo, 1);
	settle(f, folio_first(f, pfn), before);
}

int folio_reusable(const struct frames *f, pfn_t pfn)
{
	const struct folio *fo = folio_of(f, pfn);

	if (fo->refs <= 1 || fo->shared || fo->mixed)
		return 0;
	return fo->owner[0] == f->space || fo->owner[1] == f->space;
}

/* ---- the end ---- */

void folio_dissolve(struct frames *f, pfn_t head)
{
	struct folio *fo = folio_of(f, head);

	VM_ASSERT(!fo->entire && fo->refs);
	if (fo->listed)
		list_remove(f, fo);
	f->idle -= idle_frames(fo);
	for (uint32_t i = 0; i < BLOCK_FRAMES; i++)
		frame_of(f, head + i)->flags &= (uint16_t)~FRAME_LARGE;
	for (uint32_t i = 0; i < BLOCK_FRAMES; i++)
		if (!frame_of(f, head + i)->refs)
			frame_free(f, head + i);
	f->events[VMEMU_EV_THP_SPLIT_PAGE]++;
}

int folio_reclaim(struct frames *f)
{
	pfn_t head = f->huge_zero;

	if (f->unmapped) {
		folio_dissolve(f, (f->unmapped - 1) * BLOCK_FRAMES);
		return 1;
	}
	if (head == NO_PFN || folio_of(f, head)->refs)
		return 0;
	f->huge_zero = NO_PFN;
	frame_free_block(f, head);
	return 1;
}
