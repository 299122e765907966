/* Spaces made in one piece, as execve makes them. See space.h. */
#include "space.h"

int space_build(struct vm *vm, const vma_t *vmas, uint32_t n, const uint64_t *words, struct space **out)
{
	struct space *s;
	int rc = space_new(vm, &s);

	if (rc)
		return rc;
	memcpy(s->words, words, sizeof(s->words));
	for (uint32_t i = 0; i < n && !rc; i++) {
		vma_t v = vmas[i];

		v.anon = 0;
		v.flags |= VMEMU_VM_SOFTDIRTY;
		rc = vmas_append(&vm->env, &s->vmas, &v);
	}
	if (rc) {
		space_free(vm, s);
		return rc;
	}
	*out = s;
	return 0;
}

void space_abandon(struct vm *vm, struct space *s)
{
	for (int kind = 0; kind < VMEMU_NKINDS; kind++)
		vm->faults[kind] -= s->faults[kind];
	space_free(vm, s);
}

void space_succeed(struct vm *vm, struct space *s, struct space *old)
{
	for (int kind = 0; kind < VMEMU_NKINDS; kind++)
		s->faults[kind] += old->faults[kind];
	s->no_thp = old->no_thp;
	space_free(vm, old);
}
