/* Traces: recorded accesses of many processes, made one after the other.
 *
 * C makes the accesses; a record that is a system call (fork, exit, mmap, ...) is policy and stops the run, as a fault that
 * needs a decision does. There is no second path that writes: hits are access_hit(), all else is access_one().
 * The records and the table of spaces are lent by the caller, who may change them meanwhile; nothing here trusts them.
 * Callers: api.
 */
#ifndef VMEMU_TRACE_H
#define VMEMU_TRACE_H

#include "access.h"

/* Results as in vmemu_cdef.h. */
int trace_check(const struct vmemu_record *records, uint64_t n, uint8_t *alive, uint32_t nlabels, uint64_t *bad);
int trace_run(struct vm *vm, const struct vmemu_record *records, uint64_t n, const uint32_t *spaces, uint32_t nlabels,
	      uint8_t *kinds, uint64_t *counts, struct vmemu_run *run, struct vmemu_trap *trap);

/* Frees what runs have remembered. */
void trace_forget(struct vm *vm);

#endif
