/* Frames: the emulated RAM, handed out 4 KiB at a time and counted.
 *
 * RAM is one contiguous reservation, so pfn << 12 is an offset into it. It is cut into aligned blocks of 512 frames:
 * frames come last-in first-out from partly used blocks (they are warm in the cache), whole blocks are kept apart, and
 * tables and data do not share a block as long as whole blocks last. A block that empties may be given back to the host.
 *
 * Invariants: a record of zeros is a free frame never used; a free frame links through its record, never through its
 * contents; refs counts leaf entries, plus one for the object, the swap cache or the boot that holds the frame; the zero
 * page is not counted. For a table, refs counts parent entries and the spaces of which it is the root. A frame with FRAME_LARGE is part
 * of a folio (folio.h) and lives as long as that.
 * Callers: table, object, fault, fork, access, check.
 */
#ifndef VMEMU_FRAME_H
#define VMEMU_FRAME_H

#include "cgroup.h"

enum frame_flag {
	FRAME_USED = 1 << 0,
	FRAME_TABLE = 1 << 1,
	FRAME_ANON = 1 << 2,	  /* anonymous memory */
	FRAME_EXCLUSIVE = 1 << 3, /* anonymous, may be written without asking (PageAnonExclusive) */
	FRAME_FILE = 1 << 4,	  /* page cache of a file */
	FRAME_SHMEM = 1 << 5,	  /* page of shared memory or of an in-memory file */
	FRAME_ZERO = 1 << 6,	  /* the zero page */
	FRAME_DIRTY = 1 << 7,	  /* written other than through an entry, or through one that is gone */
	FRAME_MAJOR = 1 << 8,	  /* just read for a fault that has not been finished */
	FRAME_LARGE = 1 << 9,	  /* part of a folio */
	FRAME_HUGETLB = 1 << 10,  /* of a reserved pool */
	FRAME_RECLAIM = 1 << 11,  /* page cache: to be dropped once written; fault-around passes it over (PG_reclaim) */
	FRAME_SWAPCACHE = 1 << 11, /* the same bit, of anonymous and shared memory: in the swap cache (swap.h) */
	FRAME_MLOCKED = 1 << 12,   /* scratch of reclaim.c: mapped by a locked mapping */
	FRAME_KSM = 1 << 15,	   /* anonymous, the one frame for many equal pages: never written again */
	FRAME_FREEING = 1 << 13,   /* about to be FRAME_LAZYFREE; until then one reference is not an owner's */
	FRAME_LAZYFREE = 1 << 14,  /* anonymous, need not be kept once clean (PageSwapBacked is off) */
};

#define FRAME_OBJECT (FRAME_FILE | FRAME_SHMEM)

struct frame {
	uint32_t refs; /* free: index of the next free frame in the block, plus one */
	uint16_t flags;
	uint16_t cgroup; /* owner's memory cgroup; 0: root */
};

_Static_assert(sizeof(struct frame) == sizeof(uint64_t) && __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__,
	       "a record is a word; tables in RAM are those of x86");

enum block_kind { BLOCK_WHOLE = 0, BLOCK_DATA = 1, BLOCK_TABLES = 2 };

struct block {
	uint16_t used;	/* frames handed out */
	uint16_t fresh; /* frames from this index on were not handed out since the block was whole */
	uint16_t head;	/* last frame freed, index in the block plus one */
	uint8_t kind;
	uint8_t dirty; /* held from the host with old contents: fresh frames are not known to be zero */
	uint32_t prev; /* in the list of its kind; block index plus one */
	uint32_t next;
};

/* What is known of 512 frames handed out as one; see folio.h. */
struct folio {
	uint32_t refs;	   /* huge entries and leaf entries */
	uint32_t entire;   /* huge entries */
	uint16_t pages;	   /* frames with leaf entries */
	uint8_t shared;	   /* may be mapped by more than one space */
	uint8_t listed;	   /* in the list of folios partly unmapped */
	uint8_t mixed;	   /* a shared table that maps it was copied: whose its entries are is not known any more */
	uint32_t owner[2]; /* spaces by birth (mm.h), 0: none */
	uint32_t owned[2]; /* their entries */
	uint32_t prev;	   /* in the list of folios partly unmapped; block index plus one */
	uint32_t next;
	uint16_t offset;  /* blocks behind the first one, in a page of 1 GiB */
	uint8_t giant;	  /* 1 GiB; of a pool */
	uint8_t reserved; /* of a pool: taken from what a mapping had reserved */
	uint8_t cached;	  /* of a pool: a memory object holds it */
	uint8_t used;	  /* of a pool: its bytes are not known to be zero */
};

