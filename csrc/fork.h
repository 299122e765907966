/* Fork: one mechanism with a depth. What is not copied now is copied on demand, by table_own and by the fault handlers.
 *
 * COW follows Linux's dup_mmap() and copy_page_range(): which mappings a child gets, which of them have their entries copied
 * and which are left to fault. EAGER copies the anonymous frames as well; ON_DEMAND shares the root and the VMAs.
 * Callers: api.
 */
#ifndef VMEMU_FORK_H
#define VMEMU_FORK_H

#include "mm.h"

#define FORK_PAUSED 1
/* Work after which a fork returns to its caller, who may have a signal to look at: well under 50 ms. One for an entry. */
#define FORK_SLICE (INT64_C(1) << 21)

/* A child of `parent`. FORK_PAUSED: it is not complete, `work` having been done; fork_more goes on until it returns 0. On failure
 * -ENOMEM, or -EAGAIN if the parent's mappings have changed meanwhile, and no child; the parent may have lost write permission on pages it would have
 * shared (it gets it back with a fault that copies nothing), as on Linux. */
int fork_space(struct vm *vm, struct space *parent, int mode, int64_t work, struct space **out);
int fork_more(struct vm *vm, struct space *parent, struct space *child, int mode, int64_t work);

#endif
