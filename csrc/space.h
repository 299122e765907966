/* Spaces: one address space is its VMAs and its page tables, changed together.
 *
 * Each change first takes what it needs (tables and VMA blocks of its own, memory) and then cannot fail: -ENOMEM leaves
 * everything as it was. Ranges are page aligned and inside the user half; the door has checked.
 * space_move is in move.c. Callers: api, fork.
 */
#ifndef VMEMU_SPACE_H
#define VMEMU_SPACE_H

#include "mm.h"

/* An empty space, numbered. -ENOMEM. */
int space_new(struct vm *vm, struct space **out);
void space_free(struct vm *vm, struct space *s);
/* In space_build.c. A new space with n mappings (in order, as they are but for their identities) and these words. -ENOMEM. */
int space_build(struct vm *vm, const vma_t *vmas, uint32_t n, const uint64_t *words, struct space **out);
/* Ends a space that came to nothing: its faults are not the machine's either. */
void space_abandon(struct vm *vm, struct space *s);
/* s takes the place of `old`, which ends: its faults are added, its no_thp goes over (begin_new_exec()). */
void space_succeed(struct vm *vm, struct space *s, struct space *old);

/* To be called before pages or mappings of [start, end) go: remembers how much there was (update_hiwater_rss(),
 * update_hiwater_vm()). */
void space_mark_peak(struct vm *vm, struct space *s, uint64_t start, uint64_t end);

/* Maps v, replacing what is there; v->anon is ignored. apart: as it is, its neighbours as they are. */
int space_map(struct vm *vm, struct space *s, const vma_t *v, int apart);
int space_unmap(struct vm *vm, struct space *s, uint64_t start, uint64_t end);
/* New flags for [start, end). -EINVAL unless it lies in one mapping. */
int space_reflag(struct vm *vm, struct space *s, uint64_t start, uint64_t end, uint64_t flags);
/* Makes two mappings of one that holds `at` inside (split_vma()). */
int space_split(struct vm *vm, struct space *s, uint64_t at);
/* Drops the pages of [start, end). */
int space_zap(struct vm *vm, struct space *s, uint64_t start, uint64_t end);
/* Moves [start, end), in one mapping, to `to`; the mapping there is `length` bytes. -EINVAL, -EEXIST if not a hole. */
int space_move(struct vm *vm, struct space *s, uint64_t start, uint64_t end, uint64_t to, uint64_t length, int keep);
/* Extends the mapping that ends (or starts: down) at edge into a hole, up (down) to `to`. -EINVAL, -EEXIST. */
int space_extend(struct vm *vm, struct space *s, uint64_t edge, uint64_t to, int down);

/* Takes pages [first, last) of an object out of every space: the page-cache pages, with `copies` the private copies too. */
void space_unmap_object(struct vm *vm, uint32_t object, uint64_t first, uint64_t last, int copies);

/* For move.c. Replaces the VMAs in [start, end) by `middle` (NULL: nothing), merging with the neighbours; tables stay. */
int space_replace(struct vm *vm, struct space *s, uint64_t start, uint64_t end, const vma_t *middle);
/* Some of [start, end) is mapped. */
int space_is_mapped(const struct space *s, uint64_t start, uint64_t end);
/* The range around [start, end) in which nothing else is mapped. */
void space_room_around(const struct space *s, uint64_t start, uint64_t end, uint64_t *floor, uint64_t *ceiling);

/* In space_pool.c. Pages of a pool in [start, end) stop counting for what the mappings there reserved, since these will go, or
 * count again, since they did not. */
void space_reserve_again(struct vm *vm, struct space *s, uint64_t start, uint64_t end, int consumed);

#endif
