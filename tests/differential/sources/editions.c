/* Second editions: they use the originals, each other, static functions, data and strings. */
typedef unsigned long u64;

extern u64 counter, table[64];
u64 callee(u64 a, u64 b);
u64 rare(u64 a);
u64 plain_v1(u64 a, u64 b, u64 c, u64 d, u64 e, u64 f);

static const char *const words[] = { "one", "two", "three", "four" };
static u64 seen;
u64 shared = 5;

static __attribute__((noinline)) u64 length(const char *word)
{
	u64 n = 0;

	while (word[n])
		n++;
	return n;
}

u64 plain_v2(u64 a, u64 b, u64 c, u64 d, u64 e, u64 f)
{
	seen += a;
	return plain_v1(a, b, c, d, e, f) + 1000 * length(words[a % 4]) + shared;
}

u64 loops_v2(u64 a, u64 b, u64 c, u64 d, u64 e, u64 f)
{
	u64 sum = 0, i;

	for (i = 0; i < 16; i++)
		if (__builtin_expect(i == b * 1000, 0))
			sum += rare(i);
		else
			sum += table[i] * (a + i);
	return sum + c + d + e + f;
}

u64 choices_v2(u64 a, u64 b, u64 c, u64 d, u64 e, u64 f)
{
	u64 (*to)(const char *) = length;

	asm volatile("" : "+r"(to));
	return to(words[b % 4]) + callee(a, b) + c + d + e + f;
}

u64 tails_v2(u64 a, u64 b, u64 c, u64 d, u64 e, u64 f)
{
	if (a & 1)
		return plain_v2(b, a, c, d, e, f);
	return callee(e, f);
}
