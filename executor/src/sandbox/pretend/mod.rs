//! Pretends that there are many users where there is one.
//!
//! With a single id the kernel refuses `chown` and `setuid` to anybody else, and package managers do both. A filter sends
//! these calls, and the questions that show their effect, to a thread of ours, which answers them: owners are noted
//! ([`crate::owners`]), and who a process has become is kept by [`credentials`] and told to it. Nothing else pretends: such a
//! process may do what root of its user namespace may, and `stat` says that all files are root's.
//!
//! The calls are answered on what the process asked for, looked at through `/proc`; a hostile one can change its memory
//! meanwhile, which gives it nothing: it could have noted any owner itself.

mod adopt;
mod credentials;
mod process;

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::sync::OnceLock;
use std::thread::JoinHandle;

use rustix::event::{EventfdFlags, PollFd, PollFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use rustix::thread::{LinkNameSpaceType, UnshareFlags};

use super::error::SandboxError;
use super::seccomp::{self, Answered};
use crate::owners;
use crate::sys::notify::{self, PendingCall};
use crate::sys::spawn::Listener;
pub(super) use adopt::adopt;
use credentials::{Credentials, Ids};
use process::{Followed, Identity, Process, Processes};

/// What is answered, by name. The same names are looked for in the table of numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Call {
    Chown,
    Lchown,
    Fchown,
    Fchownat,
    SetUid,
    SetGid,
    SetReUid,
    SetReGid,
    SetResUid,
    SetResGid,
    SetFsUid,
    SetFsGid,
    SetGroups,
    GetUid,
    GetGid,
    GetEUid,
    GetEGid,
    GetResUid,
    GetResGid,
    GetGroups,
}

const CALLS: &[(&str, Call)] = &[
    ("chown", Call::Chown),
    ("lchown", Call::Lchown),
    ("fchown", Call::Fchown),
    ("fchownat", Call::Fchownat),
    ("setuid", Call::SetUid),
    ("setgid", Call::SetGid),
    ("setreuid", Call::SetReUid),
    ("setregid", Call::SetReGid),
    ("setresuid", Call::SetResUid),
    ("setresgid", Call::SetResGid),
    ("setfsuid", Call::SetFsUid),
    ("setfsgid", Call::SetFsGid),
    ("setgroups", Call::SetGroups),
    ("getuid", Call::GetUid),
    ("getgid", Call::GetGid),
    ("geteuid", Call::GetEUid),
    ("getegid", Call::GetEGid),
    ("getresuid", Call::GetResUid),
    ("getresgid", Call::GetResGid),
    ("getgroups", Call::GetGroups),
];

/// The numbers of [`CALLS`] here, and the filter for them; `None` on machines that we do not know.
fn answered() -> Option<&'static Answered> {
    static ANSWERED: OnceLock<Option<Answered>> = OnceLock::new();
    ANSWERED.get_or_init(|| seccomp::answered(CALLS.iter().map(|(name, _)| *name))).as_ref()
}

/// Answers the calls of one command. Dropping ends that.
pub(super) struct Pretender {
    /// Where the command's process sends the listener to.
    socket: Option<OwnedFd>,
    stop: OwnedFd,
    thread: Option<JoinHandle<()>>,
}

impl Pretender {
    /// Begins to wait for a command that starts as that user, on the host's mounts. `None` where no calls can be answered.
    pub(super) fn start(
        host_mounts: BorrowedFd<'_>,
        uid: u32,
        gid: u32,
        groups: &[u32],
    ) -> Result<Option<Self>, SandboxError> {
        let Some(answered) = answered() else { return Ok(None) };
        let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)
            .map_err(SandboxError::setup("make a pair of sockets"))?;
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        let stop = rustix::event::eventfd(0, flags).map_err(SandboxError::setup("make an event descriptor"))?;
        let stopped = stop.try_clone().map_err(SandboxError::io("copy", "an event descriptor"))?;
        let mounts = host_mounts.try_clone_to_owned().map_err(SandboxError::io("copy", "a namespace's descriptor"))?;
        let processes = Processes::new(Credentials::of_user(uid, gid, groups));
        let serve = move || {
            if let Err(errno) = go_back_to(mounts.as_fd()) {
                // The command then waits for nobody, and ends.
                return tracing::warn!(%errno, "cannot answer for a step");
            }
            // Without one the command was not started.
            if let Ok(Some(listener)) = notify::receive_descriptor(ours.as_fd()) {
                Server { listener, answered, processes }.serve(stopped.as_fd());
            }
        };
        let thread = std::thread::Builder::new().name("pretender".to_owned()).spawn(serve);
        let thread = thread.map_err(SandboxError::io("start", "a thread"))?;
        Ok(Some(Self { socket: Some(theirs), stop, thread: Some(thread) }))
    }

    /// What the command's process needs.
    pub(super) fn listener(&self) -> Option<Listener<'_>> {
        let filter = &answered()?.filter;
        Some(Listener { filter, socket: self.socket.as_ref()?.as_fd() })
    }

    /// The command's process has sent what there is to be sent, or will never.
    pub(super) fn started(&mut self) {
        self.socket = None;
    }
}

