/* Door: huge pages. See api.h. */
#include "api.h"
#include "huge.h"

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
