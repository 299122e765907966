/* Door: traces and the fault log. See api.h. */
#include "api.h"
#include "faultlog.h"
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

int vmemu_machine_log(vmemu_machine *m, struct vmemu_fault *ring, uint64_t capacity, const uint32_t *owners,
		      uint64_t nowners)
{
	struct fault_log *log = &m->vm.log;

	enter(m);
	if (ring && log->ring)
		return leave(m, -EBUSY);
	if (ring && !capacity)
		return leave(m, -EINVAL);
	*log = (struct fault_log){ .ring = ring, .capacity = capacity, .owners = owners, .nowners = nowners };
	return leave(m, 0);
}

int vmemu_machine_log_sort(vmemu_machine *m, int clear, struct vmemu_log_info *out)
{
	struct fault_log *log = &m->vm.log;

	enter(m);
	if (log->ring)
		faultlog_sort(log);
	*out = (struct vmemu_log_info){ log->n, log->next };
	if (clear)
		log->n = log->at = 0;
	return leave(m, 0);
}

int vmemu_space_log(vmemu_machine *m, uint32_t space, uint64_t address, int access, int kind)
{
	struct space *s = enter_space(m, space);

	if (!s)
		return -EBADF;
	if (access < VMEMU_READ || access > VMEMU_FETCH || kind < VMEMU_NONE || kind >= VMEMU_NKINDS)
		return leave(m, -EINVAL);
	if (kind == VMEMU_OOM)
		fault_count(&m->vm, s, address, access, kind, 0);
	else if (m->vm.log.ring)
		faultlog_add(&m->vm, s, address, access, kind, 0);
	return leave(m, 0);
}
