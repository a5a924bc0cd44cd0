/*
 * Kills a process, once, as it is about to make its Nth system call of a kind; or says which ones are made. Called by scripts/soak-syscalls.
 *
 *     killer PID...                            prints "ROLE NUMBER" for each system call of these processes, and of those that they start
 *     killer -r ROLE -c NUMBER -n N PID...     kills the first process of that role at the entry of its Nth such call: it is not made
 *
 * Prints "ready" when it has them, and "killed PID" when it is done. strace(1) has --inject, too, but it counts for each thread, whoever's it is: the
 * keeper of a mount is never reached behind the command that starts it, and each server that follows would be killed again. What is killed here is one
 * process of one role, and everybody else is let go at once. All are let go when this process ends.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <elf.h>
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <linux/ptrace.h>
#include <unistd.h>

#define CALLS 1024
#define MOST 4096

struct process {
	pid_t pid;
	char role[48];
	unsigned counts[CALLS];
};

static struct process *processes[MOST];
static size_t process_count;
static struct { pid_t thread; struct process *process; } threads[MOST];
static size_t thread_count, expected;

static const char *wanted_role;
static long wanted_call = -1;
static unsigned wanted_number;

static void fail(const char *what)
{
	fprintf(stderr, "killer: %s: %s\n", what, strerror(errno));
	exit(1);
}

static pid_t of_status(pid_t thread, const char *field)
{
	char path[64], line[256];
	int found = 0;
	snprintf(path, sizeof path, "/proc/%d/status", thread);
	FILE *file = fopen(path, "r");
	while (file && fgets(line, sizeof line, file))
		if (!strncmp(line, field, strlen(field)))
			found = atoi(line + strlen(field));
	if (file)
		fclose(file);
	return found;
}

/* What it is, by how it was started. */
static void look_at(struct process *process)
{
	char path[64], text[4096];
	snprintf(path, sizeof path, "/proc/%d/cmdline", process->pid);
	FILE *file = fopen(path, "r");
	size_t length = file ? fread(text, 1, sizeof text - 1, file) : 0;
	if (file)
		fclose(file);
	text[length] = 0;
	const char *name = strrchr(text, '/') ? strrchr(text, '/') + 1 : text;
	const char *first = text + strlen(text) + 1;
	int has_keeper = 0, is_next = 0;
	for (const char *part = text; part < text + length; part += strlen(part) + 1) {
		has_keeper |= !strcmp(part, "--keeper");
		is_next |= !strcmp(part, "--resume");
	}
	if (strncmp(name, "crfs", 4))
		snprintf(process->role, sizeof process->role, "%.40s", name);
	else if (first < text + length && !strcmp(first, "keep"))
		strcpy(process->role, "keeper");
	else if (has_keeper)
		strcpy(process->role, is_next ? "next" : "worker");
	else if (first < text + length && !strcmp(first, "store-reader"))
		strcpy(process->role, "reader");
	else
		strcpy(process->role, "command");
	memset(process->counts, 0, sizeof process->counts);
}

static struct process *process_of(pid_t pid)
{
	for (size_t at = 0; at < process_count; at++)
		if (processes[at]->pid == pid)
			return processes[at];
	return NULL;
}

static struct process *known(pid_t thread)
{
	for (size_t at = 0; at < thread_count; at++)
		if (threads[at].thread == thread)
			return threads[at].process;
	pid_t pid = of_status(thread, "Tgid:");
	struct process *process = process_of(pid ? pid : thread);
	if (thread_count == MOST || process_count == MOST) {
		errno = E2BIG;
		fail("processes");
	}
	if (!process) {
		process = calloc(1, sizeof *process);
		process->pid = pid ? pid : thread;
		struct process *parent = process_of(of_status(thread, "PPid:"));
		if (parent)
			snprintf(process->role, sizeof process->role, "%.40s-child", parent->role);
		else
			look_at(process);
		processes[process_count++] = process;
	}
	threads[thread_count].thread = thread;
	threads[thread_count++].process = process;
	return process;
}

