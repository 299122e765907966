/* Door: machines. See api.h. */
#include "api.h"

#include "check.h"
#include "look.h"
#include "reclaim.h"
#include "space.h"
#include "swap.h"
#include "trace.h"

vmemu_machine *vmemu_machine_new(uint64_t nframes, uint32_t options, uint32_t around)
{
	vmemu_machine *m;

	if (!nframes || nframes >= NO_PFN)
		return NULL;
	m = calloc(1, sizeof(*m));
	if (!m)
		return NULL;
	m->vm.options = options;
	m->vm.around = around;
	m->vm.env.host = &m->vm.host;
	if (frames_init(&m->vm.frames, &m->vm.host, m->vm.events, nframes, options & VMEMU_OPT_CONTENTS)) {
		free(m);
		return NULL;
	}
	m->vm.objects.frames = &m->vm.frames;
	m->vm.objects.env = &m->vm.env;
	if (tables_init(&m->vm.tables, &m->vm.frames) || pthread_mutex_init(&m->lock, NULL)) {
		tables_destroy(&m->vm.tables);
		frames_destroy(&m->vm.frames);
		free(m);
		return NULL;
	}
	return m;
}

void vmemu_machine_free(vmemu_machine *m)
{
	struct vm *vm = &m->vm;

	/* nobody is inside: whoever has m keeps it alive. The lock is not touched, for after a fork of the host's process it
	 * may be held by a thread that is not there. */
	for (uint32_t id = 1; id < vm->capacity; id++)
		if (vm->spaces[id])
			space_free(vm, vm->spaces[id]);
	host_free(&vm->host, vm->spaces, vm->capacity * sizeof(*vm->spaces));
	host_free(&vm->host, vm->worth, vm->capacity * sizeof(*vm->worth));
	objects_destroy(&vm->objects);
	look_mapcounts_free(vm);
	trace_forget(vm);
	reclaim_destroy(vm);
	swap_destroy(&vm->frames);
	tables_destroy(&vm->tables);
	frames_destroy(&vm->frames);
	free(m);
}

int vmemu_machine_info(vmemu_machine *m, struct vmemu_machine_info *out)
{
	enter(m);
	look_machine(&m->vm, out);
	return leave(m, 0);
}

int vmemu_machine_faults(vmemu_machine *m, uint64_t *out)
{
	enter(m);
	memcpy(out, m->vm.faults, sizeof(m->vm.faults));
	return leave(m, 0);
}

int vmemu_machine_events(vmemu_machine *m, uint64_t *out)
{
	enter(m);
	memcpy(out, m->vm.events, sizeof(m->vm.events));
	return leave(m, 0);
}

int vmemu_machine_zero_page(vmemu_machine *m, uint64_t *pfn)
{
	struct frames *f = &m->vm.frames;
	pfn_t zero;
	int rc;

	enter(m);
	if (f->zero != NO_PFN || !(m->vm.options & VMEMU_OPT_ZERO_PAGE))
		return leave(m, -EINVAL);
	rc = frame_alloc_zeroed(f, FRAME_ZERO, &zero);
	if (!rc)
		*pfn = f->zero = zero;
	return leave(m, rc);
}

int vmemu_machine_fail(vmemu_machine *m, uint64_t nth)
{
	enter(m);
	m->vm.host.fail = nth;
	return leave(m, 0);
}

int vmemu_machine_check(vmemu_machine *m, char *msg, size_t size)
{
	enter(m);
	return leave(m, check_machine(&m->vm, msg, size));
}

static int each_frame(vmemu_machine *m, uint64_t first, uint64_t n, uint64_t (*look)(const struct vm *, pfn_t),
		      uint64_t *out)
{
	int rc;

	enter(m);
	if (first > m->vm.frames.nframes || n > m->vm.frames.nframes - first)
		return leave(m, -EINVAL);
	rc = look_mapcounts(&m->vm);
	for (uint64_t i = 0; !rc && i < n; i++)
		out[i] = look(&m->vm, (pfn_t)(first + i));
	return leave(m, rc);
}

int vmemu_machine_mapcounts(vmemu_machine *m, uint64_t first, uint64_t n, uint64_t *out)
{
	return each_frame(m, first, n, look_mapcount, out);
}

int vmemu_machine_frame_flags(vmemu_machine *m, uint64_t first, uint64_t n, uint64_t *out)
{
	return each_frame(m, first, n, look_frame_flags, out);
}

int vmemu_machine_count_frames(vmemu_machine *m, uint64_t with, uint64_t without, uint64_t *n)
{
	int rc;

	enter(m);
	rc = look_mapcounts(&m->vm);
	if (!rc)
		*n = look_count_frames(&m->vm, with, without);
	return leave(m, rc);
}

int vmemu_machine_whole(vmemu_machine *m, uint64_t *n)
{
	enter(m);
	*n = frames_whole(&m->vm.frames);
	return leave(m, 0);
}

int vmemu_machine_sharing(vmemu_machine *m, uint64_t *mapped, uint64_t *shared)
{
	int rc;

	enter(m);
	rc = look_mapcounts(&m->vm);
	if (!rc)
		look_sharing(&m->vm, mapped, shared);
	return leave(m, rc);
}

void *vmemu_machine_ram(vmemu_machine *m)
{
	return m->vm.frames.ram;
}
