/* Tries to get out of a step. Every attempt is one function: at least 0 when it worked, -1 with errno when it did not.
 *
 * attempts CANARY PID MAJOR MINOR SOCKET: tries all; prints `refused NAME: REASON` or `WORKED NAME`, one line each.
 * CANARY is a file on the host, PID a process of the host, MAJOR and MINOR the host's disk, SOCKET an abstract socket.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/klog.h>
#include <sys/mount.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/swap.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/time.h>
#include <sys/timex.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

static const char *canary, *socket_name;
static pid_t host_pid;
static dev_t disk;

static int opens_for_writing(const char *path)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC);
	if (fd >= 0)
		close(fd);
	return fd;
}

/* Writes through PREFIX followed by the canary's path. */
static int write_below(const char *prefix)
{
	char path[8192];
	snprintf(path, sizeof path, "%s%s", prefix, canary);
	int fd = open(path, O_WRONLY | O_TRUNC | O_CLOEXEC);
	if (fd < 0)
		return -1;
	return write(fd, "harmed", 6);
}

static int write_absolute(void) { return write_below(""); }
static int write_dotdot(void) { return write_below("/../../../../../../../../.."); }
static int write_through_symlink(void)
{
	unlink("/tmp-escape");
	if (symlink("../../../../../../../..", "/tmp-escape"))
		return -1;
	return write_below("/tmp-escape");
}
static int write_through_proc(void)
{
	static const char *links[] = { "root", "cwd" };
	DIR *proc = opendir("/proc");
	struct dirent *entry;
	int result = -1;
	while ((entry = readdir(proc)))
		for (int i = 0; i < 2 && atoi(entry->d_name) > 0; i++) {
			char prefix[300];
			snprintf(prefix, sizeof prefix, "/proc/%s/%s", entry->d_name, links[i]);
			if (write_below(prefix) >= 0)
				result = 0;
		}
	closedir(proc);
	errno = ENOENT;
	return result;
}
/* The way out of a chroot: another one below the working directory, then up. */
static int chroot_twice(void)
{
	pid_t child = fork();
	if (child == 0) {
		mkdir("/tmp-chroot", 0755);
		int fd = open("/", O_RDONLY | O_DIRECTORY);
		if (chroot("/tmp-chroot") || fchdir(fd))
			_exit(1);
		for (int i = 0; i < 64; i++)
			if (chdir(".."))
				_exit(1);
		if (chroot("."))
			_exit(1);
		_exit(write_below("") >= 0 ? 0 : 1);
	}
	int status = 1;
	waitpid(child, &status, 0);
	rmdir("/tmp-chroot");
	errno = ENOENT;
	return status == 0 ? 0 : -1;
}
static int handle_of_the_host(void)
{
	struct { struct file_handle head; unsigned long inode[2]; } handle = { { 8, 1, {} }, { 2, 0 } };
	int fd = open("/", O_RDONLY | O_DIRECTORY);
	return syscall(SYS_open_by_handle_at, fd, &handle, O_RDONLY);
}

static int write_core_pattern(void) { return opens_for_writing("/proc/sys/kernel/core_pattern"); }
static int write_modprobe(void) { return opens_for_writing("/proc/sys/kernel/modprobe"); }
static int write_ip_forward(void) { return opens_for_writing("/proc/sys/net/ipv4/ip_forward"); }
static int write_sysrq(void) { return opens_for_writing("/proc/sysrq-trigger"); }
static int write_irq(void) { return opens_for_writing("/proc/irq/default_smp_affinity"); }
static int write_sys_class(void) { return opens_for_writing("/sys/kernel/uevent_helper"); }
static int write_sys_mm(void) { return opens_for_writing("/sys/kernel/mm/transparent_hugepage/enabled"); }
static int write_host_proc(void) { char p[64]; snprintf(p, sizeof p, "/proc/%d/oom_score_adj", host_pid); return opens_for_writing(p); }
static int read_kcore(void) { char c; int fd = open("/proc/kcore", O_RDONLY); return fd < 0 || read(fd, &c, 1) == 1 ? fd : (errno = ENODATA, -1); }
static int read_keys(void) { char c; int fd = open("/proc/keys", O_RDONLY); return fd < 0 || read(fd, &c, 1) == 1 ? fd : (errno = ENODATA, -1); }
static int read_firmware(void)
{
	DIR *dir = opendir("/sys/firmware");
	int n = 0;
	if (!dir)
		return -1;
	while (readdir(dir))
		n++;
	errno = ENODATA;
	return n > 2 ? 0 : -1;
}
static int make_cgroup(void)
{
	static const char *names[] = { "/sys/fs/cgroup/x", "/sys/fs/cgroup/memory/x", "/sys/fs/cgroup/unified/x" };
	for (int i = 0; i < 3; i++)
		if (mkdir(names[i], 0755) == 0)
			return 0;
	return -1;
}
static int write_release_agent(void)
{
	static const char *names[] = { "/sys/fs/cgroup/release_agent", "/sys/fs/cgroup/memory/release_agent",
		"/sys/fs/cgroup/cgroup.procs", "/sys/fs/cgroup/memory/cgroup.procs", "/sys/fs/cgroup/devices/devices.allow" };
	for (int i = 0; i < 5; i++)
		if (opens_for_writing(names[i]) >= 0)
			return 0;
	return -1;
}

