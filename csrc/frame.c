/* Frames: allocation, reference counts, blocks. See frame.h for what holds. */
#define _GNU_SOURCE /* MAP_NORESERVE, MADV_HUGEPAGE */
#include "frame.h"

#include "page.h"

#include <sys/mman.h>

/* Emptied blocks that may keep their host memory. A block that empties is given back to the host, until some that were given
 * back are wanted again: as many are kept from then on, so that a loop of forks and exits does not pay for the host's page faults
 * each time (a fault into fresh host memory costs more than the copy it is for). Kept ones are the host's to take when it wants
 * them (MADV_FREE). */
#define RETAINED_BLOCKS 136u

static void *reserve(uint64_t size)
{
	void *p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	return p == MAP_FAILED ? NULL : p;
}

/* The same from a multiple of 2 MiB on. */
static void *reserve_blocks(uint64_t size)
{
	const uint64_t block = BLOCK_FRAMES * PAGE_BYTES;
	uint8_t *all = reserve(size + block);
	uint64_t before;

	if (!all)
		return NULL;
	before = -(uintptr_t)all & (block - 1);
	if (before)
		(void)munmap(all, before);
	(void)munmap(all + before + size, block - before);
	return all + before;
}

/* Records begin in the middle of a page. Frames of a mapping mostly follow each other as its entries do, so the record of a page
 * would be where its entry is, modulo 4096, or a little after it; and then the processor takes a load of one of the next entries for
 * one of the record just stored, and waits. Exit takes half as long again. */
#define RECORDS_OFFSET 2048u

static struct frame *reserve_records(uint64_t nframes)
{
	uint8_t *all = reserve(nframes * sizeof(struct frame) + RECORDS_OFFSET);

	return all ? (struct frame *)(void *)(all + RECORDS_OFFSET) : NULL;
}

int frames_init(struct frames *f, struct host *host, uint64_t *events, uint64_t nframes, uint32_t contents)
{
	memset(f, 0, sizeof(*f));
	f->host = f->cgroups.host = host;
	f->events = events;
	f->nframes = f->free = nframes;
	f->nblocks = (nframes + BLOCK_FRAMES - 1) / BLOCK_FRAMES;
	f->zero = f->huge_zero = NO_PFN;
	f->contents = contents;
	f->ram = reserve_blocks(nframes << PAGE_SHIFT);
	f->of = reserve_records(nframes);
	f->blocks = reserve(f->nblocks * sizeof(*f->blocks));
	f->folios = reserve(f->nblocks * sizeof(*f->folios));
	if (!f->ram || !f->of || !f->blocks || !f->folios) {
		frames_destroy(f);
		return -ENOMEM;
	}
	(void)madvise(f->ram, nframes << PAGE_SHIFT, MADV_HUGEPAGE); /* a host without THP is only slower */
	return 0;
}

void frames_destroy(struct frames *f)
{
	if (f->ram)
		munmap(f->ram, f->nframes << PAGE_SHIFT);
	if (f->of)
		munmap((uint8_t *)f->of - RECORDS_OFFSET, f->nframes * sizeof(*f->of) + RECORDS_OFFSET);
	if (f->blocks)
		munmap(f->blocks, f->nblocks * sizeof(*f->blocks));
	if (f->folios)
		munmap(f->folios, f->nblocks * sizeof(*f->folios));
	cgroups_destroy(&f->cgroups);
	memset(f, 0, sizeof(*f));
}

/* The last block of a machine may be short. */
static uint32_t block_frames(const struct frames *f, uint64_t b)
{
	return (uint32_t)min_u64(BLOCK_FRAMES, f->nframes - b * BLOCK_FRAMES);
}

static void list_push(struct frames *f, uint32_t *head, uint64_t b)
{
	struct block *blk = &f->blocks[b];

	blk->prev = 0;
	blk->next = *head;
	if (*head)
		f->blocks[*head - 1].prev = (uint32_t)b + 1;
	*head = (uint32_t)b + 1;
}

