/* VMAs: lookup, splices, sharing between parent and child. See vma.h; holes are in vma_hole.c, rules in vma_rule.c. */
#include "vma.h"

static size_t block_size(uint32_t capacity)
{
	return sizeof(struct vma_block) + capacity * sizeof(vma_t);
}

static size_t index_size(uint32_t capacity)
{
	return sizeof(struct vma_index) + capacity * sizeof(struct vma_slot) +
	       (capacity + VMA_GROUP - 1) / VMA_GROUP * sizeof(uint64_t);
}

/* ---- users of objects ---- */

static void use_all(struct vma_env *env, const vma_t *v, uint32_t n, int by)
{
	for (; n; n--, v++) {
		struct vma_user *u;

		if (!v->object)
			continue;
		u = &env->users.of[v->object];
		u->count = (uint32_t)((int64_t)u->count + by);
		if (!u->count && !u->queued) {
			u->queued = env->users.head ? env->users.head : v->object + 1;
			env->users.head = v->object + 1;
		}
	}
}

/* The sums of a space in those of the machine: in (by = 1) or out (by = -1). */
static void charge(struct vma_env *env, const sums_t *s, uint64_t by)
{
	env->account += by * s->account;
	env->pool[0] += by * s->pool[0];
	env->pool[1] += by * s->pool[1];
}

/* ---- blocks ---- */

static struct vma_block *block_new(struct vma_env *env, uint32_t count)
{
	uint32_t capacity = 4;
	struct vma_block *b;

	while (capacity < count)
		capacity *= 2;
	b = host_alloc(env->host, block_size(capacity));
	if (b) {
		b->refs = 1;
		b->count = 0;
		b->capacity = (uint16_t)capacity;
	}
	return b;
}

static void block_put(struct vma_env *env, struct vma_block *b)
{
	if (--b->refs)
		return;
	use_all(env, b->v, b->count, -1);
	host_free(env->host, b, block_size(b->capacity));
}

static void block_fill(struct vma_env *env, struct vma_block *b, const vma_t *v, uint32_t n)
{
	VM_ASSERT(b->count + n <= b->capacity);
	if (n) /* v may be NULL */
		memcpy(&b->v[b->count], v, n * sizeof(*v));
	b->count = (uint16_t)(b->count + n);
	use_all(env, v, n, 1);
}

/* Each anonymous VMA of a child has an identity of its own, and one that came through fork (anon_vma_fork()). */
static void refresh_anon(struct vma_env *env, struct vma_block *b)
{
	for (uint32_t i = 0; i < b->count; i++)
		if (b->v[i].anon)
			b->v[i].anon = env_new_anon(env) | ANON_FORKED;
}

static int own_block(struct vma_env *env, struct vma_slot *slot)
{
	struct vma_block *b = slot->block, *copy;

	if (b->refs > 1) {
		copy = block_new(env, b->count);
		if (!copy)
			return -ENOMEM;
		block_fill(env, copy, b->v, b->count);
		block_put(env, b);
		slot->block = copy;
	}
	if (slot->inherited) {
		refresh_anon(env, slot->block);
		slot->inherited = 0;
	}
	return 0;
}

/* ---- index ---- */

/* The index as this space's own, with room for `extra` more entries. */
static int own_index(struct vma_env *env, struct vmas *s, uint32_t extra)
{
	struct vma_index *ix = s->index, *copy;
	uint32_t count = ix ? ix->count : 0, capacity = ix ? ix->capacity : 1;

	if (ix && ix->refs == 1 && count + extra <= capacity) {
		copy = ix;
	} else {
		while (capacity < count + extra)
			capacity *= 2;
		copy = host_alloc(env->host, index_size(capacity));
		if (!copy)
			return -ENOMEM;
		copy->refs = 1;
		copy->count = count;
		copy->capacity = capacity;
		copy->sums = *vmas_sums(s);
		copy->hole = (uint64_t *)(void *)&copy->slot[capacity];
		if (ix) {
			memcpy(copy->slot, ix->slot, count * sizeof(*ix->slot));
			if (ix->refs > 1) {
				ix->refs--;
				for (uint32_t k = 0; k < count; k++)
					copy->slot[k].block->refs++;
			} else {
				host_free(env->host, ix, index_size(ix->capacity));
			}
		}
		vma_groups_update(copy, 0);
		s->index = copy;
	}
	if (s->inherited) {
		for (uint32_t k = 0; k < copy->count; k++)
			copy->slot[k].inherited = 1;
		s->inherited = 0;
	}
	return 0;
}

