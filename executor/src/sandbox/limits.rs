//! `--ulimit` to kernel limits.

use solver::Ulimit;

use super::error::SandboxError;
use crate::sys::spawn::Limit;

/// Names of limits, without `RLIMIT_`, and their numbers.
const NAMES: &[(&str, u32)] = &[
    ("as", libc::RLIMIT_AS),
    ("core", libc::RLIMIT_CORE),
    ("cpu", libc::RLIMIT_CPU),
    ("data", libc::RLIMIT_DATA),
    ("fsize", libc::RLIMIT_FSIZE),
    ("locks", libc::RLIMIT_LOCKS),
    ("memlock", libc::RLIMIT_MEMLOCK),
    ("msgqueue", libc::RLIMIT_MSGQUEUE),
    ("nice", libc::RLIMIT_NICE),
    ("nofile", libc::RLIMIT_NOFILE),
    ("nproc", libc::RLIMIT_NPROC),
    ("rss", libc::RLIMIT_RSS),
    ("rtprio", libc::RLIMIT_RTPRIO),
    ("rttime", libc::RLIMIT_RTTIME),
    ("sigpending", libc::RLIMIT_SIGPENDING),
    ("stack", libc::RLIMIT_STACK),
];

/// Limits ready for the kernel, and what had to be lowered.
#[derive(Debug, Default)]
pub(super) struct Limits {
    /// Number and value.
    pub(super) values: Vec<(u32, Limit)>,
    /// One sentence for all limits that were lowered.
    pub(super) warning: Option<String>,
}

/// Checks names, and lowers what may not be raised: `ceiling` gives the hard limit that cannot be exceeded.
pub(super) fn resolve(ulimits: &[Ulimit], ceiling: impl Fn(u32) -> Option<u64>) -> Result<Limits, SandboxError> {
    let mut limits = Limits::default();
    let mut lowered = Vec::new();
    for ulimit in ulimits {
        let Some(&(_, number)) = NAMES.iter().find(|(name, _)| *name == ulimit.name) else {
            return Err(SandboxError::UnknownLimit { name: ulimit.name.clone() });
        };
        let (soft, hard) = (kernel_value(ulimit.soft), kernel_value(ulimit.hard));
        let most = ceiling(number).unwrap_or(libc::RLIM64_INFINITY);
        if hard > most {
            lowered.push(format!("{}={}", ulimit.name, most));
        }
        limits.values.push((number, Limit { rlim_cur: soft.min(hard).min(most), rlim_max: hard.min(most) }));
    }
    if !lowered.is_empty() {
        let list = lowered.join(", ");
        limits.warning = Some(format!("limits that may not be raised here were lowered: {list}"));
    }
    Ok(limits)
}

/// The hard limits of this process, unless it may exceed them.
pub(super) fn process_ceiling(may_raise: bool) -> impl Fn(u32) -> Option<u64> {
    move |number| {
        let resource = RESOURCES.iter().find(|(of, _)| *of == number).map(|(_, resource)| *resource)?;
        if may_raise { None } else { rustix::process::getrlimit(resource).maximum }
    }
}

/// The wrapper's names of the kernel's numbers.
const RESOURCES: &[(u32, rustix::process::Resource)] = {
    use rustix::process::Resource;
    &[
        (libc::RLIMIT_AS, Resource::As),
        (libc::RLIMIT_CORE, Resource::Core),
        (libc::RLIMIT_CPU, Resource::Cpu),
        (libc::RLIMIT_DATA, Resource::Data),
        (libc::RLIMIT_FSIZE, Resource::Fsize),
        (libc::RLIMIT_LOCKS, Resource::Locks),
        (libc::RLIMIT_MEMLOCK, Resource::Memlock),
        (libc::RLIMIT_MSGQUEUE, Resource::Msgqueue),
        (libc::RLIMIT_NICE, Resource::Nice),
        (libc::RLIMIT_NOFILE, Resource::Nofile),
        (libc::RLIMIT_NPROC, Resource::Nproc),
        (libc::RLIMIT_RSS, Resource::Rss),
        (libc::RLIMIT_RTPRIO, Resource::Rtprio),
        (libc::RLIMIT_RTTIME, Resource::Rttime),
        (libc::RLIMIT_SIGPENDING, Resource::Sigpending),
        (libc::RLIMIT_STACK, Resource::Stack),
    ]
};

fn kernel_value(value: i64) -> u64 {
    u64::try_from(value).unwrap_or(libc::RLIM64_INFINITY)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ulimit(name: &str, soft: i64, hard: i64) -> Ulimit {
        Ulimit { name: name.to_owned(), soft, hard }
    }

    #[test]
    fn limits_are_taken_as_given_where_allowed() {
        let limits = resolve(&[ulimit("nofile", 100, 200), ulimit("core", -1, -1)], |_| None).unwrap();
        let values: Vec<_> = limits.values.iter().map(|(n, limit)| (*n, limit.rlim_cur, limit.rlim_max)).collect();
        let unlimited = libc::RLIM64_INFINITY;
        assert_eq!(values, [(libc::RLIMIT_NOFILE, 100, 200), (libc::RLIMIT_CORE, unlimited, unlimited)]);
        assert_eq!(limits.warning, None);
    }

    #[test]
    fn limits_that_may_not_be_raised_are_lowered_with_one_warning() {
        let wanted = [ulimit("nofile", 5000, 9000), ulimit("nproc", 10, 20), ulimit("stack", -1, -1)];
        let limits = resolve(&wanted, |_| Some(1000)).unwrap();
        let values: Vec<_> = limits.values.iter().map(|(_, limit)| (limit.rlim_cur, limit.rlim_max)).collect();
        assert_eq!(values, [(1000, 1000), (10, 20), (1000, 1000)]);
        let warning = limits.warning.unwrap();
        assert!(warning.ends_with("nofile=1000, stack=1000"), "{warning}");
    }

    #[test]
    fn unknown_limits_are_refused() {
        assert!(matches!(resolve(&[ulimit("files", 1, 1)], |_| None), Err(SandboxError::UnknownLimit { .. })));
    }
}