static void list_remove(struct frames *f, uint32_t *head, uint64_t b)
{
	struct block *blk = &f->blocks[b];

	if (blk->prev)
		f->blocks[blk->prev - 1].next = blk->next;
	else
		*head = blk->next;
	if (blk->next)
		f->blocks[blk->next - 1].prev = blk->prev;
	blk->prev = blk->next = 0;
}

/* Takes a block of which no frame is in use off its list; f->nblocks if there is none. */
static uint64_t take_whole(struct frames *f)
{
	uint64_t b;

	if (f->partial[BLOCK_WHOLE]) {
		b = f->partial[BLOCK_WHOLE] - 1;
		list_remove(f, &f->partial[BLOCK_WHOLE], b);
		f->retained--;
	} else if (f->returned) {
		b = f->returned - 1;
		list_remove(f, &f->returned, b);
		f->wanted += f->wanted < RETAINED_BLOCKS;
	} else {
		b = f->virgin < f->nblocks ? f->virgin++ : f->nblocks;
	}
	return b;
}

/* A block with a free frame for `kind`: one in use for it, else a whole one, else one in use for the other kind.
 * Requires f->free > 0. */
static uint64_t pick_block(struct frames *f, enum block_kind kind)
{
	uint64_t b;

	if (f->partial[kind])
		return f->partial[kind] - 1;
	b = take_whole(f);
	if (b == f->nblocks) {
		b = f->partial[kind == BLOCK_DATA ? BLOCK_TABLES : BLOCK_DATA];
		VM_ASSERT(b);
		return b - 1;
	}
	f->blocks[b].kind = (uint8_t)kind;
	list_push(f, &f->partial[kind], b);
	return b;
}

static void count(struct frames *f, uint32_t flags, uint64_t by)
{
	if (flags & FRAME_ANON)
		f->anon += by;
	else if (flags & FRAME_FILE)
		f->file += by;
	else if (flags & FRAME_SHMEM)
		f->shmem += by;
	else if (flags & FRAME_TABLE)
		f->tables += by;
}

static enum vmemu_charge charge_of(uint32_t flags)
{
	if (flags & FRAME_ANON)
		return VMEMU_CHARGE_ANON;
	if (flags & FRAME_TABLE)
		return VMEMU_CHARGE_TABLES;
	return flags & FRAME_SHMEM ? VMEMU_CHARGE_SHMEM : VMEMU_CHARGE_FILE;
}

/* There is a block of which no frame is in use; the end of RAM may be too short to be one. */
static int has_block(const struct frames *f)
{
	uint64_t brief = f->nframes / BLOCK_FRAMES;
	uint32_t heads[] = { f->partial[BLOCK_WHOLE], f->returned };

	for (int i = 0; i < 2; i++)
		if (heads[i] && (heads[i] - 1 != brief || f->blocks[brief].next))
			return 1;
	return f->virgin < brief;
}

/* Makes whoever pays pay for n frames, which are there then (mem_cgroup_charge()); -ENOMEM without them or at a limit. */
static int pay(struct frames *f, uint32_t flags, uint64_t n)
{
	uint32_t full;

	if (n > 1 && !has_block(f))
		return -ENOMEM;
	while (!f->free)
		if (!folio_reclaim(f)) {
			f->refused = NO_FRAME_LEFT;
			return -ENOMEM;
		}
	full = cgroup_charge(&f->cgroups, f->payer, n, charge_of(flags));
	if (full && n == 1)
		f->refused = full;
	return full ? -ENOMEM : 0;
}

uint64_t frames_whole(const struct frames *f)
{
	uint64_t n = f->nframes - min_u64(f->virgin * BLOCK_FRAMES, f->nframes);

	for (uint64_t b = 0; b < f->virgin; b++)
		n += f->blocks[b].used ? 0 : block_frames(f, b);
	return n;
}

