/* The physical bound, in the process of vmemu: what the same bytes cost without an emulator. Called through ctypes. */
#define _GNU_SOURCE
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>

#ifdef __SSE2__
#include <emmintrin.h>
#endif

#define HUGE (UINT64_C(2) << 20)
#define PAGE 4096

/* A buffer of its own on huge pages, every page written; NULL if the host has no memory. size: a multiple of 2 MiB. */
uint8_t *bound_buffer(uint64_t size, int written)
{
	uint8_t *p =
		mmap(NULL, size + HUGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	uint8_t *at;

	if (p == MAP_FAILED)
		return NULL;
	at = (uint8_t *)(((uintptr_t)p + HUGE - 1) & ~(uintptr_t)(HUGE - 1));
	if (at != p)
		munmap(p, (size_t)(at - p));
	munmap(at + size, (size_t)(p + HUGE - at));
	madvise(at, size, MADV_HUGEPAGE);
	if (written)
		memset(at, 1, size);
	return at;
}

void bound_release(uint8_t *buffer, uint64_t size)
{
	munmap(buffer, size);
}

/* Copies frame from[i] to frame to[i]. `size` is 4096: a variable, so that this is the C library's memcpy. */
void bound_copy(uint8_t *ram, const uint64_t *from, const uint64_t *to, uint64_t n, uint64_t size)
{
	for (uint64_t i = 0; i < n; i++)
		memcpy(ram + to[i] * size, ram + from[i] * size, size);
}

/* The same between two buffers, in order. */
void bound_copy_buffer(uint8_t *to, const uint8_t *from, uint64_t n, uint64_t size)
{
	for (uint64_t i = 0; i < n; i++)
		memcpy(to + i * size, from + i * size, size);
}

/* Zeroes frame to[i]. */
void bound_zero(uint8_t *ram, const uint64_t *to, uint64_t n, uint64_t size)
{
	for (uint64_t i = 0; i < n; i++)
		memset(ram + to[i] * size, 0, size);
}

/* One page from `from` to `to` with stores that go past the caches; zeros if from is NULL. Where there are no such stores,
 * as the C library does it. */
static void stream_page(uint8_t *to, const uint8_t *from)
{
#ifdef __SSE2__
	for (int at = 0; at < PAGE; at += 64)
		for (int part = 0; part < 64; part += 16)
			_mm_stream_si128((__m128i *)(to + at + part),
					 from ? _mm_load_si128((const __m128i *)(from + at + part))
					      : _mm_setzero_si128());
#else
	if (from)
		memcpy(to, from, PAGE);
	else
		memset(to, 0, PAGE);
#endif
}

static void stream_end(void)
{
#ifdef __SSE2__
	_mm_sfence();
#endif
}

/* As bound_copy and bound_zero, past the caches. */
void bound_stream(uint8_t *ram, const uint64_t *from, const uint64_t *to, uint64_t n)
{
	for (uint64_t i = 0; i < n; i++)
		stream_page(ram + to[i] * PAGE, ram + from[i] * PAGE);
	stream_end();
}

void bound_stream_zero(uint8_t *ram, const uint64_t *to, uint64_t n)
{
	for (uint64_t i = 0; i < n; i++)
		stream_page(ram + to[i] * PAGE, NULL);
	stream_end();
}

/* Reads the byte at each offset; returns their sum. */
uint64_t bound_read(const uint8_t *buffer, const uint64_t *offsets, uint64_t n)
{
	uint64_t sum = 0;

	for (uint64_t i = 0; i < n; i++)
		sum += buffer[offsets[i]];
	return sum;
}

/* `n` dependent steps through a table of `size` words (a power of two) that fits the cache: what a core does between
 * two misses. Scales with the clock, not with memory. */
uint64_t bound_walk(const uint32_t *table, uint32_t size, uint64_t n)
{
	uint32_t at = 0;

	for (uint64_t i = 0; i < n; i++)
		at = (table[at & (size - 1)] ^ (uint32_t)i) * 2654435761u >> 7;
	return at;
}
