/* Door: huge pages. See api.h. */
#include "api.h"
#include "fault.h"
#include "huge.h"
#include "pool.h"

int vmemu_pool_grow(vmemu_machine *m, int giant)
{
	enter(m);
	return leave(m, pool_grow(&m->vm.frames, giant != 0));
}

int vmemu_pool_info(vmemu_machine *m, int giant, struct vmemu_pool *out)
{
	const struct pool *p = &m->vm.frames.pools[giant != 0];

	enter(m);
	*out = (struct vmemu_pool){ p->total, p->free, fault_pool_reserved(&m->vm, giant != 0) };
	return leave(m, 0);
}

int vmemu_space_collapse(vmemu_machine *m, uint32_t space, uint64_t address)
{
	struct space *s = enter_space(m, space);

	if (!s)
		return -EBADF;
	if (address & (ENTRY_BYTES(2) - 1) || address >= TASK_SIZE)
		return leave(m, -EINVAL);
	return leave(m, huge_collapse(&m->vm, s, address));
}

int vmemu_space_no_thp(vmemu_machine *m, uint32_t space, int off)
{
	struct space *s = enter_space(m, space);

	if (!s)
		return -EBADF;
	if (off >= 0)
		s->no_thp = off != 0;
	return leave(m, (int)s->no_thp);
}