static void stamp_new(struct frames *f, pfn_t pfn)
{
	f->stamps[pfn] = f->stamps[f->nframes] += f->step;
}

/* A free frame, of which there is one, for nobody yet. */
static pfn_t hand_out(struct frames *f, uint32_t flags, int *zeroed)
{
	struct block *blk;
	struct frame *fr;
	uint64_t b;
	uint32_t i;

	b = pick_block(f, flags & FRAME_TABLE ? BLOCK_TABLES : BLOCK_DATA);
	blk = &f->blocks[b];
	if (blk->head) {
		i = blk->head - 1u;
		blk->head = (uint16_t)f->of[b * BLOCK_FRAMES + i].refs;
		if (zeroed)
			*zeroed = 0;
	} else {
		i = blk->fresh++;
		if (zeroed)
			*zeroed = !blk->dirty;
	}
	if (++blk->used == block_frames(f, b))
		list_remove(f, &f->partial[blk->kind], b);
	fr = &f->of[b * BLOCK_FRAMES + i];
	VM_ASSERT(!(fr->flags & FRAME_USED));
	fr->refs = 1;
	fr->flags = (uint16_t)(FRAME_USED | flags);
	fr->cgroup = 0;
	f->free--;
	f->events[VMEMU_EV_PGALLOC]++;
	count(f, flags, 1);
	return (pfn_t)(b * BLOCK_FRAMES + i);
}

static inline int take(struct frames *f, uint32_t flags, pfn_t *pfn, int *zeroed)
{
	if (host_fails(f->host))
		return -ENOMEM;
	while (!f->free)
		if (!folio_reclaim(f)) {
			f->refused = NO_FRAME_LEFT;
			return -ENOMEM;
		}
	*pfn = hand_out(f, flags, zeroed);
	return 0;
}

/* The same where somebody pays or it gets an age. */
static __attribute__((noinline)) int take_marked(struct frames *f, uint32_t flags, pfn_t *pfn, int *zeroed)
{
	int rc = f->payer ? pay(f, flags, 1) : 0;

	if (rc)
		return rc;
	rc = take(f, flags, pfn, zeroed);
	if (rc && f->payer)
		cgroup_uncharge(&f->cgroups, f->payer, 1, charge_of(flags));
	if (rc)
		return rc;
	frame_of(f, *pfn)->cgroup = (uint16_t)f->payer;
	if (f->stamps)
		stamp_new(f, *pfn);
	return 0;
}

static inline int get(struct frames *f, uint32_t flags, pfn_t *pfn, int *zeroed)
{
	int marked = (f->payer | f->stamped) != 0;

	return __builtin_expect(marked, 0) ? take_marked(f, flags, pfn, zeroed) : take(f, flags, pfn, zeroed);
}

int frame_alloc(struct frames *f, uint32_t flags, pfn_t *pfn, int *zeroed)
{
	return get(f, flags, pfn, zeroed);
}

int frame_alloc_block(struct frames *f, uint32_t flags, int zeroed, pfn_t *head)
{
	struct block *blk;
	uint64_t b;

	if (host_fails(f->host))
		return -ENOMEM;
	if (f->payer && pay(f, flags, BLOCK_FRAMES)) /* whoever wanted it takes small ones */
		return -ENOMEM;
	b = take_whole(f);
	if (b < f->nblocks && block_frames(f, b) < BLOCK_FRAMES) { /* the end of RAM; there is one such block */
		uint64_t brief = b;

		b = take_whole(f);
		list_push(f, &f->partial[BLOCK_WHOLE], brief);
		f->retained++;
	}
	if (b == f->nblocks) {
		VM_ASSERT(!f->payer);
		return -ENOMEM;
	}
	blk = &f->blocks[b];
	blk->kind = BLOCK_DATA;
	blk->used = blk->fresh = BLOCK_FRAMES;
	*head = (pfn_t)(b * BLOCK_FRAMES);
	for (uint32_t i = 0; i < BLOCK_FRAMES; i++)
		f->of[*head + i] = (struct frame){ 0, (uint16_t)(FRAME_USED | flags), (uint16_t)f->payer };
	f->free -= BLOCK_FRAMES;
	f->events[VMEMU_EV_PGALLOC] += BLOCK_FRAMES;
	count(f, flags, BLOCK_FRAMES);
	for (uint32_t i = 0; f->stamps && i < BLOCK_FRAMES; i++)
		stamp_new(f, *head + i);
	if (zeroed && blk->dirty && f->contents)
		memset(frame_bytes(f, *head), 0, BLOCK_FRAMES * PAGE_BYTES);
	return 0;
}

