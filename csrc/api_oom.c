/* Door: who is to be killed when memory runs out. See api.h. */
#include "api.h"
#include "look.h"
#include "worst.h"

int vmemu_machine_space_sizes(vmemu_machine *m, const uint32_t *spaces, uint64_t n, struct vmemu_space_size *out)
{
	const struct vm *vm = &m->vm;

	enter(m);
	for (uint64_t i = 0; i < n; i++) {
		out[i] = (struct vmemu_space_size){ 0 };
		if (spaces[i] && spaces[i] < vm->capacity && vm->spaces[spaces[i]])
			look_size(vm, vm->spaces[spaces[i]], &out[i]);
	}
	return leave(m, 0);
}

int64_t vmemu_machine_worst(vmemu_machine *m, const struct vmemu_tasks *tasks)
{
	int64_t chosen;

	enter(m);
	chosen = worst_of(&m->vm, tasks);
	(void)leave(m, 0);
	return chosen;
}
