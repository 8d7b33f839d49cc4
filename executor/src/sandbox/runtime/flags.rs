//! The command lines of OCI runtimes: what all have in common, and what each needs to leave control groups to us.

use std::path::Path;

/// Where a runtime finds and keeps things; all in memory of this command's mount namespace.
pub(super) struct Places<'a> {
    /// The bundle.
    pub(super) bundle: &'a Path,
    /// Its own state.
    pub(super) state: &'a Path,
    /// Its log, one JSON document a line.
    pub(super) log: &'a Path,
}

/// Runtimes that have flags of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Family {
    Crun,
    Runc,
    Runsc,
    /// Any other: only what the runtimes agree on.
    Other,
}

impl Family {
    /// By the name of the program file, such as `crun`, `runc-1.2` or `docker-runc`.
    fn of(program: &Path) -> Self {
        let name = program.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let known = [("crun", Self::Crun), ("runsc", Self::Runsc), ("runc", Self::Runc)];
        known.into_iter().find(|(part, _)| name.contains(part)).map_or(Self::Other, |(_, family)| family)
    }

    fn flags(self) -> &'static [&'static str] {
        match self {
            Self::Crun => &["--cgroup-manager=disabled"],
            // Not about users: it may go on where control groups cannot be written, and here they cannot.
            Self::Runc => &["--rootless=true"],
            // Writes have to reach the root, and the network is the one that it is started in.
            Self::Runsc => &["--ignore-cgroups", "--overlay2=none", "--network=host"],
            Self::Other => &[],
        }
    }
}

/// `RUNTIME [FLAGS] run --bundle DIR ID`.
pub(super) fn arguments(program: &Path, places: &Places<'_>, id: &str) -> Vec<String> {
    let text = |path: &Path| path.to_string_lossy().into_owned();
    let mut arguments = vec![text(program), "--root".to_owned(), text(places.state)];
    arguments.extend(["--log".to_owned(), text(places.log), "--log-format".to_owned(), "json".to_owned()]);
    arguments.extend(Family::of(program).flags().iter().map(|flag| (*flag).to_owned()));
    arguments.extend(["run".to_owned(), "--bundle".to_owned(), text(places.bundle), id.to_owned()]);
    arguments
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runtimes_are_told_by_their_names() {
        let cases = [
            ("/usr/bin/crun", Family::Crun),
            ("/usr/sbin/runc", Family::Runc),
            ("/opt/runc-1.2", Family::Runc),
            ("/usr/local/bin/runsc", Family::Runsc),
            ("/usr/bin/youki", Family::Other),
        ];
        for (program, want) in cases {
            assert_eq!(Family::of(Path::new(program)), want, "{program}");
        }
    }

    #[test]
    fn the_command_comes_last() {
        let places = Places { bundle: Path::new("/b"), state: Path::new("/s"), log: Path::new("/l") };
        let line = arguments(Path::new("/usr/bin/crun"), &places, "x").join(" ");
        assert_eq!(
            line,
            "/usr/bin/crun --root /s --log /l --log-format json --cgroup-manager=disabled run --bundle /b x"
        );
    }
}