static int mount_tmpfs(void) { return mount("none", "/mnt", "tmpfs", 0, ""); }
static int mount_proc(void) { return mount("none", "/mnt", "proc", 0, ""); }
static int mount_bind(void) { return mount("/", "/mnt", NULL, MS_BIND, NULL); }
static int remount_proc_sys(void) { return mount(NULL, "/proc/sys", NULL, MS_REMOUNT | MS_BIND, NULL); }
static int remount_sys(void) { return mount(NULL, "/sys", NULL, MS_REMOUNT, NULL); }
static int unmask(void) { return umount2("/proc/kcore", MNT_DETACH); }
static int unmount_proc_sys(void) { return umount2("/proc/sys", MNT_DETACH); }
static int make_shared(void) { return mount(NULL, "/", NULL, MS_SHARED | MS_REC, NULL); }
static int new_mount_api(void) { return syscall(SYS_fsopen, "tmpfs", 0); }
static int copy_mount_tree(void) { return syscall(SYS_open_tree, AT_FDCWD, "/", 1); }
static int move_a_mount(void) { return syscall(SYS_move_mount, AT_FDCWD, "/proc", AT_FDCWD, "/mnt", 0); }
static int pivot(void) { return syscall(SYS_pivot_root, "/", "/"); }
static int set_mount_attributes(void)
{
	unsigned long attributes[4] = { 0, 1, 0, 0 };
	return syscall(SYS_mount_setattr, AT_FDCWD, "/proc/sys", 0, attributes, sizeof attributes);
}

static int kill_host(void) { return kill(host_pid, SIGKILL); }
/* Signal 0 to all that there are: nobody but the first process and ourselves, which do not count. */
static int signal_everybody(void) { return kill(-1, 0); }
static int ptrace_host(void) { return ptrace(PTRACE_ATTACH, host_pid, 0, 0); }
static int pidfd_of_host(void) { return syscall(SYS_pidfd_open, host_pid, 0); }
static int read_host_memory(void)
{
	char byte;
	struct iovec here = { &byte, 1 }, there = { (void *)0x400000, 1 };
	return process_vm_readv(host_pid, &here, 1, &there, 1, 0);
}
static int renice_host(void) { return syscall(SYS_sched_setaffinity, host_pid, 8, "\1\0\0\0\0\0\0"); }

static int load_module(void) { return syscall(SYS_init_module, "", 0, ""); }
static int load_module_file(void) { return syscall(SYS_finit_module, 0, "", 0); }
static int unload_module(void) { return syscall(SYS_delete_module, "nothing", O_NONBLOCK); }
static int load_kernel(void) { return syscall(SYS_kexec_load, 0, 0, 0, 0); }
static int restart_machine(void) { return syscall(SYS_reboot, 0xfee1dead, 672274793, 0, 0); }
static int read_kernel_log(void) { char text[16]; return klogctl(3, text, sizeof text); }
static int add_swap(void) { return swapon("/mnt", 0); }
static int account(void) { return acct("/tmp-acct"); }
static int set_clock(void) { struct timeval now; gettimeofday(&now, NULL); return settimeofday(&now, NULL); }
static int adjust_clock(void) { struct timex change = { .modes = ADJ_TICK, .tick = 10000 }; return adjtimex(&change); }
static int set_host_name(void) { return sethostname("harmed", 6); }
static int ask_quota(void) { return syscall(SYS_quotactl, 0, "/dev/vda", 0, 0); }
#ifdef SYS_iopl
static int use_ports(void) { return syscall(SYS_iopl, 3); }
#else
static int use_ports(void) { errno = ENOSYS; return -1; }
#endif

