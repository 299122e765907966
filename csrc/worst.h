/* Who is worth killing: the task whose space holds most. Source: Linux mm/oom_kill.c, oom_badness() and select_bad_process().
 *
 * What a space is worth is remembered by its id and forgotten when somebody enters it (space_stale()), for under pressure this is
 * asked again and again and one space has changed each time.
 * Callers: api, check.
 */
#ifndef VMEMU_WORST_H
#define VMEMU_WORST_H

#include "mm.h"

/* As vmemu_machine_worst. */
int64_t worst_of(struct vm *vm, const struct vmemu_tasks *t);
/* Resident pages, those in swap, and page tables. */
uint64_t worst_points(const struct vm *vm, const struct space *s);

#endif