/// A thread begins with the root of its maker, which is a command's; processes are looked at through the host's `/proc`.
fn go_back_to(mounts: BorrowedFd<'_>) -> Result<(), Errno> {
    crate::sys::namespace::unshare(UnshareFlags::FS)?;
    rustix::thread::move_into_link_name_space(mounts, Some(LinkNameSpaceType::Mount))
}

impl Drop for Pretender {
    fn drop(&mut self) {
        self.socket = None;
        let _ = rustix::io::write(&self.stop, &1_u64.to_ne_bytes());
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

/// The thread that answers.
struct Server {
    listener: OwnedFd,
    answered: &'static Answered,
    processes: Processes,
}

impl Server {
    /// Until it is told to stop, or nobody is left who could call.
    fn serve(mut self, stop: BorrowedFd<'_>) {
        loop {
            let mut polls = [
                PollFd::from_borrowed_fd(self.listener.as_fd(), PollFlags::IN),
                PollFd::from_borrowed_fd(stop, PollFlags::IN),
            ];
            match rustix::event::poll(&mut polls, None) {
                Ok(_) => {}
                Err(Errno::INTR) => continue,
                Err(_) => return,
            }
            let [calls, orders] = polls.map(|poll| poll.revents());
            if !orders.is_empty() || calls.intersects(PollFlags::HUP | PollFlags::ERR) {
                return;
            }
            let Ok(call) = notify::receive(self.listener.as_fd()) else { continue };
            let result = self.perform(&call);
            // It may have been killed meanwhile.
            let _ = notify::answer(self.listener.as_fd(), &call, result);
        }
    }

    fn perform(&mut self, call: &PendingCall) -> Result<i64, Errno> {
        let position = self.answered.numbers.iter().position(|number| *number == Some(call.number));
        let (_, kind) = position.and_then(|position| CALLS.get(position)).ok_or(Errno::NOSYS)?;
        if let Some(id) = self.processes.of_all().and_then(|credentials| kind.id_of(credentials)) {
            return Ok(id.into());
        }
        let process = Process::of_thread(call.thread)?;
        let caller = match self.processes.of_all() {
            Some(_) if !kind.changes_credentials() => None,
            Some(_) | None => Some(Identity::of_thread(call.thread)?),
        };
        // What was opened by the thread's number is its own if it still waits.
        if !notify::is_pending(self.listener.as_fd(), call) {
            return Err(Errno::SRCH);
        }
        match &caller {
            Some(caller) if kind.changes_credentials() => self.change_credentials(*kind, call, &process, caller),
            Some(caller) => answer(*kind, call, &process, self.processes.credentials(caller)),
            None => answer(*kind, call, &process, self.processes.of_all().ok_or(Errno::SRCH)?),
        }
    }

    fn change_credentials(
        &mut self,
        kind: Call,
        call: &PendingCall,
        process: &Process,
        caller: &Identity,
    ) -> Result<i64, Errno> {
        let (id, second, third) = ids(call);
        let mut own = self.processes.credentials(caller).clone();
        match kind {
            Call::SetUid => own.set_user(Ids::all_or_effective(id, own.is_root()))?,
            Call::SetGid => own.set_group(Ids::all_or_effective(id, own.is_root()))?,
            Call::SetReUid => own.set_user(Ids::real_effective(id, second, own.user))?,
            Call::SetReGid => own.set_group(Ids::real_effective(id, second, own.group))?,
            Call::SetResUid => own.set_user(Ids::of(id, second, third))?,
            Call::SetResGid => own.set_group(Ids::of(id, second, third))?,
            Call::SetGroups => {
                let [count, list, ..] = call.arguments;
                own.set_groups(process.read_ids(list, count)?)?;
            }
            _ => return Err(Errno::NOSYS),
        }
        self.processes.change(caller, own);
        Ok(0)
    }
}

impl Call {
    fn changes_credentials(self) -> bool {
        use Call::{SetGid, SetGroups, SetReGid, SetReUid, SetResGid, SetResUid, SetUid};
        matches!(self, SetUid | SetGid | SetReUid | SetReGid | SetResUid | SetResGid | SetGroups)
    }

    /// The one id that it asks for, if it does.
    fn id_of(self, credentials: &Credentials) -> Option<u32> {
        match self {
            Self::GetUid => Some(credentials.user.real),
            // These two answer the old one, changed or not.
            Self::GetEUid | Self::SetFsUid => Some(credentials.user.effective),
            Self::GetGid => Some(credentials.group.real),
            Self::GetEGid | Self::SetFsGid => Some(credentials.group.effective),
            _ => None,
        }
    }
}

/// The first arguments as ids or descriptors: they are 32 bits wide, whatever is in the rest of the register.
fn ids(call: &PendingCall) -> (u32, u32, u32) {
    let [a, b, c, ..] = call.arguments;
    (a as u32, b as u32, c as u32)
}

/// What becomes of a call that leaves everybody who they are.
fn answer(kind: Call, call: &PendingCall, process: &Process, credentials: &Credentials) -> Result<i64, Errno> {
    let [a, b, c, d, e, _] = call.arguments;
    let (id, second, third) = ids(call);
    match kind {
        Call::Chown | Call::Lchown => {
            let followed = if kind == Call::Chown { Followed::Yes } else { Followed::No };
            let file = process.open_path(None, process.read_path(a)?, followed)?;
            change_owner(credentials, &file, second, third)
        }
        Call::Fchown => change_owner(credentials, &process.open_descriptor(id.cast_signed())?, second, third),
        Call::Fchownat => {
            let (flags, directory) = (e as i32, (id.cast_signed() != libc::AT_FDCWD).then_some(id.cast_signed()));
            let path = process.read_path(b)?;
            let followed = if flags & libc::AT_SYMLINK_NOFOLLOW == 0 { Followed::Yes } else { Followed::No };
            let file = match (path.is_empty(), flags & libc::AT_EMPTY_PATH != 0) {
                (true, true) => process.open_base(directory)?,
                (true, false) => return Err(Errno::NOENT),
                (false, _) => process.open_path(directory, path, followed)?,
            };
            change_owner(credentials, &file, c as u32, d as u32)
        }
        Call::GetResUid => write_three(process, [a, b, c], credentials.user),
        Call::GetResGid => write_three(process, [a, b, c], credentials.group),
        Call::GetGroups => {
            let n_groups = credentials.groups.len();
            match usize::try_from(id.cast_signed()).map_err(|_| Errno::INVAL)? {
                0 => {}
                room if room < n_groups => return Err(Errno::INVAL),
                _ => process.write_ids(b, &credentials.groups)?,
            }
            Ok(n_groups as i64)
        }
        _ => kind.id_of(credentials).map(i64::from).ok_or(Errno::NOSYS),
    }
}

fn write_three(process: &Process, addresses: [u64; 3], ids: Ids) -> Result<i64, Errno> {
    for (address, id) in addresses.into_iter().zip([ids.real, ids.effective, ids.saved]) {
        process.write_ids(address, &[id])?;
    }
    Ok(0)
}

/// What the kernel does for root: notes the owner, and takes set-user-ID bits away.
fn change_owner(credentials: &Credentials, file: &OwnedFd, uid: u32, gid: u32) -> Result<i64, Errno> {
    const KEEP: u32 = u32::MAX;
    let (uid, gid) = ((uid != KEEP).then_some(uid), (gid != KEEP).then_some(gid));
    let stat = owners::fstat(file)?;
    let changes = uid.is_some_and(|uid| uid != stat.st_uid) || gid.is_some_and(|gid| gid != stat.st_gid);
    if changes && !credentials.is_root() {
        return Err(Errno::PERM);
    }
    owners::note_parts(file, uid, gid)?;
    process::drop_special_bits(file, &stat)?;
    Ok(0)
}
