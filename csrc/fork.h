/* Fork: one mechanism with a depth. What is not copied now is copied on demand, by table_own and by the fault handlers.
 *
 * COW follows Linux's dup_mmap() and copy_page_range(): which mappings a child gets, which of them have their entries copied
 * and which are left to fault. EAGER copies the anonymous frames as well; ON_DEMAND shares the root and the VMAs.
 * Callers: api.
 */
#ifndef VMEMU_FORK_H
#define VMEMU_FORK_H

#include "mm.h"

/* A child of `parent`. On failure -ENOMEM and no child; the parent may have lost write permission on pages it would have
 * shared (it gets it back with a fault that copies nothing), as on Linux. */
int fork_space(struct vm *vm, struct space *parent, int mode, struct space **out);

#endif
