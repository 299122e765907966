/* Frames: the emulated RAM, handed out 4 KiB at a time and counted.
 *
 * RAM is one contiguous reservation, so pfn << 12 is an offset into it. It is cut into aligned blocks of 512 frames:
 * frames come last-in first-out from partly used blocks (they are warm in the cache), whole blocks are kept apart, and
 * tables and data do not share a block as long as whole blocks last. A block that empties may be given back to the host.
 *
 * Invariants: a record of zeros is a free frame never used; a free frame links through its record, never through its
 * contents; refs counts leaf entries, plus one for the object or the boot that holds the frame; the zero page is not
 * counted. For a table, refs counts parent entries and the spaces of which it is the root.
 * Callers: table, object, fault, fork, access, check.
 */
#ifndef VMEMU_FRAME_H
#define VMEMU_FRAME_H

#include "base.h"

enum frame_flag {
	FRAME_USED = 1 << 0,
	FRAME_TABLE = 1 << 1,
	FRAME_ANON = 1 << 2,	  /* anonymous memory */
	FRAME_EXCLUSIVE = 1 << 3, /* anonymous, may be written without asking (PageAnonExclusive) */
	FRAME_FILE = 1 << 4,	  /* page cache of a file */
	FRAME_SHMEM = 1 << 5,	  /* page of shared memory or of an in-memory file */
	FRAME_ZERO = 1 << 6,	  /* the zero page */
	FRAME_DIRTY = 1 << 7,	  /* page cache: written other than through an entry */
	FRAME_MAJOR = 1 << 8,	  /* just read for a fault that has not been finished */
};

#define FRAME_OBJECT (FRAME_FILE | FRAME_SHMEM)

struct frame {
	uint32_t refs; /* free: index of the next free frame in the block, plus one */
	uint16_t flags;
	uint16_t cgroup; /* owner's memory cgroup; 0: root */
};

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

struct frames {
	uint8_t *ram;
	struct frame *of;
	struct block *blocks;
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
	pfn_t zero;	     /* the zero page or NO_PFN */
	uint32_t contents;   /* data frames hold bytes */
	struct host *host;
	uint64_t *events; /* the machine's, by enum vmemu_event */
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

/* Free frames in blocks that are free as a whole. */
uint64_t frames_whole(const struct frames *f);

/* Drops a reference to a frame that is not a table; the last one frees it. */
void frame_put(struct frames *f, pfn_t pfn);
/* Frees a frame whose references are all gone (tables). */
void frame_free(struct frames *f, pfn_t pfn);

static inline struct frame *frame_of(const struct frames *f, pfn_t pfn)
{
	VM_ASSERT(pfn < f->nframes);
	return &f->of[pfn];
}

static inline void frame_get(struct frames *f, pfn_t pfn)
{
	frame_of(f, pfn)->refs++;
}

static inline uint8_t *frame_bytes(const struct frames *f, pfn_t pfn)
{
	return f->ram + ((uint64_t)pfn << PAGE_SHIFT);
}

#endif
