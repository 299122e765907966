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
	for (uint32_t slot = 1; slot < f->swap.fresh; slot++)
		if (f->swap.payer[slot] == id)
			f->swap.payer[slot] = g->parent;
	for (uint32_t i = 1; i < m->vm.capacity; i++)
		if (m->vm.spaces[i] && m->vm.spaces[i]->cgroup == id)
			m->vm.spaces[i]->cgroup = g->parent;
	cgroup_free(&f->cgroups, id);
	return leave(m, 0);
}

int vmemu_cgroup_limit(vmemu_machine *m, uint32_t id, uint64_t max, uint64_t high, uint64_t swap)
{
	struct cgroup *g = enter_cgroup(m, id);

	if (!g)
		return -ENOENT;
	g->max = max;
	g->high = high;
	g->swap_max = swap;
	return leave(m, 0);
}

int vmemu_cgroup_settled(vmemu_machine *m, uint32_t id, uint64_t more)
{
	struct cgroup *g = enter_cgroup(m, id);

	if (!g)
		return -ENOENT;
	g->again = g->usage > g->high ? g->usage + more : 0;
	if (m->vm.frames.cgroups.over == id)
		m->vm.frames.cgroups.over = 0;
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
	out->swap = g->swap;
	out->swap_peak = g->swap_peak;
	memcpy(out->swap_refused, g->swap_refused, sizeof(out->swap_refused));
	out->cached = g->cached;
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
