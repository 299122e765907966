/* Memory cgroups. See cgroup.h. */
#include "cgroup.h"

/* MEMCG_HIGH, memcg_memory_event() */
static void count_high(struct cgroups *c, uint32_t id)
{
	c->of[id].highs_local++;
	for (; id; id = c->of[id].parent)
		c->of[id].highs++;
}

/* page_counter_try_charge(), but that a charge which fails leaves no mark on the peaks below the limit. */
uint32_t cgroup_charge(struct cgroups *c, uint32_t id, uint64_t n, enum vmemu_charge kind)
{
	int high = 0;

	for (uint32_t i = id; i; i = c->of[i].parent)
		if (c->of[i].usage + n > c->of[i].max)
			return i;
	for (uint32_t i = id; i; i = c->of[i].parent) {
		struct cgroup *g = &c->of[i];

		g->usage += n;
		g->peak = max_u64(g->peak, g->usage);
		high |= g->usage > g->high;
	}
	c->of[id].kinds[kind] += n;
	for (uint32_t i = id; high && i; i = c->of[i].parent) /* reclaim_high() */
		if (c->of[i].usage > c->of[i].high) {
			count_high(c, i);
			if (c->of[i].usage >= c->of[i].again)
				c->over = i;
		}
	return 0;
}

void cgroup_uncharge(struct cgroups *c, uint32_t id, uint64_t n, enum vmemu_charge kind)
{
	VM_ASSERT(cgroup_get(c, id) && c->of[id].kinds[kind] >= n);
	c->of[id].kinds[kind] -= n;
	for (; id; id = c->of[id].parent)
		c->of[id].usage -= n;
}

uint64_t cgroup_high_room(const struct cgroups *c, uint32_t id)
{
	uint64_t room = UINT64_MAX;

	for (; id; id = c->of[id].parent) {
		const struct cgroup *g = &c->of[id];

		if (g->high != UINT64_MAX)
			room = min_u64(room, g->high > g->usage ? g->high - g->usage : 0);
	}
	return room;
}

/* ---- swap ---- */

uint64_t cgroup_swap_room(const struct cgroups *c, uint32_t id)
{
	uint64_t room = UINT64_MAX;

	for (; id; id = c->of[id].parent) {
		const struct cgroup *g = &c->of[id];

		if (g->swap_max != UINT64_MAX)
			room = min_u64(room, g->swap_max > g->swap ? g->swap_max - g->swap : 0);
	}
	return room;
}

void cgroup_charge_swap(struct cgroups *c, uint32_t id)
{
	for (; id; id = c->of[id].parent) {
		struct cgroup *g = &c->of[id];

		g->swap++;
		g->swap_peak = max_u64(g->swap_peak, g->swap);
	}
}

void cgroup_uncharge_swap(struct cgroups *c, uint32_t id)
{
	for (; id; id = c->of[id].parent)
		c->of[id].swap--;
}

void cgroup_refuse_swap(struct cgroups *c, uint32_t id, uint32_t run)
{
	int limit = 0;

	if (!id || c->of[id].refused_run == run)
		return;
	for (uint32_t i = id; i; i = c->of[i].parent) {
		if (!c->of[i].swap_max)
			return;
		limit |= c->of[i].swap >= c->of[i].swap_max;
	}
	c->of[id].refused_run = run;
	for (; id; id = c->of[id].parent) {
		c->of[id].swap_refused[0] += (uint64_t)limit;
		c->of[id].swap_refused[1]++;
	}
}

/* ---- groups ---- */

int cgroup_new(struct cgroups *c, uint32_t id, uint32_t parent)
{
	if (!id || id >= CGROUPS_MAX)
		return -EINVAL;
	if (cgroup_get(c, id))
		return -EEXIST;
	if (parent && !cgroup_get(c, parent))
		return -ENOENT;
	if (id >= c->n) {
		uint32_t n = c->n ? c->n : 8;
		struct cgroup *of;

		while (n <= id)
			n *= 2;
		of = host_zalloc(c->host, n * sizeof(*of));
		if (!of)
			return -ENOMEM;
		if (c->n)
			memcpy(of, c->of, c->n * sizeof(*of));
		host_free(c->host, c->of, c->n * sizeof(*of));
		c->of = of;
		c->n = n;
	}
	c->of[id] = (struct cgroup){
		.max = UINT64_MAX,
		.high = UINT64_MAX,
		.swap_max = UINT64_MAX,
		.parent = (uint16_t)parent,
		.used = 1,
	};
	return 0;
}

void cgroup_free(struct cgroups *c, uint32_t id)
{
	uint32_t parent = c->of[id].parent;

	for (int kind = 0; parent && kind < VMEMU_NCHARGES; kind++)
		c->of[parent].kinds[kind] += c->of[id].kinds[kind];
	if (parent)
		c->of[parent].cached += c->of[id].cached;
	c->of[id].used = 0;
	if (c->over == id)
		c->over = 0;
}

void cgroups_destroy(struct cgroups *c)
{
	host_free(c->host, c->of, c->n * sizeof(*c->of));
	c->of = NULL;
	c->n = 0;
}
