// SPDX-License-Identifier: GPL-2.0
/*
 * Edition 2 of /proc/cmdline: what the original writes, and a word more. The
 * original is a static function; here it is called as edition 1, and counted.
 */
#include <linux/seq_file.h>

int cmdline_proc_show_v1(struct seq_file *m, void *v);
int cmdline_proc_show_v2(struct seq_file *m, void *v);

int cmdline_proc_show_v2(struct seq_file *m, void *v)
{
	int err = cmdline_proc_show_v1(m, v);

	if (err || seq_has_overflowed(m))
		return err;
	m->count--;	/* the end of the line */
	seq_puts(m, " edition=2\n");
	return 0;
}