/* Huge pages set aside at boot, of 2 MiB [0] and of 1 GiB [1]; see pool.h. */
struct pool {
	uint64_t total; /* all in huge pages */
	uint64_t free;
	uint64_t consumed; /* in use on account of private reservations */
	uint64_t shared;   /* reserved by memory objects and not in use */
	uint32_t head;	   /* free ones; block index plus one */
};

#define NO_FRAME_LEFT UINT32_MAX

/* Slots of the swap device, and the frames that hold what is in one (the swap cache); see swap.h. */
struct swap {
	uint32_t *count; /* by slot: swap entries, and memory objects, that hold it */
	uint32_t *frame; /* by slot: the frame in the swap cache, plus one; of a free slot: the next free one */
	uint32_t *slot;	 /* by pfn: its slot, 0: not in the swap cache */
	uint16_t *payer; /* by slot: the cgroup that it is charged to */
	uint32_t nslots; /* numbered from 1 on; 0: no swap */
	uint32_t used;
	uint32_t cached; /* frames in the swap cache */
	uint32_t fresh;	 /* slots from this one on were never used */
	uint32_t head;	 /* last slot freed */
	uint8_t *memory; /* where slot 1 is, if the caller lends the device as memory, */
	int fd;		 /* or the file that it is; -1: neither, then the caller reads and writes */
	uint64_t ins;	 /* pages read since boot */
};

struct frames {
	uint8_t *ram; /* at a multiple of 2 MiB, so that a block can be a huge page of the host's */
	struct frame *of;
	struct block *blocks;
	struct folio *folios; /* by block; meaningful where the block is a folio */
	uint64_t nframes;
	uint64_t nblocks;
	uint64_t free;
	uint64_t anon; /* frames by kind, in use */
	uint64_t file;
	uint64_t shmem;
	uint64_t tables;
	uint64_t copied;
	uint64_t virgin;     /* blocks from this index on were never used */
	uint32_t partial[3]; /* heads by block kind; [BLOCK_WHOLE]: emptied blocks that still hold host memory */
	uint32_t returned;   /* head of the emptied blocks that were given back to the host */
	uint32_t retained;   /* length of partial[BLOCK_WHOLE] */
	uint32_t wanted; /* blocks given back to the host that were wanted again, up to RETAINED_BLOCKS of frame.c */
	struct pool pools[2];
	uint64_t idle;	   /* frames of folios that nothing maps */
	uint64_t huge;	   /* folios that huge entries map, the huge zero page aside */
	uint32_t unmapped; /* folios with such frames; block index plus one */
	uint32_t space;	   /* on whose behalf entries come and go now, by birth */
	pfn_t zero;	   /* the zero page or NO_PFN */
	pfn_t huge_zero;   /* first frame of the huge zero page or NO_PFN */
	uint32_t contents; /* data frames hold bytes */
	uint32_t filled;   /* frames zeroed or copied during this call */
	uint32_t stamped;  /* there are stamps */
	uint32_t payer;	   /* cgroup to which frames are charged during this call, 0: the root, that is none */
	uint32_t
		refused; /* why a frame could not be had during this call: the cgroup at its limit, or NO_FRAME_LEFT; 0: it could,
			    * or the host had no memory */
	struct host *host;
	uint64_t *events; /* the machine's, by enum vmemu_event */
	struct cgroups cgroups;
	uint64_t *stamps;  /* ages by pfn, [nframes] the last one given, for policies that need them; NULL: none does */
	uint64_t *recency; /* the same array if each access is to be stamped, else NULL */
	uint64_t step;	   /* between stamps of frames that are taken */
	struct swap swap;
};

/* Requires nframes >= 1. On failure -ENOMEM, nothing to undo. */
int frames_init(struct frames *f, struct host *host, uint64_t *events, uint64_t nframes, uint32_t contents);
void frames_destroy(struct frames *f);

