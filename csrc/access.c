/* Accesses through the tables. See access.h. */
#include "access.h"

#include "fault.h"

/* Pages after which a call returns to its caller, who may have a signal to look at; well under 50 ms. */
#define SLICE_PAGES 16384u

int access_one(struct vm *vm, struct space *s, uint64_t va, int access, const pte_t **pte, struct vmemu_trap *trap)
{
	int kind;

	*pte = access_hit(vm, s, va, access);
	if (*pte)
		return VMEMU_NONE;
	if (va >= TASK_SIZE) {
		s->faults[VMEMU_SEGV_MAPERR]++;
		vm->faults[VMEMU_SEGV_MAPERR]++;
		return VMEMU_SEGV_MAPERR;
	}
	kind = fault_resolve(vm, s, va, access == VMEMU_GUP_WRITE ? VMEMU_WRITE : access, trap);
	if (kind < 0 || kind >= VMEMU_SEGV_MAPERR)
		return kind;
	*pte = access_hit(vm, s, va, access);
	VM_ASSERT(*pte); /* one fault makes the access possible */
	return kind;
}

/* Ends a call at `va` with what access_one said. */
static int stop(struct vmemu_trap *trap, uint64_t va, uint64_t done, int result)
{
	trap->address = va;
	trap->done = done;
	if (result < 0)
		return -result;
	trap->kind = (uint32_t)result;
	return VMEMU_TRAP_FAULT;
}

/* Bytes from va to the end of its page, at most `left`. */
static uint64_t chunk(uint64_t va, uint64_t left)
{
	return min_u64(PAGE_BYTES - (va & PAGE_MASK), left);
}

/* Bytes between a buffer and memory, page by page: out of memory into `to`, or, if that is NULL, into memory from `from`. */
static int transfer(struct vm *vm, struct space *s, uint64_t va, uint8_t *to, const uint8_t *from, uint64_t length,
		    int access, struct vmemu_trap *trap)
{
	uint64_t done = 0, n;
	uint32_t pages = 0;
	const pte_t *e;

	for (; done < length; done += n) {
		uint8_t *at;
		int kind;

		if (++pages > SLICE_PAGES)
			return stop(trap, va + done, done, -VMEMU_TRAP_PAUSE);
		kind = access_one(vm, s, va + done, access, &e, trap);
		if (kind < 0 || kind >= VMEMU_SEGV_MAPERR)
			return stop(trap, va + done, done, kind);
		n = chunk(va + done, length - done);
		at = frame_bytes(&vm->frames, leaf_pfn(*e, va + done)) + ((va + done) & PAGE_MASK);
		if (!vm->frames.contents) {
			if (to)
				memset(to + done, 0, n);
		} else if (to) {
			memcpy(to + done, at, n);
		} else {
			memcpy(at, from + done, n);
		}
	}
	trap->done = done;
	return 0;
}

int access_read(struct vm *vm, struct space *s, uint64_t va, void *buffer, uint64_t length, int access,
		struct vmemu_trap *trap)
{
	return transfer(vm, s, va, buffer, NULL, length, access, trap);
}

int access_write(struct vm *vm, struct space *s, uint64_t va, const void *buffer, uint64_t length,
		 struct vmemu_trap *trap)
{
	return transfer(vm, s, va, NULL, buffer, length, VMEMU_WRITE, trap);
}

int access_touch(struct vm *vm, struct space *s, uint64_t va, uint64_t length, int access, uint64_t *counts,
		 struct vmemu_trap *trap)
{
	uint64_t done = 0, bytes = 0;
	const pte_t *e;

	while (bytes < length) {
		int kind;

		if (done == SLICE_PAGES)
			return stop(trap, va + bytes, done, -VMEMU_TRAP_PAUSE);
		kind = access_one(vm, s, va + bytes, access, &e, trap);
		if (kind >= 0)
			counts[kind]++;
		if (kind < 0 || kind >= VMEMU_SEGV_MAPERR)
			return stop(trap, va + bytes, done, kind);
		bytes += chunk(va + bytes, length - bytes);
		done++;
	}
	trap->done = done;
	return 0;
}

int access_batch(struct vm *vm, struct space *s, const uint64_t *addresses, const uint8_t *writes, int access,
		 uint64_t n, uint8_t *kinds, struct vmemu_trap *trap)
{
	const pte_t *e;

	for (uint64_t i = 0; i < n; i++) {
		int kind;

		if (i == SLICE_PAGES)
			return stop(trap, addresses[i], i, -VMEMU_TRAP_PAUSE);
		if (writes)
			access = writes[i] ? VMEMU_WRITE : VMEMU_READ;
		kind = access_one(vm, s, addresses[i], access, &e, trap);
		if (kind < 0)
			return stop(trap, addresses[i], i, kind);
		kinds[i] = (uint8_t)kind;
	}
	trap->done = n;
	return 0;
}
