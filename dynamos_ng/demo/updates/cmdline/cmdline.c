// SPDX-License-Identifier: GPL-2.0
/*
 * Edition 2 of /proc/cmdline. saved_command_line is not exported: it is found
 * by its address, and its type comes from the kernel's headers.
 */
#include <linux/init.h>
#include <linux/seq_file.h>

int cmdline_proc_show_v2(struct seq_file *m, void *v);

int cmdline_proc_show_v2(struct seq_file *m, void *v)
{
	seq_puts(m, saved_command_line);
	seq_puts(m, " edition=2\n");
	return 0;
}