/* Block that holds the first VMA ending above va; index->count if none. */
static uint32_t find_block(const struct vma_index *ix, uint64_t va)
{
	uint32_t lo = 0, hi = ix ? ix->count : 0;

	while (lo < hi) { /* last block that starts at or below va */
		uint32_t mid = (lo + hi) / 2;

		if (ix->slot[mid].start <= va)
			lo = mid + 1;
		else
			hi = mid;
	}
	if (lo) {
		const struct vma_block *b = ix->slot[lo - 1].block;

		if (b->v[b->count - 1].end > va)
			return lo - 1;
	}
	return lo;
}

const vma_t *vmas_at(const struct vmas *s, struct vma_pos pos)
{
	if (!s->index || pos.block >= s->index->count)
		return NULL;
	return &s->index->slot[pos.block].block->v[pos.i];
}

const vma_t *vmas_find(const struct vmas *s, uint64_t va, struct vma_pos *pos)
{
	uint32_t lo = 0, hi;
	const struct vma_block *b;

	pos->i = 0;
	pos->block = find_block(s->index, va);
	if (!s->index || pos->block == s->index->count)
		return NULL;
	b = s->index->slot[pos->block].block;
	hi = b->count;
	while (lo < hi) {
		uint32_t mid = (lo + hi) / 2;

		if (b->v[mid].end > va)
			hi = mid;
		else
			lo = mid + 1;
	}
	pos->i = lo;
	return &b->v[lo];
}

const vma_t *vmas_next(const struct vmas *s, struct vma_pos *pos)
{
	if (!s->index || pos->block >= s->index->count)
		return NULL;
	if (++pos->i >= s->index->slot[pos->block].block->count) {
		pos->block++;
		pos->i = 0;
	}
	return vmas_at(s, *pos);
}

const vma_t *vmas_prev(const struct vmas *s, struct vma_pos *pos)
{
	if (!s->index)
		return NULL;
	if (pos->i) {
		pos->i--;
	} else {
		if (!pos->block)
			return NULL;
		pos->block--;
		pos->i = s->index->slot[pos->block].block->count - 1u;
	}
	return vmas_at(s, *pos);
}

/* ---- changes ---- */

int vmas_own(struct vma_env *env, struct vmas *s, uint64_t start, uint64_t end)
{
	uint32_t k, last;
	int rc;

	if (!s->index)
		return 0;
	rc = own_index(env, s, 0);
	if (rc)
		return rc;
	k = find_block(s->index, start ? start - 1 : 0);
	if (k && k == s->index->count) /* above everything: the last block will take it */
		k--;
	last = find_block(s->index, end);
	for (; k <= last && k < s->index->count; k++) {
		rc = own_block(env, &s->index->slot[k]);
		if (rc)
			return rc;
	}
	return 0;
}

