/* Door: traces. See api.h. */
#include "api.h"
#include "trace.h"

int vmemu_trace_check(const struct vmemu_record *records, uint64_t n, uint8_t *alive, uint32_t nlabels, uint64_t *bad)
{
	return trace_check(records, n, alive, nlabels, bad);
}

int vmemu_machine_run(vmemu_machine *m, const struct vmemu_record *records, uint64_t n, const uint32_t *spaces,
		      uint32_t nlabels, uint8_t *kinds, uint64_t *counts, struct vmemu_run *run,
		      struct vmemu_trap *trap)
{
	enter(m);
	return leave(m, trace_run(&m->vm, records, n, spaces, nlabels, kinds, counts, run, trap));
}