/* A frame with one reference and FRAME_USED | flags. *zeroed (may be NULL) tells whether its bytes are known to be zero.
 * On failure -ENOMEM. */
int frame_alloc(struct frames *f, uint32_t flags, pfn_t *pfn, int *zeroed);
/* The same, its bytes zero. */
int frame_alloc_zeroed(struct frames *f, uint32_t flags, pfn_t *pfn);
/* The same, its bytes those of `from`; counted as a copy. */
int frame_alloc_copy(struct frames *f, uint32_t flags, pfn_t from, pfn_t *pfn);

/* The end of a call: the bytes of the frames that it filled are there for other threads too. */
void frames_settle(struct frames *f);

/* Free frames in blocks that are free as a whole. */
uint64_t frames_whole(const struct frames *f);

/* A whole block, each frame USED | flags without references; its bytes zero or as they are. -ENOMEM: there is no whole block. */
int frame_alloc_block(struct frames *f, uint32_t flags, int zeroed, pfn_t *head);
/* An aligned run of 512 blocks never used, the same way. -ENOMEM: there is none. */
int frame_alloc_giant(struct frames *f, uint32_t flags, pfn_t *head);
/* Drops a reference to a frame that is not a table; the last one frees it. */
void frame_put(struct frames *f, pfn_t pfn);
/* Frees a frame, or a block, whose references are all gone (tables, folios). */
void frame_free(struct frames *f, pfn_t pfn);
void frame_free_block(struct frames *f, pfn_t head);
/* In folio.c: one more leaf entry for a frame of a folio, and one less. */
void folio_get_frame(struct frames *f, pfn_t pfn);
void folio_put_frame(struct frames *f, pfn_t pfn);
/* In folio.c: one huge entry less. */
void folio_put(struct frames *f, pfn_t head);
/* What was taken for anonymous memory is shared memory. */
void frame_make_shared(struct frames *f, struct frame *fr);
/* In swap.c: nothing maps a frame of the swap cache any more. */
void swap_idle(struct frames *f, pfn_t pfn);
/* In folio.c: dissolves a folio that is partly unmapped (the deferred split list), or frees the unused huge zero page; 0: there
 * is neither. */
int folio_reclaim(struct frames *f);

static inline struct frame *frame_of(const struct frames *f, pfn_t pfn)
{
	VM_ASSERT(pfn < f->nframes);
	return &f->of[pfn];
}

static inline void frame_get(struct frames *f, pfn_t pfn)
{
	struct frame *fr = frame_of(f, pfn);

	if (__builtin_expect(fr->flags & FRAME_LARGE, 0))
		folio_get_frame(f, pfn);
	else
		fr->refs++;
}

/* An ordinary anonymous frame gets one more reference, and is exclusive no more; 0: it is something else, nothing done. Its record
 * goes in and out as one word, refs being the lower half. */
static inline int frame_share(struct frame *fr)
{
	uint64_t word;

	memcpy(&word, fr, sizeof(word));
	if ((word >> 32 & (FRAME_ANON | FRAME_LARGE)) != FRAME_ANON)
		return 0;
	word = (word + 1) & ~((uint64_t)FRAME_EXCLUSIVE << 32);
	memcpy(fr, &word, sizeof(word));
	return 1;
}

/* In the swap cache, which has a reference. */
static inline int frame_swapcached(const struct frame *fr)
{
	return fr->flags & FRAME_SWAPCACHE && fr->flags & (FRAME_ANON | FRAME_SHMEM);
}

/* The frame was accessed. */
static inline void frame_stamp(const struct frames *f, pfn_t pfn)
{
	if (__builtin_expect(f->recency != NULL, 0))
		f->recency[pfn] = ++f->recency[f->nframes];
}

/* An ordinary anonymous frame that others have too loses a reference; 0: it is something else, nothing done. */
static inline int frame_leave(struct frame *fr)
{
	if (fr->refs <= 1 || (fr->flags & (FRAME_ANON | FRAME_LARGE | FRAME_SWAPCACHE)) != FRAME_ANON)
		return 0;
	fr->refs--;
	return 1;
}

static inline uint8_t *frame_bytes(const struct frames *f, pfn_t pfn)
{
	return f->ram + ((uint64_t)pfn << PAGE_SHIFT);
}

#endif
