/* Page faults: what an access that the tables do not allow leads to.
 *
 *      fault_classify: (vma, object, entry, frame, access) ──► action      pure, holds every `if`
 *      fault_resolve:  action ──► effect on tables and frames ──► kind     one handler an action
 *
 * The access is made again by the caller after a fault was resolved, as a CPU does. A fault that cannot be decided here (a
 * file page to read, a stack to grow) is a trap: nothing was changed and the caller finds out what to do.
 * Sources: Linux mm/memory.c, do_user_addr_fault() to do_wp_page().
 * Callers: access.
 */
#ifndef VMEMU_FAULT_H
#define VMEMU_FAULT_H

#include "mm.h"

enum fault_action {
	ACT_NO_MAPPING,	       /* SEGV_MAPERR */
	ACT_FORBIDDEN,	       /* SEGV_ACCERR */
	ACT_GROW_STACK,	       /* trap */
	ACT_BEYOND_EOF,	       /* BUS_ADRERR, after mapping neighbours if it was a read */
	ACT_SPURIOUS,	       /* the entry allows it */
	ACT_MAP_ZERO,	       /* anonymous read */
	ACT_FILL,	       /* anonymous write, or read without a zero page */
	ACT_REPLACE_ZERO,      /* write on the zero page */
	ACT_SWAP_IN,	       /* the page is in a slot of the swap device */
	ACT_FILL_POOL,	       /* nothing is mapped where pages of a pool belong */
	ACT_WRITE_POOL,	       /* write on one that is write-protected */
	ACT_FILL_HUGE,	       /* anonymous write where a huge page fits */
	ACT_MAP_HUGE_ZERO,     /* anonymous read there */
	ACT_REPLACE_HUGE_ZERO, /* write on the huge zero page */
	ACT_SPLIT,	       /* write on a huge page that others may see: decide again for the page alone */
	ACT_COPY,	       /* write on a frame that others may see */
	ACT_REUSE,	       /* write on a frame of which this space is the last owner */
	ACT_MKWRITE,	       /* write on a present page of a shared mapping */
	ACT_MAP_CACHED,	       /* read of a file page or shared memory */
	ACT_COPY_CACHED,       /* private write on a file page that is not mapped */
	ACT_WRITE_CACHED,      /* shared write on a file page that is not mapped */
	NACTIONS
};

/* All that decides. */
struct fault_facts {
	const vma_t *vma; /* first that ends above the address, or NULL */
	uint64_t va;
	int access;	       /* enum vmemu_access */
	pte_t pte;	       /* 0 also where tables are missing */
	int table_missing;     /* no table maps the 2 MiB around the address */
	uint32_t frame_flags;  /* of the frame in pte */
	uint32_t frame_refs;   /* 1: this space's entry alone */
	uint64_t object_pages; /* size of the object in pages */
	uint32_t options;
};

/* A mapping with these flags permits the access (access_error()). */
int fault_allowed(uint64_t vm_flags, int access);
/* A mapping with these flags takes huge pages (thp_vma_allowable_order()). */
int fault_huge_enabled(uint64_t vm_flags, uint32_t options);
enum fault_action fault_classify(const struct fault_facts *facts);

/* A fault, and what the next one in the same space need not find out again: the mapping and the leaf table. */
struct fault {
	struct vm *vm;
	struct space *space;
	struct vmemu_trap *trap;
	struct walk walk;
	int known; /* vma and object are of the last fault and still true */
	vma_t vma; /* a copy: handlers may change the space's VMAs */
	struct object *object;
	uint64_t va;
	int access;
	int leaf_missing; /* the leaf table did not exist */
	uint64_t index;
	struct fault_facts facts; /* of va, or in a run of the page it is at */
	enum fault_action action;
	uint64_t limit;	 /* of a run: pages that it may go on with */
	uint64_t before; /* pages that it resolved before the last one, */
	int kind;	 /* all as this kind */
};

/* Faults of one space to come, during one call. */
void fault_begin(struct fault *f, struct vm *vm, struct space *s, struct vmemu_trap *trap);
/* Resolves the fault of one access at va, which is in the user half, and those of up to npages - 1 accesses to the pages after
 * it where they are of the same kind: f->before says how many, f->kind as what. Returns for the last an enum vmemu_kind >= 0
 * (counted), or, negated, an enum vmemu_trap_reason with trap->object and trap->index filled in. Fatal kinds and OOM change
 * nothing that counts. */
int fault_run(struct fault *f, uint64_t va, int access, uint64_t npages);
/* The same for one fault alone. */
int fault_resolve(struct vm *vm, struct space *s, uint64_t va, int access, struct vmemu_trap *trap);

/* Of a page that will be copied from, fetched ahead. */
#define FETCH_BYTES 256u

/* ---- between the fault files ---- */

/* A handler's result: something changed, decide again. */
#define FAULT_AGAIN (-100)

/* What there is to know of an entry that is to be classified. */
void fault_look(struct fault *f, pte_t e);
/* The mapping's identity, before its first anonymous frame. -ENOMEM. */
int fault_prepare_anon(struct fault *f);
/* Takes the path for itself; the entry may lose W and the frame EXCLUSIVE by that, never more. -ENOMEM. */
int fault_own(struct fault *f, struct leaf *leaf);
/* Kind of a new anonymous frame here: one that may be dropped need not be kept from the start (folio_add_new_anon_rmap()). */
static inline uint32_t fault_anon_flags(const struct fault *f)
{
	return f->vma.flags & VMEMU_VM_DROPPABLE ? FRAME_ANON | FRAME_LAZYFREE : FRAME_ANON;
}

/* The entry for a frame, accessed, dirty if the access is a write. */
pte_t fault_entry(const struct fault *f, pfn_t pfn, int writable);
/* A private copy of a page of an object where nothing is mapped. */
int fault_copy_from(struct fault *f, pfn_t from);
/* Handlers. */
int fault_copy(struct fault *f);
int fault_reuse(struct fault *f);
int fault_mkwrite(struct fault *f);
int fault_beyond_eof(struct fault *f);
int fault_map_cached(struct fault *f);
int fault_copy_cached(struct fault *f);
int fault_write_cached(struct fault *f);
int fault_fill(struct fault *f);
int fault_map_zero(struct fault *f);
int fault_swap_in(struct fault *f);
int fault_fill_huge(struct fault *f);
int fault_map_huge_zero(struct fault *f);
int fault_replace_huge_zero(struct fault *f);
int fault_split(struct fault *f);
int fault_fill_pool(struct fault *f);
int fault_write_pool(struct fault *f);
/* Free pages of a pool that are promised to somebody. */
uint64_t fault_pool_reserved(const struct vm *vm, int giant);

#endif
