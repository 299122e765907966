/* Pools of huge pages. See pool.h. Source: Linux mm/hugetlb.c. */
#include "pool.h"

static void push(struct frames *f, pfn_t head)
{
	struct folio *fo = folio_of(f, head);
	struct pool *p = &f->pools[fo->giant];

	fo->next = p->head;
	p->head = head / BLOCK_FRAMES + 1;
	p->free++;
}

int pool_grow(struct frames *f, int giant)
{
	const uint32_t flags = FRAME_LARGE | FRAME_HUGETLB;
	pfn_t head;
	int rc = giant ? frame_alloc_giant(f, flags, &head) : frame_alloc_block(f, flags, 1, &head);

	if (rc)
		return rc;
	for (uint16_t b = 0; b < (giant ? TABLE_BLOCKS : 1); b++)
		f->folios[head / BLOCK_FRAMES + b] = (struct folio){ .offset = b, .giant = (uint8_t)giant };
	f->pools[giant].total++;
	push(f, head);
	return 0;
}

pfn_t pool_take(struct frames *f, int giant)
{
	struct pool *p = &f->pools[giant];
	pfn_t head = (p->head - 1) * BLOCK_FRAMES;
	struct folio *fo = folio_of(f, head);

	VM_ASSERT(p->free && p->head);
	p->head = fo->next;
	p->free--;
	fo->next = 0;
	if (fo->used && f->contents)
		memset(frame_bytes(f, head), 0, (uint64_t)folio_frames(fo) << PAGE_SHIFT);
	fo->used = 1;
	return head;
}

void pool_account(struct frames *f, pfn_t head, int reserved)
{
	struct folio *fo = folio_of(f, head);

	f->pools[fo->giant].consumed += (uint64_t)reserved - fo->reserved;
	fo->reserved = (uint8_t)reserved;
}

void pool_give(struct frames *f, pfn_t head)
{
	struct folio *fo = folio_of(f, head);

	VM_ASSERT(!fo->refs && !fo->entire && !fo->cached);
	pool_account(f, head, 0);
	frame_of(f, head)->flags = FRAME_USED | FRAME_LARGE | FRAME_HUGETLB;
	fo->owner[0] = fo->owner[1] = fo->owned[0] = fo->owned[1] = 0;
	fo->shared = fo->mixed = 0;
	push(f, head);
#ifdef VMEMU_JUNK
	if (f->contents)
		memset(frame_bytes(f, head), 0xa5, (uint64_t)folio_frames(fo) << PAGE_SHIFT);
#endif
}
