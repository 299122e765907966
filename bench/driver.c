/* The core without Python: what is counted under callgrind, or timed, for this revision beside the baseline's.
 *
 *     driver count            each scenario: twice to warm up, once inside measure_NAME, for callgrind to collect
 *     driver time N [NAME]    lines of "name nanoseconds": the least of N runs
 *
 * Compiled with the core and driven through vmemu_cdef.h only, so that it can be built with older cores too. Machines
 * hold no contents unless the scenario says so: what counts is the bookkeeping, not the copying.
 */
#define _POSIX_C_SOURCE 199309L
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "vmemu_cdef.h"

#define PAGE UINT64_C(4096)
#define NPAGES UINT64_C(1024)
#define BASE (UINT64_C(1) << 32)
#define NSMALL 64u
#define NCALLS 256u
#define FLAGS                                                                                                          \
	(VMEMU_VM_READ | VMEMU_VM_WRITE | VMEMU_VM_MAYREAD | VMEMU_VM_MAYWRITE | VMEMU_VM_MAYEXEC | VMEMU_VM_ACCOUNT)

struct stage {
	vmemu_machine *m;
	uint32_t parent;
	uint32_t child[NSMALL];
	uint64_t addresses[NPAGES];
	uint8_t kinds[NPAGES];
};

static void check(int rc, const char *what)
{
	if (rc) {
		fprintf(stderr, "driver: %s: %d\n", what, rc);
		exit(1);
	}
}

static void map(struct stage *s, uint32_t space, uint64_t start, uint64_t npages)
{
	struct vmemu_vma vma = { .start = start, .end = start + npages * PAGE, .pgoff = start / PAGE, .flags = FLAGS };

	check(vmemu_space_map(s->m, space, &vma, 0), "map");
}

/* One access a page; all of them lead to `kind`. */
static void touch(struct stage *s, uint32_t space, uint64_t start, uint64_t npages, int access, int kind)
{
	uint64_t counts[VMEMU_NKINDS] = { 0 }, done = 0;
	struct vmemu_trap trap;
	int rc;

	do {
		rc = vmemu_space_touch(s->m, space, start + done * PAGE, (npages - done) * PAGE, access, counts, &trap);
		done += trap.done;
	} while (rc == VMEMU_TRAP_PAUSE);
	check(rc, "touch");
	if (counts[kind] != npages) {
		fprintf(stderr, "driver: %d of kind %d expected\n", (int)npages, kind);
		exit(1);
	}
}

static void access_all(struct stage *s, uint32_t space, int access)
{
	struct vmemu_trap trap;

	check(vmemu_space_access(s->m, space, s->addresses, NULL, access, NPAGES, s->kinds, &trap), "access");
}

static void fork_one(struct stage *s, int mode)
{
	check(vmemu_space_fork(s->m, s->parent, mode, 1, s->child), "fork");
}

static void end_one(struct stage *s)
{
	check(vmemu_space_free(s->m, s->child[0]), "free");
}

static void nothing(struct stage *s)
{
	(void)s;
}

/* ---- scenarios: what comes before, the work, what comes after ---- */

static void before_cow(struct stage *s)
{
	fork_one(s, VMEMU_FORK_COW);
}

static void work_cow(struct stage *s)
{
	touch(s, s->child[0], BASE, NPAGES, VMEMU_WRITE, VMEMU_COW_COPY);
}

static void work_cow_batch(struct stage *s)
{
	access_all(s, s->child[0], VMEMU_WRITE);
}

static void work_cow_write(struct stage *s)
{
	struct vmemu_trap trap;
	uint64_t word = 1;

	for (uint64_t i = 0; i < NPAGES; i++)
		check(vmemu_space_write(s->m, s->child[0], s->addresses[i], &word, sizeof(word), &trap), "write");
}

static void before_reuse(struct stage *s)
{
	fork_one(s, VMEMU_FORK_COW);
	end_one(s);
}

static void work_reuse(struct stage *s)
{
	touch(s, s->parent, BASE, NPAGES, VMEMU_WRITE, VMEMU_COW_REUSE);
}

static void before_zero(struct stage *s)
{
	map(s, s->parent, 2 * BASE, NPAGES);
}

static void work_zero(struct stage *s)
{
	touch(s, s->parent, 2 * BASE, NPAGES, VMEMU_WRITE, VMEMU_ZERO_FILL);
}

static void work_zero_read(struct stage *s)
{
	touch(s, s->parent, 2 * BASE, NPAGES, VMEMU_READ, VMEMU_ZERO_MAP);
}

static void after_zero(struct stage *s)
{
	check(vmemu_space_unmap(s->m, s->parent, 2 * BASE, 2 * BASE + NPAGES * PAGE), "unmap");
}

static void work_fork_cow(struct stage *s)
{
	fork_one(s, VMEMU_FORK_COW);
}

static void work_exit(struct stage *s)
{
	end_one(s);
}

static void before_demand(struct stage *s)
{
	fork_one(s, VMEMU_FORK_ON_DEMAND);
}

static void work_fork_demand(struct stage *s)
{
	check(vmemu_space_fork(s->m, s->parent, VMEMU_FORK_ON_DEMAND, NSMALL, s->child), "fork");
}

static void work_first_write(struct stage *s)
{
	for (uint32_t i = 0; i < NSMALL; i++)
		touch(s, s->child[i], BASE + i * PAGE, 1, VMEMU_WRITE, VMEMU_COW_COPY);
}

