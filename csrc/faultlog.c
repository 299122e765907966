/* The fault log. See faultlog.h. */
#include "faultlog.h"

static uint32_t frame_at(pte_t e, uint64_t va)
{
	return pte_mapped(e) ? leaf_pfn(e, va) : NO_FRAME;
}

void faultlog_add(struct vm *vm, const struct space *s, uint64_t va, int access, int kind, pte_t old)
{
	struct fault_log *log = &vm->log;
	int writable;
	const pte_t *e = va < TASK_SIZE ? table_walk(&vm->tables, s->root, va, &writable) : NULL;

	log->ring[log->at] = (struct vmemu_fault){
		.sequence = log->next++,
		.address = va,
		.pid = s->id < log->nowners ? log->owners[s->id] : 0,
		.kind = (uint16_t)kind,
		.access = (uint16_t)access,
		.old_frame = frame_at(old, va),
		.new_frame = e ? frame_at(*e, va) : NO_FRAME,
	};
	log->at = log->at + 1 < log->capacity ? log->at + 1 : 0;
	log->n += log->n < log->capacity;
}

static void reverse(struct vmemu_fault *from, uint64_t n)
{
	for (uint64_t i = 0; i < n / 2; i++) {
		struct vmemu_fault one = from[i];

		from[i] = from[n - 1 - i];
		from[n - 1 - i] = one;
	}
}

void faultlog_sort(struct fault_log *log)
{
	if (log->n < log->capacity || !log->at)
		return;
	reverse(log->ring, log->at);
	reverse(log->ring + log->at, log->capacity - log->at);
	reverse(log->ring, log->capacity);
	log->at = 0;
}