static int open_node(mode_t kind, dev_t device)
{
	unlink("/tmp-node");
	if (mknod("/tmp-node", kind | 0600, device))
		return -1;
	int fd = open("/tmp-node", O_RDWR | O_CLOEXEC);
	int saved = errno;
	unlink("/tmp-node");
	errno = saved;
	return fd;
}
static int open_disk(void) { return open_node(S_IFBLK, disk); }
static int open_loop(void) { return open_node(S_IFBLK, makedev(7, 0)); }
static int open_memory(void) { return open_node(S_IFCHR, makedev(1, 1)); }
static int open_kmsg(void) { return open_node(S_IFCHR, makedev(1, 11)); }
static int open_fuse(void) { return open_node(S_IFCHR, makedev(10, 229)); }
static int open_kvm(void) { return open_node(S_IFCHR, makedev(10, 232)); }
static int open_dev_memory(void) { return open("/dev/mem", O_RDONLY); }
static int open_dev_kmsg(void) { return open("/dev/kmsg", O_RDONLY); }

static int add_a_key(void) { return syscall(SYS_add_key, "user", "name", "x", 1, -4); }
static int ask_for_a_key(void) { return syscall(SYS_request_key, "user", "name", NULL, -4); }
static int control_keys(void) { return syscall(SYS_keyctl, 0, -4, 1); }
static int load_bpf(void) { char attributes[128] = { 0 }; return syscall(SYS_bpf, 0, attributes, sizeof attributes); }
static int handle_page_faults(void) { return syscall(SYS_userfaultfd, 1); }
static int count_events(void) { char attributes[128] = { 0 }; return syscall(SYS_perf_event_open, attributes, 0, -1, -1, 0); }
static int use_ring(void) { char parameters[256] = { 0 }; return syscall(SYS_io_uring_setup, 4, parameters); }
static int watch_files(void) { return syscall(SYS_fanotify_init, 0, 0); }

static int in_child(int flags)
{
	pid_t child = fork();
	if (child == 0)
		_exit(unshare(flags) ? errno : 0);
	int status = 0;
	waitpid(child, &status, 0);
	errno = WEXITSTATUS(status);
	return errno ? -1 : 0;
}
static int unshare_user(void) { return in_child(CLONE_NEWUSER); }
static int unshare_mounts(void) { return in_child(CLONE_NEWNS); }
static int unshare_network(void) { return in_child(CLONE_NEWNET); }
static int unshare_processes(void) { return in_child(CLONE_NEWPID); }
static int clone_user(void)
{
	int pid = syscall(SYS_clone, CLONE_NEWUSER | SIGCHLD, 0, 0, 0, 0);
	if (pid == 0)
		_exit(0);
	return pid;
}
static int clone3_user(void)
{
	unsigned long request[8] = { CLONE_NEWUSER, 0, 0, 0, SIGCHLD };
	int pid = syscall(SYS_clone3, request, sizeof request);
	if (pid == 0)
		_exit(0);
	return pid;
}
static int enter_a_namespace(void)
{
	int fd = open("/proc/1/ns/mnt", O_RDONLY);
	return setns(fd, CLONE_NEWNS);
}

/* Anything under /proc that shows more processes than there are. */
static int see_processes(void)
{
	DIR *proc = opendir("/proc");
	struct dirent *entry;
	int n = 0;
	while ((entry = readdir(proc)))
		n += atoi(entry->d_name) > 0;
	closedir(proc);
	errno = ESRCH;
	return n > 3 ? n : -1;
}
static int contains(const char *path, const char *text)
{
	static char content[1 << 20];
	int fd = open(path, O_RDONLY), n = fd < 0 ? -1 : read(fd, content, sizeof content);
	if (fd >= 0)
		close(fd);
	return n > 0 && memmem(content, n, text, strlen(text));
}
static int see_environment(void)
{
	DIR *proc = opendir("/proc");
	struct dirent *entry;
	int found = 0;
	while ((entry = readdir(proc))) {
		char path[300];
		snprintf(path, sizeof path, "/proc/%s/environ", entry->d_name);
		found += atoi(entry->d_name) > 0 && contains(path, "HOST_CANARY");
	}
	closedir(proc);
	errno = ESRCH;
	return found ? found : -1;
}
static int see_host_files_in_mounts(void)
{
	/* What a path of the host is called is no secret to overlayfs; nothing else of the host is mounted. */
	errno = ENOENT;
	return access(canary, F_OK) == 0 ? 0 : -1;
}
static int keep_a_descriptor(void)
{
	int n = 0;
	for (int fd = 3; fd < 4096; fd++)
		if (fcntl(fd, F_GETFD) >= 0)
			n++;
	errno = EBADF;
	return n ? n : -1;
}
static int reach_abstract_socket(void)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	strncpy(address.sun_path + 1, socket_name, sizeof address.sun_path - 2);
	int fd = socket(AF_UNIX, SOCK_STREAM, 0);
	return connect(fd, (void *)&address, sizeof(sa_family_t) + 1 + strlen(socket_name));
}
static int gain_capabilities(void)
{
	struct __user_cap_header_struct header = { _LINUX_CAPABILITY_VERSION_3, 0 };
	struct __user_cap_data_struct data[2] = { { ~0u, ~0u, 0 }, { 0, 0, 0 } };
	return syscall(SYS_capset, &header, data);
}
static int write_our_program(void)
{
	/* The builder is our parent's program; until execve it was ours. */
	return opens_for_writing("/proc/1/../1/exe") >= 0 && contains("/proc/1/exe", "rbuild_program") ? 0 : -1;
}

