/* Door: memory cgroups. See api.h. */
#include "api.h"

int vmemu_cgroup_new(vmemu_machine *m, uint32_t id, uint32_t parent)
{
	enter(m);
	return leave(m, cgroup_new(&m->vm.frames.cgroups, id, parent));
}

/* Takes the lock and finds the group; without one the lock is given back and NULL returned. */
static struct cgroup *enter_cgroup(vmemu_machine *m, uint32_t id)
{
	struct cgroup *g;

	enter(m);
	g = cgroup_get(&m->vm.frames.cgroups, id);
	if (!g)
		(void)leave(m, 0);
	return g;
}

int vmemu_cgroup_free(vmemu_machine *m, uint32_t id)
{
	struct frames *f = &m->vm.frames;
	const struct cgroup *g = enter_cgroup(m, id);
	uint64_t used = min_u64(f->virgin * BLOCK_FRAMES, f->nframes), left = 0;

	if (!g)
		return -ENOENT;
	for (uint32_t i = 1; i < f->cgroups.n; i++)
		if (f->cgroups.of[i].used && f->cgroups.of[i].parent == id)
			return leave(m, -EBUSY);
	for (int kind = 0; kind < VMEMU_NCHARGES; kind++)
		left += g->kinds[kind];
	for (uint64_t pfn = 0; pfn < used && left; pfn++) {
		struct frame *fr = &f->of[pfn];

		if (fr->flags & FRAME_USED && fr->cgroup == id) {
			fr->cgroup = g->parent;
			left--;
		}
	}
	for (uint32_t i = 1; i < m->vm.capacity; i++)
		if (m->vm.spaces[i] && m->vm.spaces[i]->cgroup == id)
			m->vm.spaces[i]->cgroup = g->parent;
	cgroup_free(&f->cgroups, id);
	return leave(m, 0);
}

int vmemu_cgroup_limit(vmemu_machine *m, uint32_t id, uint64_t max, uint64_t high)
{
	struct cgroup *g = enter_cgroup(m, id);

	if (!g)
		return -ENOENT;
	g->max = max;
	g->high = high;
	return leave(m, 0);
}

int vmemu_cgroup_info(vmemu_machine *m, uint32_t id, struct vmemu_cgroup_info *out)
{
	const struct cgroup *g = enter_cgroup(m, id);

	if (!g)
		return -ENOENT;
	out->usage = g->usage;
	out->peak = g->peak;
	memcpy(out->kinds, g->kinds, sizeof(out->kinds));
	out->high = g->highs;
	out->high_local = g->highs_local;
	return leave(m, 0);
}

int vmemu_space_cgroup(vmemu_machine *m, uint32_t space, uint32_t id)
{
	struct space *s = enter_space(m, space);

	if (!s)
		return -EBADF;
	if (id && !cgroup_get(&m->vm.frames.cgroups, id))
		return leave(m, -ENOENT);
	s->cgroup = id;
	return leave(m, 0);
}