int frame_alloc_giant(struct frames *f, uint32_t flags, pfn_t *head)
{
	uint64_t first = (f->virgin + TABLE_BLOCKS - 1) / TABLE_BLOCKS * TABLE_BLOCKS;

	if (host_fails(f->host) || (first + TABLE_BLOCKS) * BLOCK_FRAMES > f->nframes)
		return -ENOMEM;
	for (; f->virgin < first; f->virgin++)
		list_push(f, &f->returned, f->virgin);
	f->virgin = first + TABLE_BLOCKS;
	*head = (pfn_t)(first * BLOCK_FRAMES);
	for (uint64_t b = first; b < f->virgin; b++) {
		f->blocks[b].kind = BLOCK_DATA;
		f->blocks[b].used = f->blocks[b].fresh = BLOCK_FRAMES;
	}
	for (uint32_t i = 0; i < TABLE_BLOCKS * BLOCK_FRAMES; i++)
		f->of[*head + i] = (struct frame){ 0, (uint16_t)(FRAME_USED | flags), 0 };
	f->free -= TABLE_BLOCKS * BLOCK_FRAMES;
	f->events[VMEMU_EV_PGALLOC] += TABLE_BLOCKS * BLOCK_FRAMES;
	return 0;
}

/* ---- bytes ---- */

/* Frames filled in one call after which it is a flood: the caches hold no more of them. */
#define FLOOD 64u

/* A frame is about to be filled -> whether past the caches. */
static int streams(struct frames *f)
{
	return f->filled >= FLOOD || ++f->filled >= FLOOD;
}

void frames_settle(struct frames *f)
{
	if (f->filled >= FLOOD)
		page_stream_end();
	f->filled = 0;
}

int frame_alloc_zeroed(struct frames *f, uint32_t flags, pfn_t *pfn)
{
	int zeroed, rc = get(f, flags, pfn, &zeroed);

	if (rc || zeroed || !(f->contents || flags & FRAME_TABLE))
		return rc;
	if (!(flags & FRAME_TABLE) && streams(f))
		page_stream_zero(frame_bytes(f, *pfn));
	else
		memset(frame_bytes(f, *pfn), 0, PAGE_BYTES);
	return 0;
}

int frame_alloc_copy(struct frames *f, uint32_t flags, pfn_t from, pfn_t *pfn)
{
	int rc = get(f, flags, pfn, NULL);

	if (rc)
		return rc;
	if (f->contents && streams(f))
		page_stream_copy(frame_bytes(f, *pfn), frame_bytes(f, from));
	else if (f->contents)
		memcpy(frame_bytes(f, *pfn), frame_bytes(f, from), PAGE_BYTES);
	f->copied++;
	return 0;
}