/* Writes head[0..nh) + with[0..n) + tail[0..nt) into one or two fresh blocks. Returns how many blocks, 0 without memory. */
static uint32_t build(struct vma_env *env, const vma_t *head, uint32_t nh, const vma_t *with, uint32_t n,
		      const vma_t *tail, uint32_t nt, struct vma_block *out[3])
{
	const vma_t *part[3] = { head, with, tail };
	uint32_t left[3] = { nh, n, nt }, total = nh + n + nt, nblocks, p = 0;

	nblocks = (total + VMA_BLOCK - 1) / VMA_BLOCK;
	VM_ASSERT(nblocks <= 3);
	for (uint32_t k = 0; k < nblocks; k++) {
		out[k] = block_new(env, (total + nblocks - 1) / nblocks);
		if (!out[k]) {
			while (k--)
				block_put(env, out[k]);
			return 0;
		}
	}
	for (uint32_t k = 0; k < nblocks; k++) {
		uint32_t want = (total + nblocks - 1 - k) / nblocks;

		while (want) {
			uint32_t take = left[p] < want ? left[p] : want;

			block_fill(env, out[k], part[p], take);
			part[p] += take;
			left[p] -= take;
			want -= take;
			if (!left[p] && p < 2)
				p++;
		}
	}
	return nblocks;
}

/* Just behind the ndel VMAs that begin at pos, in the block of the last of them. */
static struct vma_pos behind(const struct vma_index *ix, struct vma_pos pos, uint32_t ndel)
{
	for (;;) {
		uint32_t here = ix->slot[pos.block].block->count - pos.i;

		if (here >= ndel) {
			pos.i += ndel;
			return pos;
		}
		ndel -= here;
		pos.block++;
		pos.i = 0;
		VM_ASSERT(pos.block < ix->count);
	}
}

/* Replaces the slots [from, to) by the blocks; the old ones are let go. */
static void replace_blocks(struct vma_env *env, struct vma_index *ix, uint32_t from, uint32_t to,
			   struct vma_block *const *blocks, uint32_t n)
{
	for (uint32_t k = from; k < to; k++)
		block_put(env, ix->slot[k].block);
	VM_ASSERT(ix->count - (to - from) + n <= ix->capacity);
	memmove(&ix->slot[from + n], &ix->slot[to], (ix->count - to) * sizeof(*ix->slot));
	ix->count = ix->count - (to - from) + n;
	for (uint32_t k = 0; k < n; k++)
		ix->slot[from + k] = (struct vma_slot){ .block = blocks[k] };
	/* the hole before the first VMA of the next block changed as well */
	for (uint32_t k = from; k <= from + n && k < ix->count; k++)
		vma_slot_update(ix, k);
	vma_groups_update(ix, from ? from - 1 : 0); /* it may have been the last */
}

int vmas_splice(struct vma_env *env, struct vmas *s, struct vma_pos pos, uint32_t ndel, const vma_t *with, uint32_t n)
{
	struct vma_block *fresh[3] = { NULL, NULL, NULL }, *first = NULL, *last = NULL;
	sums_t before = *vmas_sums(s);
	uint32_t nfresh = 0, nt = 0, from = 0, to = 0;
	struct vma_pos stop = pos, at = pos;
	struct vma_index *ix;
	int rc = own_index(env, s, 3);

	if (rc)
		return rc;
	s->changes++;
	ix = s->index;
	if (ix->count) {
		if (pos.block == ix->count) { /* the end: behind the last VMA */
			pos.block--;
			pos.i = ix->slot[pos.block].block->count;
		}
		stop = behind(ix, pos, ndel);
		from = pos.block;
		to = stop.block + 1;
		first = ix->slot[from].block;
		last = ix->slot[stop.block].block;
		nt = last->count - stop.i;
	} else {
		pos.i = 0;
	}
	if (!first || first != last || first->refs > 1 || pos.i + n + nt > first->capacity || pos.i + n + nt == 0) {
		if (pos.i + n + nt) {
			nfresh = build(env, first ? first->v : NULL, pos.i, with, n, last ? &last->v[stop.i] : NULL, nt,
				       fresh);
			if (!nfresh)
				return -ENOMEM;
		}
		at = pos;
		for (uint32_t left = ndel; left; left--, (void)vmas_next(s, &at))
			sums_add(&ix->sums, vmas_at(s, at), (uint64_t)-1);
		replace_blocks(env, ix, from, to, fresh, nfresh);
	} else { /* in place */
		for (uint32_t i = pos.i; i < stop.i; i++)
			sums_add(&ix->sums, &first->v[i], (uint64_t)-1);
		use_all(env, with, n, 1);
		use_all(env, &first->v[pos.i], ndel, -1);
		memmove(&first->v[pos.i + n], &first->v[stop.i], nt * sizeof(vma_t));
		memcpy(&first->v[pos.i], with, n * sizeof(vma_t));
		first->count = (uint16_t)(pos.i + n + nt);
		vma_slot_update(ix, from);
		vma_group_update(ix, from);
		if (from + 1 < ix->count) {
			vma_slot_update(ix, from + 1);
			vma_group_update(ix, from + 1);
		}
	}
	for (uint32_t i = 0; i < n; i++)
		sums_add(&ix->sums, &with[i], 1);
	charge(env, &before, (uint64_t)-1);
	charge(env, &ix->sums, 1);
	return 0;
}

