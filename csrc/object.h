/* Memory objects: what several mappings see. A file's page cache, or shared anonymous memory: page index -> frame.
 *
 * The map is a radix tree of 64-way nodes. An object lives as long as its creator's hold or a mapping (vma_users) needs it;
 * objects_reap frees those that nobody needs.
 * Invariants: each frame in the tree has one reference for being there and FRAME_FILE or FRAME_SHMEM; no page at or beyond
 * the end of the object (its size rounded up to a page).
 * Callers: fault, space, look, check, api.
 */
#ifndef VMEMU_OBJECT_H
#define VMEMU_OBJECT_H

#include "frame.h"
#include "vma.h"

struct object {
	uint32_t kind; /* enum vmemu_object_kind; 0: this id is not in use */
	uint32_t held; /* holds of the creator */
	uint64_t size; /* bytes */
	uint64_t nframes;
	uint64_t nswapped; /* pages in slots of the swap device; of shared memory only */
	void *root;	   /* radix node, or a frame at height 0 */
	uint32_t height;   /* levels of nodes */
};

struct objects {
	struct frames *frames;
	struct vma_env *env;
	struct object *of; /* by id, from 1 */
	uint32_t capacity;
	uint32_t count;
	uint32_t cursor; /* last id given out */
};

/* -ENOMEM. The new object is held. */
int object_new(struct objects *o, uint32_t kind, uint64_t size, uint32_t *id);
/* NULL if there is no such object. */
struct object *object_get(const struct objects *o, uint32_t id);
/* Requires a hold. */
void object_release(struct objects *o, uint32_t id);
/* Frees what lost its last user. Called by the door at the end of each call. */
void objects_reap(struct objects *o);
void objects_destroy(struct objects *o);

/* Pages from the first to the end of the object. */
static inline uint64_t object_pages(const struct object *obj)
{
	return (obj->size + PAGE_BYTES - 1) >> PAGE_SHIFT;
}

/* Pages charged to Committed_AS for its size. */
static inline uint64_t object_charge(const struct object *obj)
{
	return obj->kind & VMEMU_OBJ_ACCOUNT ? object_pages(obj) : 0;
}

/* Shared memory that is not charged for its size is charged page by page as it is used (shmem_acct_blocks()). */
static inline uint64_t object_page_charge(const struct object *obj)
{
	return (obj->kind & (VMEMU_OBJ_SHMEM | VMEMU_OBJ_HUGETLB | VMEMU_OBJ_ACCOUNT)) == VMEMU_OBJ_SHMEM;
}

/* Frame at a page index, or NO_PFN. */
pfn_t object_lookup(const struct object *obj, uint64_t index);
/* Index of the first page in memory at or after `index`; UINT64_MAX if there is none. */
uint64_t object_next(const struct object *obj, uint64_t index);
/* The same, of pages in slots of the swap device too. */
uint64_t object_next_any(const struct object *obj, uint64_t index);
/* Slot of the swap device where the page at an index is, 0 if it is in none. */
uint32_t object_slot(const struct object *obj, uint64_t index);
/* As object_lookup, but a page of the swap cache comes back first. */
pfn_t object_find(struct objects *o, struct object *obj, uint64_t index);
/* A slot, which the caller has had held, stands in for a frame, whose reference is the caller's then. */
void object_swap_out(struct object *obj, uint64_t index, uint32_t slot);
/* A frame stands in for a slot, which is let go of: one of the swap cache leaves that; another comes with a reference. */
void object_swap_in(struct objects *o, struct object *obj, uint64_t index, pfn_t pfn);
/* A zeroed frame for a page that has none. On failure -ENOMEM. */
int object_add(struct objects *o, struct object *obj, uint64_t index, pfn_t *pfn);
/* The same for an object of huge pages: a page of a pool, its reference the object's. index: that of its first 4 KiB. */
int object_add_huge(struct objects *o, struct object *obj, uint64_t index, pfn_t head);
/* Drops the pages [first, last) from the cache. */
void object_drop(struct objects *o, struct object *obj, uint64_t first, uint64_t last);

#endif
