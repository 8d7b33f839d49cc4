//! What usually makes builds differ, by what it leaves behind.

use executor::compare::{Aspect, Comparison, FileChange};

/// A frequent cause: how its files are told, and what helps.
struct Cause {
    is_its: fn(&str) -> bool,
    help: &'static str,
}

const CAUSES: &[Cause] = &[
    Cause {
        is_its: |path| path.contains("/__pycache__") || path.ends_with(".pyc"),
        help: "Python writes times into __pycache__: ENV PYTHONDONTWRITEBYTECODE=1, or `pip install --no-compile`",
    },
    Cause {
        is_its: |path| path.starts_with("/var/log/"),
        help: "logs have times in them: remove /var/log/apt, /var/log/dpkg.log and the like in the same RUN, \
               or `--mount=type=tmpfs,target=/var/log`",
    },
    Cause {
        is_its: |path| path == "/var/cache/ldconfig/aux-cache",
        help: "ldconfig's cache has times of this machine's files in it: remove /var/cache/ldconfig/aux-cache in the same RUN",
    },
    Cause {
        is_its: |path| path.starts_with("/var/cache/") && path != "/var/cache/ldconfig/aux-cache",
        help: "caches of package managers: remove them in the same RUN, or `--mount=type=cache`",
    },
    Cause {
        is_its: |path| path.starts_with("/var/lib/apt/lists"),
        help: "package lists change with the archive: remove /var/lib/apt/lists in the same RUN, or use a snapshot of the archive",
    },
    Cause {
        is_its: |path| matches!(path, "/etc/machine-id" | "/var/lib/dbus/machine-id" | "/var/lib/systemd/random-seed"),
        help: "ids that are made anew each time: truncate /etc/machine-id and remove random seeds",
    },
    Cause {
        is_its: |path| path.starts_with("/etc/ssh/ssh_host_") || path.ends_with(".key") || path.ends_with(".pem"),
        help: "keys that are made while building are different each time, and everybody who has the image has them: \
               make them when a container starts",
    },
    Cause {
        is_its: |path| matches!(path, "/etc/shadow" | "/etc/shadow-" | "/etc/passwd-" | "/etc/group-"),
        help: "shadow holds the day of the last change of passwords: set SOURCE_DATE_EPOCH, which useradd reads",
    },
    Cause {
        is_its: |path| path.starts_with("/tmp/") || path.starts_with("/var/tmp/") || path.starts_with("/root/.cache/"),
        help: "temporary files: remove them in the same RUN, or `--mount=type=tmpfs,target=/tmp`",
    },
    Cause { is_its: |path| path.ends_with(".gz"), help: "gzip writes times: `gzip -n`" },
    Cause {
        is_its: |path| path.ends_with(".a"),
        help: "ar writes times: `ar D`, or binutils with --enable-deterministic-archives",
    },
    Cause {
        is_its: |path| [".jar", ".war", ".zip", ".whl"].iter().any(|end| path.ends_with(end)),
        help: "zip archives hold times: SOURCE_DATE_EPOCH for tools that read it, else `touch -d` before, or strip-nondeterminism",
    },
];

const TIMES: &str = "files have the times at which they were made: SOURCE_DATE_EPOCH=… rbuild … \
                     -o type=image,rewrite-timestamp=true makes none later than that";
const CREATED: &str =
    "the config has the time of the build: set SOURCE_DATE_EPOCH, for instance to the time of the last commit";

/// What is likely to help, each once.
pub(super) fn advice(comparison: &Comparison) -> Vec<&'static str> {
    let mut advice = Vec::new();
    let is_time_only = |change: &FileChange| change.differs == [Aspect::Mtime];
    if comparison.files.iter().any(is_time_only) {
        advice.push(TIMES);
    }
    let has_created = comparison.config.iter().any(|change| change.field == "created");
    if has_created || (comparison.config.is_empty() && !comparison.history.is_empty() && comparison.files.is_empty()) {
        advice.push(CREATED);
    }
    for cause in CAUSES {
        if comparison.files.iter().any(|change| !is_time_only(change) && (cause.is_its)(&change.path)) {
            advice.push(cause.help);
        }
    }
    advice
}

#[cfg(test)]
mod tests {
    use executor::compare::{EntryFacts, Kind};

    use super::*;

    fn change(path: &str, differs: &[Aspect]) -> FileChange {
        let facts =
            EntryFacts { kind: Kind::File, mode: "0644".into(), uid: 0, gid: 0, size: 1, mtime: 0, target: None };
        FileChange { path: path.to_owned(), differs: differs.to_vec(), a: Some(facts.clone()), b: Some(facts) }
    }

    #[test]
    fn causes_are_told_by_what_they_leave() {
        let content = [Aspect::Content, Aspect::Mtime];
        for (path, differs, expected) in [
            ("/usr/lib/python3/__pycache__/x.cpython-311.pyc", &content[..], "PYTHONDONTWRITEBYTECODE"),
            ("/var/log/apt/history.log", &content, "/var/log/apt"),
            ("/var/cache/ldconfig/aux-cache", &content, "aux-cache"),
            ("/etc/machine-id", &content, "made anew"),
            ("/app/file", &[Aspect::Mtime], "rewrite-timestamp"),
        ] {
            let comparison = Comparison { files: vec![change(path, differs)], ..Comparison::default() };
            let advice = advice(&comparison);
            assert!(advice.len() == 1 && advice[0].contains(expected), "{path}: {advice:?}");
        }
        let unknown = Comparison { files: vec![change("/app/file", &content)], ..Comparison::default() };
        assert_eq!(advice(&unknown), [] as [&str; 0]);
    }
}
