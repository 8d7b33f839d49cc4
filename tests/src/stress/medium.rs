//! What a store stands on: a directory, memory, a small disk that runs full, or a disk whose power is cut.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::Result;

/// `EXT4_IOC_SHUTDOWN` with `EXT4_GOING_FLAGS_NOLOGFLUSH`: from one moment to the next nothing reaches the disk any more, not
/// even the journal. What is on it then is what a power cut would have left, as far as the file system's own memory goes.
const SHUTDOWN: &str = "open(my $dir, '<', $ARGV[0]) or die \"$!\"; my $flags = pack('L', 2); ioctl($dir, 0x8004587d, $flags) or die \"$!\"";

/// How long killed processes may take to be gone.
const LET_GO: Duration = Duration::from_secs(60);

/// What the store of a stress run stands on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Medium {
    /// The directory of the run.
    Directory,
    /// Memory.
    Tmpfs,
    /// A small ext4 in a file, of so many MiB, that runs full again and again.
    SmallDisk {
        /// Its size.
        mebibytes: u64,
    },
    /// An ext4 in a file, of so many MiB, that is cut off while builds run: everything that was not synced is lost.
    PowerCut {
        /// Its size.
        mebibytes: u64,
    },
}

impl Medium {
    /// What people call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Directory => "dir",
            Self::Tmpfs => "tmpfs",
            Self::SmallDisk { .. } => "loop",
            Self::PowerCut { .. } => "flaky",
        }
    }

    /// Why this machine does not have it; `None` when it does.
    pub fn lacking(self) -> Option<String> {
        let needs_loop = matches!(self, Self::SmallDisk { .. } | Self::PowerCut { .. });
        if needs_loop && !Path::new("/dev/loop-control").exists() {
            return Some("needs loop devices".to_owned());
        }
        let programs = match self {
            Self::Directory | Self::Tmpfs => vec!["unshare"],
            Self::SmallDisk { .. } => vec!["unshare", "mkfs.ext4"],
            Self::PowerCut { .. } => vec!["unshare", "mkfs.ext4", "perl"],
        };
        let is_there =
            |program: &&str| Command::new("sh").args(["-c", "command -v \"$0\" > /dev/null", program]).status();
        let lacks = |program: &&str| !is_there(program).is_ok_and(|status| status.success());
        programs.into_iter().find(lacks).map(|program| format!("needs the program {program}"))
    }

    /// Makes and mounts it at `dir`.
    pub(super) fn mount(self, dir: &Path) -> Result<Mounted> {
        std::fs::create_dir_all(dir).map_err(|error| format!("cannot create {}: {error}", dir.display()))?;
        let mounted = Mounted { medium: self, dir: dir.to_owned(), image: dir.with_extension("img") };
        match self {
            Self::Directory => {}
            Self::Tmpfs => succeed(Command::new("mount").args(["-t", "tmpfs", "-o", "size=4g", "stress"]).arg(dir))?,
            Self::SmallDisk { mebibytes } | Self::PowerCut { mebibytes } => {
                let file = std::fs::File::create(&mounted.image).and_then(|file| file.set_len(mebibytes << 20));
                file.map_err(|error| format!("cannot make {}: {error}", mounted.image.display()))?;
                succeed(Command::new("mkfs.ext4").args(["-q", "-m", "0"]).arg(&mounted.image))?;
                mounted.mount_image()?;
            }
        }
        Ok(mounted)
    }
}

/// A medium in place.
pub(super) struct Mounted {
    medium: Medium,
    dir: PathBuf,
    image: PathBuf,
}

impl Mounted {
    /// Where the store is.
    pub(super) fn store(&self) -> PathBuf {
        self.dir.join("store")
    }

    /// Whether builds may fail for lack of room.
    pub(super) fn may_be_full(&self) -> bool {
        matches!(self.medium, Medium::SmallDisk { .. })
    }

    /// Everything that was not synced is lost from here on, and nothing can be read or written.
    pub(super) fn cut(&self) -> Result<()> {
        succeed(Command::new("perl").args(["-e", SHUTDOWN]).arg(&self.dir))
    }

    /// The machine is started again.
    pub(super) fn restart(&self) -> Result<()> {
        self.unmount()?;
        self.mount_image()
    }

    fn mount_image(&self) -> Result<()> {
        succeed(Command::new("mount").args(["-o", "loop"]).arg(&self.image).arg(&self.dir))
    }

    /// Takes it down. Processes that were killed may need a moment to let go, each of its mount in a namespace of its own:
    /// until the last has, the file system is there, and whoever mounts it gets the one that was cut off.
    pub(super) fn unmount(&self) -> Result<()> {
        if self.medium == Medium::Directory {
            return Ok(());
        }
        let since = Instant::now();
        let again = |error: String| match since.elapsed() > LET_GO {
            true => Err(error),
            false => {
                std::thread::sleep(Duration::from_millis(50));
                Ok(())
            }
        };
        while let Err(error) = succeed(Command::new("umount").arg(&self.dir)) {
            again(error)?;
        }
        if self.medium == Medium::Tmpfs {
            return Ok(());
        }
        loop {
            let attached = Command::new("losetup").arg("-j").arg(&self.image).output();
            let attached = attached.map_err(|error| format!("losetup: {error}"))?.stdout;
            if attached.is_empty() {
                return Ok(());
            }
            again(format!("something keeps the disk: {}", String::from_utf8_lossy(&attached)))?;
        }
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if self.medium != Medium::Directory {
            drop(Command::new("umount").arg("-l").arg(&self.dir).stderr(Stdio::null()).status());
        }
        drop(std::fs::remove_file(&self.image));
    }
}

fn succeed(command: &mut Command) -> Result<()> {
    let output = command.stdin(Stdio::null()).output().map_err(|error| format!("{command:?}: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("{command:?} ended with {}: {}", output.status, String::from_utf8_lossy(&output.stderr)))
}