static void end_many(struct stage *s)
{
	for (uint32_t i = 0; i < NSMALL; i++)
		check(vmemu_space_free(s->m, s->child[i]), "free");
}

static void work_map(struct stage *s)
{
	for (uint64_t i = 0; i < NCALLS; i++)
		map(s, s->parent, 2 * BASE + 2 * i * PAGE, 1);
}

static void work_unmap(struct stage *s)
{
	for (uint64_t i = 0; i < NCALLS; i++)
		check(vmemu_space_unmap(s->m, s->parent, 2 * BASE + 2 * i * PAGE, 2 * BASE + (2 * i + 1) * PAGE),
		      "unmap");
}

static void work_hit_touch(struct stage *s)
{
	touch(s, s->parent, BASE, NPAGES, VMEMU_READ, VMEMU_NONE);
}

static void work_hit_batch(struct stage *s)
{
	access_all(s, s->parent, VMEMU_READ);
}

static void work_hit_read(struct stage *s)
{
	struct vmemu_trap trap;
	uint64_t word;

	for (uint64_t i = 0; i < NPAGES; i++)
		check(vmemu_space_read(s->m, s->parent, s->addresses[i], &word, sizeof(word), VMEMU_READ, &trap),
		      "read");
}

#define SCENARIOS                                                                                                      \
	X(cow, 0, before_cow, end_one)                                                                                 \
	X(cow_batch, 0, before_cow, end_one)                                                                           \
	X(cow_write, VMEMU_OPT_CONTENTS, before_cow, end_one)                                                          \
	X(reuse, 0, before_reuse, nothing)                                                                             \
	X(zero, 0, before_zero, after_zero)                                                                            \
	X(zero_read, 0, before_zero, after_zero)                                                                       \
	X(fork_cow, 0, nothing, end_one)                                                                               \
	X(exit, 0, before_cow, nothing)                                                                                \
	X(fork_demand, 0, nothing, end_many)                                                                           \
	X(first_write, 0, work_fork_demand, end_many)                                                                  \
	X(exit_demand, 0, before_demand, nothing)                                                                      \
	X(map, 0, nothing, work_unmap)                                                                                 \
	X(unmap, 0, work_map, nothing)                                                                                 \
	X(hit_touch, 0, nothing, nothing)                                                                              \
	X(hit_batch, 0, nothing, nothing)                                                                              \
	X(hit_read, VMEMU_OPT_CONTENTS, nothing, nothing)

#define work_exit_demand work_exit

/* Functions of their own, to be found by name. */
#define X(name, options, before, after)                                                                                \
	__attribute__((noinline)) void measure_##name(struct stage *s);                                                \
	void measure_##name(struct stage *s)                                                                           \
	{                                                                                                              \
		work_##name(s);                                                                                        \
	}
SCENARIOS
#undef X

static const struct scenario {
	const char *name;
	uint32_t options;
	void (*before)(struct stage *s);
	void (*work)(struct stage *s);
	void (*measured)(struct stage *s);
	void (*after)(struct stage *s);
} scenarios[] = {
#define X(name, options, before, after) { #name, options, before, work_##name, measure_##name, after },
	SCENARIOS
#undef X
};

static void set_up(struct stage *s, uint32_t options)
{
	uint64_t zero, random = 1;

	s->m = vmemu_machine_new(65536, options | VMEMU_OPT_ZERO_PAGE | VMEMU_OPT_REUSE, 16);
	check(!s->m, "machine");
	check(vmemu_machine_zero_page(s->m, &zero), "zero page");
	check(vmemu_space_new(s->m, &s->parent), "space");
	map(s, s->parent, BASE, NPAGES);
	touch(s, s->parent, BASE, NPAGES, VMEMU_WRITE, VMEMU_ZERO_FILL);
	for (uint64_t i = 0; i < NPAGES; i++)
		s->addresses[i] = BASE + i * PAGE;
	for (uint64_t i = NPAGES - 1; i; i--) { /* in an order that is random and always the same */
		uint64_t j, at = s->addresses[i];

		random = random * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
		j = (random >> 33) % (i + 1);
		s->addresses[i] = s->addresses[j];
		s->addresses[j] = at;
	}
}

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec * 1e9 + (double)t.tv_nsec;
}

/* Runs a scenario; the least time of `times`, or under callgrind the one run that is collected. */
static double run(const struct scenario *one, int times)
{
	static struct stage stage;
	double least = 0;

	set_up(&stage, one->options);
	for (int i = 0; i < times + 2; i++) {
		double start, spent;

		one->before(&stage);
		start = now();
		if (i < 2)
			one->work(&stage);
		else
			one->measured(&stage);
		spent = now() - start;
		one->after(&stage);
		if (i == 2 || (i > 2 && spent < least))
			least = spent;
	}
	vmemu_machine_free(stage.m);
	return least;
}

int main(int argc, char **argv)
{
	const char *what = argc > 1 ? argv[1] : "", *name = argc > 3 ? argv[3] : "";
	int times = !strcmp(what, "count") ? 1 : !strcmp(what, "time") && argc > 2 ? atoi(argv[2]) : 0;

	if (times < 1)
		return fprintf(stderr, "usage: driver count | driver time N [NAME]\n"), 2;
	for (size_t i = 0; i < sizeof(scenarios) / sizeof(*scenarios); i++) {
		double least;

		if (*name && strcmp(name, scenarios[i].name))
			continue;
		least = run(&scenarios[i], times);
		if (times > 1 || argc > 2)
			printf("%s %f\n", scenarios[i].name, least);
	}
	return 0;
}
