/* VMAs: the mappings of one space, ordered, in blocks of up to 64 under a small index.
 *
 *      index ──► block ──► vma vma vma ...        index and blocks are shared after an on-demand fork and copied when
 *        └─────► block ──► vma ...                one side changes them; `inherited` remembers who is the child
 *
 * Lookup is a binary search in the index and one in a block. Each index entry keeps the block's largest hole (before each of
 * its VMAs), and each 32 entries keep the largest of theirs, so that the highest hole that fits is found in three short steps.
 *
 * Invariants: VMAs are disjoint, in address order, not empty, page aligned; sums are what a recount gives; a block counts as
 * one user of each VMA's object; anon identities matter within one space only. In a block that a child inherited the
 * identities are still the parent's: they are made fresh when the block is taken over.
 * Nothing here fails half-way: vmas_splice allocates first.
 * Callers: fault (find, set anon), space, fork, look, check.
 */
#ifndef VMEMU_VMA_H
#define VMEMU_VMA_H

#include "base.h"

#define VMA_BLOCK 64u
#define VMA_GROUP 32u /* entries of an index under one largest hole */
/* Bit of vma.anon: the identity came through fork, its chain is longer than one (list_is_singular() fails). */
#define ANON_FORKED (UINT64_C(1) << 63)

/* Flags that do not keep neighbours from merging: what they make together has them (VM_STICKY). */
#define VMA_STICKY ((uint64_t)(VMEMU_VM_MAYBE_GUARD | VMEMU_VM_SOFTDIRTY))

typedef struct vmemu_vma vma_t;
typedef struct vmemu_sums sums_t;

/* How many VMAs use each object, and which objects may have lost their last user. */
struct vma_users {
	struct vma_user {
		uint32_t count;
		uint32_t queued; /* in the list of candidates; next candidate plus one, or itself plus one at the end */
	} *of;
	uint32_t capacity;
	uint32_t head; /* candidate plus one */
};

struct vma_env {
	struct host *host;
	struct vma_users users;
	uint64_t next_anon;
	uint64_t account; /* pages charged by all spaces */
	uint64_t pool[2]; /* huge pages reserved by the mappings of all spaces; sums_t */
};

struct vma_block {
	uint32_t refs;
	uint16_t count;
	uint16_t capacity;
	vma_t v[];
};

struct vma_slot {
	uint64_t start; /* of the block's first VMA */
	uint64_t hole;	/* largest hole before one of the block's VMAs, bytes */
	struct vma_block *block;
	uint64_t inherited;
};

struct vma_index {
	uint32_t refs;
	uint32_t count;
	uint32_t capacity;
	sums_t sums;	/* over all its VMAs */
	uint64_t *hole; /* the largest of each VMA_GROUP slots; behind the slots */
	struct vma_slot slot[];
};

struct vmas {
	struct vma_index *index; /* NULL: no mappings */
	uint32_t inherited;	 /* the index is shared with, or left over from, the parent */
	uint32_t changes;	 /* grows whenever a mapping comes, goes or gets other flags */
};

/* A place in the order: block and position; block == index->count is the end. */
struct vma_pos {
	uint32_t block;
	uint32_t i;
};

/* First VMA that ends above va, or NULL. The pointer is good until the next change. */
const vma_t *vmas_find(const struct vmas *s, uint64_t va, struct vma_pos *pos);
/* VMA at a place, NULL at the end; its neighbours, NULL where there is none. */
const vma_t *vmas_at(const struct vmas *s, struct vma_pos pos);
const vma_t *vmas_prev(const struct vmas *s, struct vma_pos *pos);
const vma_t *vmas_next(const struct vmas *s, struct vma_pos *pos);

