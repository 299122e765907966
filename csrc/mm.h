/* The two records that tie the layers together: a space and the machine. Data only, no functions.
 *
 * Included by fault and everything above it. A space owns its root table (one reference) and its VMAs; the machine owns all.
 */
#ifndef VMEMU_MM_H
#define VMEMU_MM_H

#include "object.h"
#include "table.h"

struct space {
	pfn_t root; /* NO_PFN until something is mapped in */
	uint32_t id;
	uint32_t birth; /* its number among all spaces that ever were; ids are given out again */
	struct vmas vmas;
	uint32_t no_thp; /* PR_SET_THP_DISABLE */
	uint32_t cgroup; /* pays for its frames; 0: the root */
	uint64_t ksm;	 /* its number among those that ever had a mergeable mapping, 0: never had one */
	uint64_t faults[VMEMU_NKINDS];
	uint64_t words[VMEMU_NWORDS]; /* the caller's, copied by fork */
	uint64_t peak_rss;	      /* most pages resident and mapped up to the last time some were about to go */
	uint64_t peak_total;	      /* (hiwater_rss, hiwater_vm) */
	/* while fork makes it: the parent by birth, as many changes as its mappings had seen; what lies below is copied, */
	uint32_t parent;
	uint32_t changes;
	uint64_t forked;
	uint64_t copied; /* and so many frames */
};

/* Exact mapcounts, made by one pass over all tables and kept until something changes. */
struct mapcounts {
	uint32_t *of; /* by pfn; NULL until first needed */
	uint64_t generation;
	int valid;
};

/* Frames on their way to be FRAME_LAZYFREE: a mark is seen when a batch is worked off (lru_lazyfree()). */
#define LAZY_BATCH 31u

struct lazy {
	pfn_t of[LAZY_BATCH];
	uint32_t n;
};

/* Where faults are recorded; see faultlog.h. */
struct fault_log {
	struct vmemu_fault *ring; /* NULL: off */
	uint64_t capacity;	  /* in records */
	uint64_t at;		  /* slot of the next one */
	uint64_t n;		  /* records in the ring */
	uint64_t next;		  /* sequence number of the next one */
	const uint32_t *owners;	  /* process by space id, to be recorded */
	uint64_t nowners;
};

/* When frames are reclaimed, and which; see reclaim.h. */
struct reclaim_state {
	uint64_t low;		      /* fewer free frames than that stop an access; 0: none do */
	uint64_t stalled;	      /* frames given back since boot when nothing more could be reclaimed, */
	uint64_t floor;		      /* and free ones below which it is tried again all the same */
	uint8_t *marks;		      /* by pfn, scratch of one run; NULL until first needed */
	uint32_t policy;	      /* enum vmemu_policy */
	uint32_t runs;		      /* made so far */
	struct vmemu_victim *pending; /* handed out, until it is heard what became of them; NULL until first needed */
	uint32_t npending, cap;	      /* of how many there is room for */
	uint64_t random;	      /* state of the generator */
	pfn_t hand[2];		      /* where the clock is, for anonymous memory and for files */
	uint64_t counts[VMEMU_NRECLAIM];
};

/* Frames given back that are worth another attempt at reclaim where the last one failed. */
#define STALL_FREED 32u

struct trace_way;

struct vm {
	struct host host;
	struct frames frames;
	struct tables tables;
	struct vma_env env;
	struct objects objects;
	struct mapcounts mapcounts;
	struct lazy lazy;
	struct fault_log log;
	uint32_t *worth; /* by space id: what worst.c knows it to be worth, plus one; 0: it may have changed. NULL until
				 * first needed, as long as `spaces` after that */
	struct trace_way *ways; /* what trace.c remembers of leaf tables; NULL until first needed */
	struct space **spaces;	/* by id; NULL where free, [0] never used */
	uint32_t capacity;	/* of spaces */
	uint32_t nspaces;
	uint32_t cursor; /* last id given out */
	uint32_t births; /* spaces that ever were */
	uint64_t ksm;	 /* spaces that ever had a mergeable mapping */
	uint32_t options;
	uint32_t around; /* pages that a read fault on a file may map */
	uint64_t faults[VMEMU_NKINDS];
	uint64_t events[VMEMU_NEVENTS]; /* since boot */
	struct reclaim_state reclaim;
};

/* What a space holds is about to change: what it is worth is not known any more. */
static inline void space_stale(const struct vm *vm, const struct space *s)
{
	if (__builtin_expect(vm->worth != NULL, 0))
		vm->worth[s->id] = 0;
}

/* The same of all spaces. */
static inline void spaces_stale(const struct vm *vm)
{
	if (vm->worth)
		memset(vm->worth, 0, vm->capacity * sizeof(*vm->worth));
}

#endif
