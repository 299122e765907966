/* Who is worth killing. See worst.h. */
#include "worst.h"

uint64_t worst_points(const struct vm *vm, const struct space *s)
{
	struct table_sum sum = { { 0 }, 0, 0 };

	table_sum(&vm->tables, s->root, &sum);
	return sum.resident[RESIDENT_ANON] + sum.resident[RESIDENT_FILE] + sum.resident[RESIDENT_SHMEM] +
	       sum.resident[RESIDENT_SWAP] + (sum.tables ? sum.tables - 1 : 0);
}

static int64_t points_of(const struct vm *vm, uint32_t id)
{
	uint64_t points;

	if (vm->worth && vm->worth[id])
		return vm->worth[id] - 1;
	points = worst_points(vm, vm->spaces[id]);
	if (vm->worth)
		vm->worth[id] = (uint32_t)points + 1;
	return (int64_t)points;
}

static uint32_t rank_of(const struct vmemu_tasks *t, uint64_t i)
{
	if (!t->rank)
		return 1;
	return t->group[i] < t->ngroups ? t->rank[t->group[i]] : 0;
}

int64_t worst_of(struct vm *vm, const struct vmemu_tasks *t)
{
	int64_t most = 0, chosen = -ESRCH;

	if (!vm->worth) /* without it everything is recounted each time */
		vm->worth = host_zalloc(&vm->host, vm->capacity * sizeof(*vm->worth));
	for (uint64_t i = 0; i < t->n; i++) {
		uint32_t id = t->space[i], rank, best;
		int64_t points;

		if (t->state[i] != t->wanted || t->adjust[i] == t->never || !id || id >= vm->capacity ||
		    !vm->spaces[id] || !(rank = rank_of(t, i)))
			continue;
		points = points_of(vm, id) + t->adjust[i] * t->step;
		if (chosen >= 0) {
			if (points < most)
				continue;
			best = rank_of(t, (uint64_t)chosen);
			if (points == most && (rank < best || (rank == best && t->started[i] < t->started[chosen])))
				continue;
		}
		most = points;
		chosen = (int64_t)i;
	}
	return chosen;
}