/* The VMA that holds va, to be changed in place. */
static vma_t *own_vma(const struct vmas *s, uint64_t va)
{
	struct vma_pos pos;
	const vma_t *v = vmas_find(s, va, &pos);
	struct vma_block *b;

	VM_ASSERT(v && v->start <= va);
	b = s->index->slot[pos.block].block;
	VM_ASSERT(s->index->refs == 1 && b->refs == 1);
	return &b->v[pos.i];
}

void vmas_set_anon(struct vmas *s, uint64_t va, uint64_t anon)
{
	own_vma(s, va)->anon = anon;
}

void vmas_set_flags(struct vma_env *env, struct vmas *s, uint64_t va, uint64_t flags)
{
	vma_t *v = own_vma(s, va);
	sums_t *sums = &s->index->sums;

	s->changes++;
	charge(env, sums, (uint64_t)-1);
	sums_add(sums, v, (uint64_t)-1);
	v->flags = flags;
	sums_add(sums, v, 1);
	charge(env, sums, 1);
}

int vmas_prepare_anon(struct vma_env *env, struct vmas *s, uint64_t va)
{
	struct vma_pos pos;
	const vma_t *v = vmas_find(s, va, &pos), *n;
	uint64_t anon = 0;

	VM_ASSERT(v && v->start <= va);
	if (v->anon)
		return 0;
	if (vmas_own(env, s, v->start, v->end))
		return -ENOMEM;
	v = vmas_find(s, va, &pos);
	n = vmas_next(s, &(struct vma_pos){ pos.block, pos.i });
	if (n && n->anon && !(n->anon & ANON_FORKED) && vma_adoptable(v, n))
		anon = n->anon;
	n = vmas_prev(s, &(struct vma_pos){ pos.block, pos.i });
	if (!anon && n && n->anon && !(n->anon & ANON_FORKED) && vma_adoptable(n, v))
		anon = n->anon;
	vmas_set_anon(s, va, anon ? anon : env_new_anon(env));
	return 0;
}

int vmas_append(struct vma_env *env, struct vmas *s, const vma_t *v)
{
	struct vma_pos end = { s->index ? s->index->count : 0, 0 };

	return vmas_splice(env, s, end, 0, v, 1);
}

void vmas_share(struct vma_env *env, const struct vmas *parent, struct vmas *child)
{
	*child = *parent;
	charge(env, vmas_sums(child), 1);
	if (child->index) {
		child->index->refs++;
		child->inherited = 1;
	}
}

void vmas_destroy(struct vma_env *env, struct vmas *s)
{
	charge(env, vmas_sums(s), (uint64_t)-1);
	if (s->index && --s->index->refs == 0) {
		for (uint32_t k = 0; k < s->index->count; k++)
			block_put(env, s->index->slot[k].block);
		host_free(env->host, s->index, index_size(s->index->capacity));
	}
	memset(s, 0, sizeof(*s));
}