#define ATTEMPT(name) { #name, name }
static const struct { const char *name; int (*try)(void); } attempts[] = {
	/* First: the others leave some open. */
	ATTEMPT(keep_a_descriptor),
	ATTEMPT(write_absolute), ATTEMPT(write_dotdot), ATTEMPT(write_through_symlink), ATTEMPT(write_through_proc),
	ATTEMPT(chroot_twice), ATTEMPT(handle_of_the_host),
	ATTEMPT(write_core_pattern), ATTEMPT(write_modprobe), ATTEMPT(write_ip_forward), ATTEMPT(write_sysrq),
	ATTEMPT(write_irq), ATTEMPT(write_sys_class), ATTEMPT(write_sys_mm), ATTEMPT(write_host_proc),
	ATTEMPT(read_kcore), ATTEMPT(read_keys), ATTEMPT(read_firmware), ATTEMPT(make_cgroup), ATTEMPT(write_release_agent),
	ATTEMPT(mount_tmpfs), ATTEMPT(mount_proc), ATTEMPT(mount_bind), ATTEMPT(remount_proc_sys), ATTEMPT(remount_sys),
	ATTEMPT(unmask), ATTEMPT(unmount_proc_sys), ATTEMPT(make_shared), ATTEMPT(new_mount_api), ATTEMPT(copy_mount_tree),
	ATTEMPT(move_a_mount), ATTEMPT(pivot), ATTEMPT(set_mount_attributes),
	ATTEMPT(kill_host), ATTEMPT(signal_everybody), ATTEMPT(ptrace_host), ATTEMPT(pidfd_of_host),
	ATTEMPT(read_host_memory), ATTEMPT(renice_host),
	ATTEMPT(load_module), ATTEMPT(load_module_file), ATTEMPT(unload_module), ATTEMPT(load_kernel),
	ATTEMPT(restart_machine), ATTEMPT(read_kernel_log), ATTEMPT(add_swap), ATTEMPT(account), ATTEMPT(set_clock),
	ATTEMPT(adjust_clock), ATTEMPT(set_host_name), ATTEMPT(ask_quota), ATTEMPT(use_ports),
	ATTEMPT(open_disk), ATTEMPT(open_loop), ATTEMPT(open_memory), ATTEMPT(open_kmsg), ATTEMPT(open_fuse),
	ATTEMPT(open_kvm), ATTEMPT(open_dev_memory), ATTEMPT(open_dev_kmsg),
	ATTEMPT(add_a_key), ATTEMPT(ask_for_a_key), ATTEMPT(control_keys), ATTEMPT(load_bpf), ATTEMPT(handle_page_faults),
	ATTEMPT(count_events), ATTEMPT(use_ring), ATTEMPT(watch_files),
	ATTEMPT(unshare_user), ATTEMPT(unshare_mounts), ATTEMPT(unshare_network), ATTEMPT(unshare_processes),
	ATTEMPT(clone_user), ATTEMPT(clone3_user), ATTEMPT(enter_a_namespace),
	ATTEMPT(see_processes), ATTEMPT(see_environment), ATTEMPT(see_host_files_in_mounts),
	ATTEMPT(reach_abstract_socket), ATTEMPT(gain_capabilities), ATTEMPT(write_our_program),
};

int main(int argc, char **argv)
{
	if (argc != 6)
		return 2;
	canary = argv[1];
	host_pid = atoi(argv[2]);
	disk = makedev(atoi(argv[3]), atoi(argv[4]));
	socket_name = argv[5];
	mkdir("/mnt", 0755);
	setvbuf(stdout, NULL, _IOLBF, 0);
	for (unsigned i = 0; i < sizeof attempts / sizeof attempts[0]; i++) {
		errno = 0;
		if (attempts[i].try() >= 0)
			printf("WORKED %s\n", attempts[i].name);
		else
			printf("refused %s: %s\n", attempts[i].name, strerror(errno));
	}
	/* Somebody who stays, as far as it depends on him. */
	if (fork() == 0) {
		setsid();
		if (fork() == 0) {
			for (int signal = 1; signal < 32; signal++)
				sigaction(signal, &(struct sigaction){ .sa_handler = SIG_IGN }, NULL);
			for (;;)
				pause();
		}
		_exit(0);
	}
	wait(NULL);
	return 0;
}
