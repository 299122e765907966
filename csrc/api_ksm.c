/* Door: same-page merging. See api.h. */
#include "api.h"
#include "ksm.h"

int vmemu_machine_ksm_spaces(vmemu_machine *m, struct vmemu_ksm_space *out, uint32_t cap)
{
	uint32_t n = 0;

	enter(m);
	for (uint32_t id = 1; id < m->vm.capacity; id++) {
		const struct space *s = m->vm.spaces[id];

		if (!s || !s->ksm)
			continue;
		if (n < cap)
			out[n] = (struct vmemu_ksm_space){ .since = s->ksm, .space = id };
		n++;
	}
	return leave(m, (int)n);
}

int vmemu_space_ksm_pages(vmemu_machine *m, uint32_t space, uint64_t start, uint64_t end, struct vmemu_ksm_page *out,
			  uint32_t cap)
{
	struct space *s = enter_space(m, space);

	if (!s)
		return -EBADF;
	if (!m->vm.frames.contents)
		return leave(m, -EOPNOTSUPP);
	return leave(m, bad_range(start, end) ? -EINVAL : (int)ksm_pages(&m->vm, s, start, end, out, cap));
}

int vmemu_space_ksm_make(vmemu_machine *m, uint32_t space, uint64_t address)
{
	struct space *s = enter_space(m, space);

	if (!s)
		return -EBADF;
	return leave(m, address & PAGE_MASK || address >= TASK_SIZE ? -EINVAL : ksm_make(&m->vm, s, address));
}

int vmemu_space_ksm_merge(vmemu_machine *m, uint32_t space, uint64_t address, uint64_t pfn)
{
	struct space *s = enter_space(m, space);

	if (!s)
		return -EBADF;
	if (address & PAGE_MASK || address >= TASK_SIZE || pfn >= m->vm.frames.nframes)
		return leave(m, -EINVAL);
	return leave(m, ksm_merge(&m->vm, s, address, (pfn_t)pfn));
}

int vmemu_space_ksm_break(vmemu_machine *m, uint32_t space, uint64_t start, uint64_t end)
{
	struct space *s = enter_space(m, space);

	if (!s)
		return -EBADF;
	return leave(m, bad_range(start, end) ? -EINVAL : ksm_break(&m->vm, s, start, end));
}

int64_t vmemu_space_ksm_zero_pages(vmemu_machine *m, uint32_t space)
{
	struct space *s = enter_space(m, space);
	int64_t n;

	if (!s)
		return -EBADF;
	n = (int64_t)ksm_zero_pages(&m->vm, s, 0, TASK_SIZE);
	(void)leave(m, 0);
	return n;
}
