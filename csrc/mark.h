/* Marks: what madvise(2) and /proc write on pages without mapping or unmapping anything.
 *
 *      guard        an entry that is a marker: any access is as if nothing were mapped
 *      soft-dirty   written since somebody asked to forget, known because that write-protected the page
 *      accessed     the CPU's bit, taken away
 *
 * Ranges are page aligned, inside the user half and inside one mapping; the door has checked.
 * Callers: api.
 */
#ifndef VMEMU_MARK_H
#define VMEMU_MARK_H

#include "mm.h"

/* Guards on all pages of [start, end), whose frames are dropped. -ENOMEM: nothing happened. */
int mark_guard(struct vm *vm, struct space *s, uint64_t start, uint64_t end);
/* No guards in [start, end) any more. -ENOMEM: nothing happened. */
int mark_unguard(struct vm *vm, struct space *s, uint64_t start, uint64_t end);

/* As vmemu_space_clear_refs. Requires 1 <= what <= 4. -ENOMEM: nothing happened. */
int mark_clear_refs(struct vm *vm, struct space *s, int what);

#endif
