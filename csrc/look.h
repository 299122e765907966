/* Looking without touching: mapcounts, pagemap, usage as smaps sums it, residency. Changes nothing but the mapcount cache.
 * Callers: api, check.
 */
#ifndef VMEMU_LOOK_H
#define VMEMU_LOOK_H

#include "mm.h"

/* Brings vm->mapcounts up to date where shared tables make it necessary. -ENOMEM. */
int look_mapcounts(struct vm *vm);
/* Page-table paths to a frame, 0 for the zero page and tables. Requires look_mapcounts. */
uint64_t look_mapcount(const struct vm *vm, pfn_t pfn);
/* Frames mapped at all and more than once. Requires look_mapcounts. */
void look_sharing(const struct vm *vm, uint64_t *mapped, uint64_t *shared);
/* In kpageflags' bits. Requires look_mapcounts. */
uint64_t look_frame_flags(const struct vm *vm, pfn_t pfn);
/* Frames that have all of `with` and none of `without`. Requires look_mapcounts. */
uint64_t look_count_frames(const struct vm *vm, uint64_t with, uint64_t without);
void look_mapcounts_free(struct vm *vm);

/* As in vmemu_cdef.h; pagemap and usage require look_mapcounts. */
void look_pagemap(const struct vm *vm, const struct space *s, uint64_t va, uint64_t npages, uint64_t *out);
void look_usage(const struct vm *vm, const struct space *s, uint64_t start, uint64_t end, struct vmemu_usage *out);
int look_translate(const struct vm *vm, const struct space *s, uint64_t va, struct vmemu_translation *out);
uint64_t look_peek(const struct vm *vm, const struct space *s, uint64_t va, uint8_t *to, uint64_t length);
int look_mincore(const struct vm *vm, const struct space *s, uint64_t start, uint64_t end, uint8_t *out);
void look_space(const struct vm *vm, const struct space *s, struct vmemu_space_info *out);
void look_size(const struct vm *vm, const struct space *s, struct vmemu_space_size *out);
void look_machine(const struct vm *vm, struct vmemu_machine_info *out);

#endif
