/* Traces. See trace.h. */
#include "trace.h"

/* Work after which a run returns to its caller, who may have a signal to look at; well under 50 ms. A hit counts 1, a fault
 * FAULT_WORK for each page of 4 KiB that the entry maps then. */
#define SLICE_WORK (1 << 19)
#define FAULT_WORK 32

static int is_access(uint32_t operation)
{
	return operation <= VMEMU_FETCH;
}

/* What is wrong with a record that is a system call, given who is alive. */
static int check_call(const struct vmemu_record *r, uint8_t *alive, uint32_t nlabels)
{
	uint32_t born = r->operation == VMEMU_OP_FORK ? (uint32_t)r->address : r->pid;

	if (r->operation >= VMEMU_NOPERATIONS)
		return VMEMU_BAD_OPERATION;
	if (r->pid >= nlabels || (r->operation == VMEMU_OP_FORK && r->address >= nlabels))
		return VMEMU_BAD_LABEL;
	if (r->operation != VMEMU_OP_SPAWN && !alive[r->pid])
		return VMEMU_BAD_PID;
	switch (r->operation) {
	case VMEMU_OP_SPAWN:
	case VMEMU_OP_FORK:
		if (alive[born])
			return VMEMU_BAD_CHILD;
		alive[born] = 1;
		return 0;
	case VMEMU_OP_EXIT:
		alive[r->pid] = 0;
		return 0;
	case VMEMU_OP_WAIT:
		return 0;
	default:
		if (!r->size)
			return VMEMU_BAD_SIZE;
		return r->address & PAGE_MASK || r->address > TASK_SIZE || r->size > TASK_SIZE - r->address
			       ? VMEMU_BAD_ADDRESS
			       : 0;
	}
}

int trace_check(const struct vmemu_record *records, uint64_t n, uint8_t *alive, uint32_t nlabels, uint64_t *bad)
{
	for (uint64_t i = 0; i < n; i++) {
		const struct vmemu_record *r = &records[i];
		int wrong = 0;

		if (__builtin_expect(!is_access(r->operation), 0))
			wrong = check_call(r, alive, nlabels);
		else if (__builtin_expect(r->pid >= nlabels || !alive[r->pid] || !r->size, 0))
			wrong = r->pid >= nlabels ? VMEMU_BAD_LABEL : !alive[r->pid] ? VMEMU_BAD_PID : VMEMU_BAD_SIZE;
		if (__builtin_expect(wrong, 0)) {
			*bad = i;
			return wrong;
		}
	}
	return 0;
}

/* The rest of the accesses of one record, a page each; *work goes down. 0, or what stopped it, with run and trap filled in. */
static int record_pages(struct vm *vm, struct space *s, const struct vmemu_record *r, uint64_t *counts,
			struct vmemu_run *run, struct vmemu_trap *trap, int64_t *work)
{
	const uint64_t size = r->size;
	const int access = (int)r->operation;
	const pte_t *e;

	vm->frames.space = s->birth;
	while (run->bytes < size) {
		uint64_t va = r->address + run->bytes;
		int kind = access_one(vm, s, va, access, &e, trap);

		if (kind < 0) {
			trap->address = va;
			return -kind;
		}
		counts[kind]++;
		if ((uint32_t)kind > run->worst)
			run->worst = (uint32_t)kind;
		if (kind >= VMEMU_SEGV_MAPERR)
			return 0;
		run->bytes += min_u64(PAGE_BYTES - (va & PAGE_MASK), size - run->bytes);
		*work -= kind == VMEMU_NONE ? 1 : (int64_t)FAULT_WORK * pte_frames(*e);
		if (*work <= 0 && run->bytes < size) {
			trap->address = va;
			return VMEMU_TRAP_PAUSE;
		}
	}
	return 0;
}

int trace_run(struct vm *vm, const struct vmemu_record *records, uint64_t n, const uint32_t *spaces, uint32_t nlabels,
	      uint8_t *kinds, uint64_t *counts, struct vmemu_run *run, struct vmemu_trap *trap)
{
	int64_t work = SLICE_WORK;
	uint64_t hits = 0, i;
	int rc = 0;

	for (i = run->at; i < n; i++) {
		const struct vmemu_record r = records[i];
		uint32_t id = r.pid < nlabels ? spaces[r.pid] : 0;
		struct space *s = id < vm->capacity ? vm->spaces[id] : NULL;

		if (__builtin_expect(work <= 0, 0)) {
			rc = VMEMU_TRAP_PAUSE;
			break;
		}
		if (__builtin_expect(!is_access(r.operation), 0)) {
			rc = VMEMU_TRAP_CALL;
			break;
		}
		if (__builtin_expect(!s, 0)) {
			rc = -ESRCH;
			break;
		}
		if (__builtin_expect(!run->bytes && r.size <= PAGE_BYTES - (r.address & PAGE_MASK), 1) &&
		    access_hit(vm, s, r.address, (int)r.operation)) {
			hits++;
			work--;
			continue;
		}
		rc = record_pages(vm, s, &r, counts, run, trap, &work);
		if (rc)
			break;
		if (kinds)
			kinds[i] = (uint8_t)run->worst;
		run->bytes = 0;
		run->worst = VMEMU_NONE;
	}
	counts[VMEMU_NONE] += hits;
	run->at = i;
	return rc;
}