/* Brings start and hole of an index entry up to date; vma.c calls it for the blocks it changed and the one behind. */
void vma_slot_update(struct vma_index *ix, uint32_t k);
/* Brings the largest holes up to date: of the group of entry k, or of all from there on. */
void vma_group_update(struct vma_index *ix, uint32_t k);
void vma_groups_update(struct vma_index *ix, uint32_t k);
/* A hole of `length` bytes inside [low, high), aligned; the highest (top != 0) or the lowest. 0 or -ENOMEM. */
int vmas_hole(const struct vmas *s, uint64_t low, uint64_t high, uint64_t length, uint64_t align, int top,
	      uint64_t *out);

/* Takes over what vmas_share left shared around [start, end], so that identities there are this space's. -ENOMEM. */
int vmas_own(struct vma_env *env, struct vmas *s, uint64_t start, uint64_t end);
/* Replaces the `ndel` VMAs from pos on by the n <= 6 VMAs `with` (in order, disjoint, between the neighbours).
 * Requires vmas_own over the range. On failure -ENOMEM, nothing changed. */
int vmas_splice(struct vma_env *env, struct vmas *s, struct vma_pos pos, uint32_t ndel, const vma_t *with, uint32_t n);
/* Sets the identity, or the flags, of the VMA that holds va; neighbours do not merge. Requires vmas_own around it. */
void vmas_set_anon(struct vmas *s, uint64_t va, uint64_t anon);
void vmas_set_flags(struct vma_env *env, struct vmas *s, uint64_t va, uint64_t flags);
/* Gives the VMA that holds va an identity if it has none: with its first anonymous frame, a compatible neighbour's if that
 * has one, so that the two can merge later (__anon_vma_prepare(), find_mergeable_anon_vma()). -ENOMEM. */
int vmas_prepare_anon(struct vma_env *env, struct vmas *s, uint64_t va);

/* Makes `child`, which is empty, share everything with its parent. */
void vmas_share(struct vma_env *env, const struct vmas *parent, struct vmas *child);
/* Adds a VMA above all others. -ENOMEM. */
int vmas_append(struct vma_env *env, struct vmas *s, const vma_t *v);
void vmas_destroy(struct vma_env *env, struct vmas *s);

/* Linux's rule for two neighbours (can_vma_merge_left/right, is_mergeable_anon_vma). */
int vma_mergeable(const vma_t *left, const vma_t *right);
/* One of two neighbours may take over the other's identity (anon_vma_compatible()). */
int vma_adoptable(const vma_t *left, const vma_t *right);
/* Appends v to list[n], merging it with the last one where allowed; returns the new n. */
uint32_t vma_append_merged(vma_t *list, uint32_t n, const vma_t *v);

/* Adds (by = 1) or takes (by = -1) one VMA's share. */
void sums_add(sums_t *sums, const vma_t *v, uint64_t by);

static inline const sums_t *vmas_sums(const struct vmas *s)
{
	static const sums_t none;

	return s->index ? &s->index->sums : &none;
}

static inline uint64_t vma_pages(const vma_t *v)
{
	return (v->end - v->start) >> PAGE_SHIFT;
}

/* Pages of a mapping with HUGETLB are huge: it begins and ends with one. */
static inline int vma_aligned(const vma_t *v)
{
	uint64_t mask = ((uint64_t)HUGE_PAGES(v->flags & VMEMU_VM_GIANT) << PAGE_SHIFT) - 1;

	return !(v->flags & VMEMU_VM_HUGETLB) || !((v->start | v->end | v->pgoff << PAGE_SHIFT) & mask);
}

/* Page index in the object (or of the anonymous memory) that va maps. */
static inline uint64_t vma_index_of(const vma_t *v, uint64_t va)
{
	return v->pgoff + ((va - v->start) >> PAGE_SHIFT);
}

/* The part [start, end) of v. */
static inline vma_t vma_part(const vma_t *v, uint64_t start, uint64_t end)
{
	vma_t part = *v;

	part.pgoff = vma_index_of(v, start);
	part.start = start;
	part.end = end;
	return part;
}

static inline uint64_t env_new_anon(struct vma_env *env)
{
	return ++env->next_anon;
}

#endif
