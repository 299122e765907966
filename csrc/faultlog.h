/* The fault log: every fault that is counted, in a ring that the caller lends.
 *
 * All that counts a fault goes through fault_count(), so nothing is counted that is not recorded. Off, it costs a branch.
 * The ring and the table of owners are the caller's memory, lent until the log is switched off.
 * Callers: fault, access, ksm, api.
 */
#ifndef VMEMU_FAULTLOG_H
#define VMEMU_FAULTLOG_H

#include "mm.h"

/* What a record says of an entry that maps no frame. */
#define NO_FRAME UINT32_MAX

/* Records a fault of `kind` at va that is over; `old` is the entry as it was. */
void faultlog_add(struct vm *vm, const struct space *s, uint64_t va, int access, int kind, pte_t old);
/* The ring's records in their order, the oldest in slot 0. */
void faultlog_sort(struct fault_log *log);

/* Counts a fault, and records it if the log is on. */
static inline void fault_count(struct vm *vm, struct space *s, uint64_t va, int access, int kind, pte_t old)
{
	s->faults[kind]++;
	vm->faults[kind]++;
	if (__builtin_expect(vm->log.ring != NULL, 0))
		faultlog_add(vm, s, va, access, kind, old);
}

#endif