/* The last frame of a block went: it is whole again. */
static void block_emptied(struct frames *f, uint64_t b)
{
	struct block *blk = &f->blocks[b];
	uint32_t n = block_frames(f, b);
	uint8_t *bytes;

	memset(&f->of[b * BLOCK_FRAMES], 0, n * sizeof(*f->of));
	blk->fresh = 0;
	blk->head = 0;
	blk->kind = BLOCK_WHOLE;
	blk->dirty = 1;
	bytes = frame_bytes(f, (pfn_t)(b * BLOCK_FRAMES));
	if (f->retained < f->wanted) {
		(void)madvise(bytes, (size_t)n << PAGE_SHIFT, MADV_FREE); /* where there is none it stays ours */
		list_push(f, &f->partial[BLOCK_WHOLE], b);
		f->retained++;
		return;
	}
	if (!madvise(bytes, (size_t)n << PAGE_SHIFT, MADV_DONTNEED))
		blk->dirty = 0;
	list_push(f, &f->returned, b);
}

void frame_free(struct frames *f, pfn_t pfn)
{
	uint64_t b = pfn / BLOCK_FRAMES;
	struct block *blk = &f->blocks[b];
	struct frame *fr = frame_of(f, pfn);

	VM_ASSERT(fr->flags & FRAME_USED && pfn != f->zero);
	if (__builtin_expect(fr->cgroup != 0, 0)) {
		cgroup_uncharge(&f->cgroups, fr->cgroup, 1, charge_of(fr->flags));
		fr->cgroup = 0;
	}
	count(f, fr->flags, (uint64_t)-1);
	f->free++;
	f->events[VMEMU_EV_PGFREE]++;
	if (blk->used == block_frames(f, b))
		list_push(f, &f->partial[blk->kind], b);
#ifdef VMEMU_JUNK
	if (f->contents || fr->flags & FRAME_TABLE)
		memset(frame_bytes(f, pfn), 0xa5, PAGE_BYTES);
#endif
	fr->refs = blk->head;
	fr->flags = 0;
	blk->head = (uint16_t)(pfn % BLOCK_FRAMES + 1);
	if (--blk->used == 0) {
		list_remove(f, &f->partial[blk->kind], b);
		block_emptied(f, b);
	}
}

void frame_make_shared(struct frames *f, struct frame *fr)
{
	f->anon--;
	f->shmem++;
	fr->flags = (uint16_t)((fr->flags & ~FRAME_ANON) | FRAME_SHMEM);
	if (fr->cgroup) {
		f->cgroups.of[fr->cgroup].kinds[VMEMU_CHARGE_ANON]--;
		f->cgroups.of[fr->cgroup].kinds[VMEMU_CHARGE_SHMEM]++;
	}
}

void frame_free_block(struct frames *f, pfn_t head)
{
	struct block *blk = &f->blocks[head / BLOCK_FRAMES];

	VM_ASSERT(blk->used == BLOCK_FRAMES && head != f->huge_zero);
	if (frame_of(f, head)->cgroup)
		cgroup_uncharge(&f->cgroups, frame_of(f, head)->cgroup, BLOCK_FRAMES,
				charge_of(frame_of(f, head)->flags));
	count(f, frame_of(f, head)->flags, -(uint64_t)BLOCK_FRAMES);
	f->free += BLOCK_FRAMES;
	f->events[VMEMU_EV_PGFREE] += BLOCK_FRAMES;
#ifdef VMEMU_JUNK
	if (f->contents)
		memset(frame_bytes(f, head), 0xa5, BLOCK_FRAMES * PAGE_BYTES);
#endif
	blk->used = 0;
	block_emptied(f, head / BLOCK_FRAMES);
}

void frame_put(struct frames *f, pfn_t pfn)
{
	struct frame *fr = frame_of(f, pfn);

	if (pfn == f->zero)
		return;
	if (__builtin_expect(fr->flags & FRAME_LARGE, 0)) {
		if (fr->flags & FRAME_HUGETLB)
			folio_put(f, pfn);
		else
			folio_put_frame(f, pfn);
		return;
	}
	VM_ASSERT(fr->refs > 0 && !(fr->flags & FRAME_TABLE));
	if (--fr->refs == 0)
		frame_free(f, pfn);
	else if (fr->refs == 1 && frame_swapcached(fr))
		swap_idle(f, pfn);
}
