// SPDX-License-Identifier: GPL-2.0
/*
 * sleepers N: that many threads that sleep; says "asleep" once they are there.
 */
#include <err.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static void *sleep_on(void *unused)
{
	for (;;)
		pause();
	return unused;
}

int main(int argc, char **argv)
{
	pthread_attr_t small;
	pthread_t thread;

	if (argc != 2)
		errx(2, "usage: sleepers N");
	pthread_attr_init(&small);
	pthread_attr_setstacksize(&small, 32768);
	for (int i = 1; i < atoi(argv[1]); i++)
		if (pthread_create(&thread, &small, sleep_on, NULL))
			errx(1, "%d threads, and no more", i);
	puts("asleep");
	fflush(stdout);
	sleep_on(NULL);
}
