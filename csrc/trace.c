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
	vm->frames.payer = s->cgroup;
	space_stale(vm, s);
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

/* A leaf table that a record came by. It is where it was as long as tables.structure is what it was; until then every walk of
 * that space to those 2 MiB ends in it. */
struct trace_way {
	uint64_t range; /* number of the 2 MiB */
	uint64_t structure;
	uintptr_t entries; /* the table; in bit 0 whether the tables above let its entries be written */
	uint32_t space;	   /* 0: none */
};

#define NWAYS 4096u

static struct trace_way *way_of(const struct vm *vm, uint32_t space, uint64_t va)
{
	return &vm->ways[(space * 8 + (uint32_t)(va >> LEVEL_SHIFT(2))) % NWAYS];
}

/* A number that somebody else may change meanwhile, read once. */
static uint32_t once(const uint32_t *number)
{
	return *(const volatile uint32_t *)number;
}

static uint32_t space_of(const struct vmemu_record *r, const uint32_t *spaces, uint32_t nlabels)
{
	uint32_t label = once(&r->pid);

	return label < nlabels ? spaces[label] : 0;
}

static int in_one_page(const struct vmemu_record *r)
{
	return r->size - 1 < PAGE_BYTES - (r->address & PAGE_MASK);
}

/* How many of n records from r on are accesses that the entries allow and leave no mark that is not there already. */
static uint64_t count_plain(const struct vm *vm, const struct vmemu_record *r, uint64_t n, const uint32_t *spaces,
			    uint32_t nlabels)
{
	static const pte_t plain[] = {
		[VMEMU_READ] = PTE_P | PTE_A,
		[VMEMU_WRITE] = PTE_P | PTE_A | PTE_W | PTE_D,
	};
	const uint64_t structure = vm->tables.structure;

	for (uint64_t i = 0; i < n; i++, r++) {
		uint32_t id = space_of(r, spaces, nlabels), operation = once(&r->operation);
		uint64_t va = r->address;
		const struct trace_way *way = way_of(vm, id, va);
		const pte_t *entries = (const pte_t *)(way->entries & ~(uintptr_t)1);

		if (!id || way->space != id || way->range != va >> LEVEL_SHIFT(2) || way->structure != structure ||
		    operation > VMEMU_WRITE || !in_one_page(r) || operation & ~way->entries ||
		    plain[operation] & ~entries[pte_index(va, 1)])
			return i;
	}
	return n;
}

/* access_hit, remembering the leaf table. */
static int hit(const struct vm *vm, const struct space *s, uint64_t va, int access)
{
	int writable = 0;
	pte_t *e = va < TASK_SIZE ? table_walk(&vm->tables, s->root, va, &writable) : NULL;

	if (e && !pte_huge(*e))
		*way_of(vm, s->id, va) = (struct trace_way){
			.range = va >> LEVEL_SHIFT(2),
			.structure = vm->tables.structure,
			.entries = (uintptr_t)(e - pte_index(va, 1)) | (uintptr_t)writable,
			.space = s->id,
		};
	if (!e || !access_allowed(*e, writable, access))
		return 0;
	access_mark(vm, e, access);
	frame_stamp(&vm->frames, pte_pfn(*e));
	return 1;
}

int trace_run(struct vm *vm, const struct vmemu_record *records, uint64_t n, const uint32_t *spaces, uint32_t nlabels,
	      uint8_t *kinds, uint64_t *counts, struct vmemu_run *run, struct vmemu_trap *trap)
{
	int64_t work = SLICE_WORK;

	if (run->at < n && !vm->ways && !(vm->ways = host_zalloc(&vm->host, NWAYS * sizeof(*vm->ways))))
		return -ENOMEM;
	while (run->at < n) {
		const struct vmemu_record *r = &records[run->at];
		struct space *s;
		uint32_t id;
		int rc;

		if (work <= 0)
			return VMEMU_TRAP_PAUSE;
		if (!run->bytes) {
			uint64_t most = min_u64(n - run->at, (uint64_t)work);
			uint64_t hits = vm->frames.recency ? 0 : count_plain(vm, r, most, spaces, nlabels);

			counts[VMEMU_NONE] += hits;
			work -= (int64_t)hits;
			run->at += hits;
			if (run->at == n || work <= 0)
				continue;
			r += hits;
		}
		if (!is_access(once(&r->operation)))
			return VMEMU_TRAP_CALL;
		id = space_of(r, spaces, nlabels);
		s = id < vm->capacity ? vm->spaces[id] : NULL;
		if (!s)
			return -ESRCH;
		if (!run->bytes && in_one_page(r) && hit(vm, s, r->address, (int)r->operation)) {
			counts[VMEMU_NONE]++;
			work--;
			run->at++;
			continue;
		}
		rc = record_pages(vm, s, r, counts, run, trap, &work);
		if (rc)
			return rc;
		if (kinds)
			kinds[run->at] = (uint8_t)run->worst;
		run->at++;
		run->bytes = 0;
		run->worst = VMEMU_NONE;
	}
	return 0;
}

void trace_forget(struct vm *vm)
{
	host_free(&vm->host, vm->ways, NWAYS * sizeof(*vm->ways));
	vm->ways = NULL;
}
