/* Accesses: bytes in and out, and batches of touches, each through the tables and, where they do not allow it, the faults.
 *
 * One way for all: find the entry; if it does not allow the access resolve the fault and look again; then set A (and D) and
 * move the bytes. There is no second path that writes.
 * Callers: api.
 */
#ifndef VMEMU_ACCESS_H
#define VMEMU_ACCESS_H

#include "mm.h"

/* Results as in vmemu_cdef.h: 0 or a trap reason with *trap filled in. */
int access_read(struct vm *vm, struct space *s, uint64_t va, void *buffer, uint64_t length, int access,
		struct vmemu_trap *trap);
int access_write(struct vm *vm, struct space *s, uint64_t va, const void *buffer, uint64_t length,
		 struct vmemu_trap *trap);
int access_touch(struct vm *vm, struct space *s, uint64_t va, uint64_t length, int access, uint64_t *counts,
		 struct vmemu_trap *trap);
int access_batch(struct vm *vm, struct space *s, const uint64_t *addresses, const uint8_t *writes, int access,
		 uint64_t n, uint8_t *kinds, struct vmemu_trap *trap);

#endif