static void forget(pid_t thread)
{
	for (size_t at = 0; at < thread_count; at++)
		if (threads[at].thread == thread) {
			/* Its number may come again. */
			if (threads[at].process->pid == thread)
				threads[at].process->pid = 0;
			threads[at] = threads[--thread_count];
			return;
		}
}

static int is_known(pid_t thread)
{
	for (size_t at = 0; at < thread_count; at++)
		if (threads[at].thread == thread)
			return 1;
	return 0;
}

static void seize(pid_t pid)
{
	const long options = PTRACE_O_TRACESYSGOOD | PTRACE_O_TRACECLONE | PTRACE_O_TRACEFORK | PTRACE_O_TRACEVFORK | PTRACE_O_TRACEEXEC;
	char path[64];
	int is_new = 1;
	snprintf(path, sizeof path, "/proc/%d/task", pid);
	while (is_new) {
		is_new = 0;
		DIR *dir = opendir(path);
		if (!dir)
			fail(path);
		for (struct dirent *entry; (entry = readdir(dir));) {
			pid_t thread = atoi(entry->d_name);
			if (thread <= 0 || is_known(thread))
				continue;
			if (ptrace(PTRACE_SEIZE, thread, 0, options)) {
				/* One that somebody has started whom this process has is had by now. */
				if (errno != EPERM && errno != ESRCH)
					fail("PTRACE_SEIZE");
				continue;
			}
			look_at(known(thread));
			ptrace(PTRACE_INTERRUPT, thread, 0, 0);
			expected++;
			is_new = 1;
		}
		closedir(dir);
	}
}

static void enters(pid_t thread, long call)
{
	struct process *process = known(thread);
	if (call < 0 || call >= CALLS)
		return;
	process->counts[call]++;
	if (!wanted_role) {
		printf("%s %ld\n", process->role, call);
		return;
	}
	if (call != wanted_call || strcmp(process->role, wanted_role) || process->counts[call] != wanted_number)
		return;
	kill(process->pid, SIGKILL);
	printf("killed %d\n", process->pid);
	exit(0);
}

static volatile sig_atomic_t is_over;

static void end(int signal)
{
	(void)signal;
	is_over = 1;
}

static void see(pid_t thread, int status)
{
	long deliver = 0;
	int event = status >> 16, signal = WSTOPSIG(status);
	if (event == PTRACE_EVENT_STOP && (signal == SIGSTOP || signal == SIGTSTP || signal == SIGTTIN || signal == SIGTTOU)) {
		ptrace(PTRACE_LISTEN, thread, 0, 0);
		return;
	}
	struct process *process = known(thread);
	if (event == PTRACE_EVENT_EXEC) {
		look_at(process);
	} else if (event == PTRACE_EVENT_STOP) {
		if (expected && !--expected) {
			printf("ready\n");
			fflush(stdout);
		}
	} else if (signal == (SIGTRAP | 0x80)) {
		struct ptrace_syscall_info info;
		if (ptrace(PTRACE_GET_SYSCALL_INFO, thread, sizeof info, &info) > 0 && info.op == PTRACE_SYSCALL_INFO_ENTRY)
			enters(thread, (long)info.entry.nr);
	} else if (!event) {
		deliver = signal;
	}
	ptrace(PTRACE_SYSCALL, thread, 0, deliver);
}

int main(int count, char **arguments)
{
	int option;
	while ((option = getopt(count, arguments, "r:c:n:")) != -1) {
		if (option == 'r')
			wanted_role = optarg;
		else if (option == 'c')
			wanted_call = atol(optarg);
		else if (option == 'n')
			wanted_number = (unsigned)atol(optarg);
		else
			return 2;
	}
	struct sigaction action = { .sa_handler = end };
	sigaction(SIGTERM, &action, NULL);
	for (int at = optind; at < count; at++)
		seize(atoi(arguments[at]));
	while (!is_over) {
		int status;
		pid_t thread = waitpid(-1, &status, __WALL);
		if (thread < 0 && errno == ECHILD)
			break;
		if (thread < 0)
			continue;
		if (WIFSTOPPED(status))
			see(thread, status);
		else
			forget(thread);
	}
	return 0;
}
