//! `registries.conf` of podman, buildah and skopeo, with the files beside it.
//!
//! Names without a host are not looked for elsewhere (`unqualified-search-registries`, `[aliases]`): they mean docker.io,
//! as for docker and in every Dockerfile. A new location counts for pulls alone; pushes go where the user said.
//!
//! Spec: containers-registries.conf(5), containers-registries.conf.d(5).

use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::{ConfigFiles, Host, Reach, Serves, Settings, broken, first_text, text_of};
use crate::registry::error::RegistryError;

#[derive(Deserialize, Default)]
#[serde(default)]
struct File {
    registry: Vec<Entry>,
    /// The first version of the format, which has lists.
    registries: Lists,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Lists {
    insecure: List,
    block: List,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct List {
    registries: Vec<String>,
}

#[derive(Deserialize, Default, Clone)]
#[serde(default, rename_all = "kebab-case")]
struct Entry {
    prefix: String,
    location: String,
    insecure: bool,
    blocked: bool,
    mirror_by_digest_only: bool,
    mirror: Vec<Mirror>,
}

#[derive(Deserialize, Default, Clone)]
#[serde(default, rename_all = "kebab-case")]
struct Mirror {
    location: String,
    insecure: bool,
    pull_from_mirror: String,
}

/// An entry, and the file that it is in.
struct Found {
    entry: Entry,
    path: PathBuf,
}

/// What the entry with the longest prefix says.
pub(super) fn of(files: &ConfigFiles, registry: &str, repository: &str) -> Result<Option<Settings>, RegistryError> {
    let mut entries: Vec<Found> = Vec::new();
    if let Some((path, text)) = first_text(&files.registries_conf)? {
        entries.extend(parse(path, &text)?);
    }
    for path in drop_ins(&files.registries_conf_dirs)? {
        let Some(text) = text_of(&path)? else { continue };
        for found in parse(&path, &text)? {
            // The later file counts.
            entries.retain(|known| known.entry.prefix != found.entry.prefix);
            entries.push(found);
        }
    }
    let name = format!("{registry}/{repository}");
    let matching = entries.iter().filter(|found| matches(&found.entry.prefix, registry, &name));
    Ok(matching.max_by_key(|found| specificity(&found.entry.prefix)).map(|found| settings(found, registry)))
}

/// `*.conf` of the directories; a file in a later one hides that of the same name in an earlier one.
fn drop_ins(dirs: &[PathBuf]) -> Result<Vec<PathBuf>, RegistryError> {
    let mut by_name = std::collections::BTreeMap::new();
    for dir in dirs {
        let Ok(entries) = std::fs::read_dir(dir) else { continue };
        for entry in entries {
            let path = entry.map_err(|error| broken(dir, &error))?.path();
            if path.extension().is_some_and(|extension| extension == "conf")
                && let Some(name) = path.file_name()
            {
                by_name.insert(name.to_owned(), path.clone());
            }
        }
    }
    Ok(by_name.into_values().collect())
}

fn parse(path: &Path, text: &str) -> Result<Vec<Found>, RegistryError> {
    let file: File = toml::from_str(text).map_err(|error| broken(path, &error))?;
    let named = |location: String| Entry { location, ..Entry::default() };
    let insecure = file.registries.insecure.registries.into_iter().map(|name| Entry { insecure: true, ..named(name) });
    let blocked = file.registries.block.registries.into_iter().map(|name| Entry { blocked: true, ..named(name) });
    let mut list = Vec::new();
    for mut entry in file.registry.into_iter().chain(insecure).chain(blocked) {
        if entry.prefix.is_empty() {
            entry.prefix.clone_from(&entry.location);
        }
        let prefix = entry.prefix.trim_end_matches('/').to_owned();
        if prefix.is_empty() {
            return Err(broken(path, &"a [[registry]] has neither prefix nor location"));
        }
        if let Some(bad) = [&prefix, &entry.location].into_iter().find(|text| text.contains("://")) {
            return Err(broken(path, &format!("`{bad}` has a scheme; a location is HOST[:PORT][/PATH]")));
        }
        for mirror in &entry.mirror {
            if !matches!(mirror.pull_from_mirror.as_str(), "" | "all" | "digest-only" | "tag-only") {
                let word = &mirror.pull_from_mirror;
                return Err(broken(path, &format!("pull-from-mirror is all, digest-only or tag-only, not `{word}`")));
            }
        }
        list.push(Found { entry: Entry { prefix, ..entry }, path: path.to_owned() });
    }
    Ok(list)
}

/// Whether a prefix (`host`, `host/path`, `*.host`) is one of `registry/repository`.
fn matches(prefix: &str, registry: &str, name: &str) -> bool {
    if let Some(domain) = prefix.strip_prefix('*') {
        let host = registry.rsplit_once(':').map_or(registry, |(host, _)| host);
        return domain.starts_with('.') && host.len() > domain.len() && host.ends_with(domain);
    }
    name.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// Any prefix with a path or a whole host comes before one with a wildcard.
fn specificity(prefix: &str) -> (bool, usize) {
    (!prefix.starts_with('*'), prefix.len())
}

fn settings(found: &Found, registry: &str) -> Settings {
    let Found { entry, path } = found;
    let mut hosts: Vec<Host> = Vec::with_capacity(entry.mirror.len() + 2);
    for mirror in &entry.mirror {
        let how = if entry.mirror_by_digest_only { "digest-only" } else { &mirror.pull_from_mirror };
        let serves = Serves { tags: how != "digest-only", digests: true, pushes: false, pinned: how != "tag-only" };
        let host = moved(&entry.prefix, &mirror.location, registry, mirror.insecure);
        hosts.push(Host { serves, is_mirror: true, ..host });
    }
    let is_moved = !entry.location.is_empty() && entry.location.trim_end_matches('/') != entry.prefix;
    let origin = Host { reach: reach(entry.insecure), ..Host::registry(registry) };
    if is_moved {
        // What is named here is not asked for pulls: it is called otherwise where it is.
        let serves = Serves { pushes: false, ..Serves::EVERYTHING };
        hosts.push(Host { serves, ..moved(&entry.prefix, &entry.location, registry, entry.insecure) });
        let only_pushes = Serves { tags: false, digests: false, pushes: true, pinned: true };
        hosts.push(Host { serves: only_pushes, ..origin });
    } else {
        hosts.push(origin);
    }
    let source = format!("{}, [[registry]] \"{}\"", path.display(), entry.prefix);
    Settings { source, is_blocked: entry.blocked, hosts }
}

fn reach(is_insecure: bool) -> Reach {
    if is_insecure { Reach::Insecure } else { Reach::Usual }
}

/// The host at `location`, which stands where `prefix` was.
fn moved(prefix: &str, location: &str, registry: &str, is_insecure: bool) -> Host {
    let location = location.trim_end_matches('/');
    let (host, path) = location.split_once('/').unwrap_or((location, ""));
    let host = if host.is_empty() { registry } else { host };
    let strip = match prefix.starts_with('*') {
        true => "",
        false => prefix.split_once('/').map_or("", |(_, path)| path),
    };
    Host {
        reach: reach(is_insecure),
        strip: strip.to_owned(),
        path_prefix: path.trim_matches('/').to_owned(),
        ..Host::registry(host)
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::shown;
    use super::*;

    fn check(text: &str, registry: &str, repository: &str) -> Option<String> {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("registries.conf");
        std::fs::write(&path, text).expect("a file");
        let files = ConfigFiles { registries_conf: vec![path], ..ConfigFiles::default() };
        of(&files, registry, repository).expect("settings").as_ref().map(shown)
    }

    #[test]
    fn the_longest_prefix_counts() {
        let text = r#"
unqualified-search-registries = ["quay.io"]
[[registry]]
prefix = "r.example/team"
location = "inner.example/all/team"
[[registry]]
location = "r.example"
insecure = true
[[registry]]
prefix = "*.example"
blocked = true
[[registry]]
prefix = "r.example/team/none"
blocked = true
location = "r.example/team/none"
"#;
        let cases = [
            ("r.example", "team/app", Some("inner.example team->all/team no pushes, r.example no tags no digests")),
            ("r.example", "teams/app", Some("insecure r.example")),
            ("r.example", "team/none/x", Some("blocked r.example")),
            ("s.example:5000", "a", Some("blocked s.example:5000")),
            ("example", "a", None),
            ("docker.io", "library/a", None),
        ];
        for (registry, repository, expected) in cases {
            assert_eq!(check(text, registry, repository).as_deref(), expected, "{registry}/{repository}");
        }
    }

    #[test]
    fn mirrors_come_first_and_serve_pulls() {
        let text = r#"
[[registry]]
prefix = "docker.io/library"
location = "docker.io/library"
[[registry.mirror]]
location = "m.example:5000/hub"
insecure = true
[[registry.mirror]]
location = "n.example"
pull-from-mirror = "digest-only"
"#;
        let expected = "insecure m.example:5000 library->hub no pushes, n.example library-> no tags no pushes, \
                        registry-1.docker.io";
        assert_eq!(check(text, "docker.io", "library/debian").as_deref(), Some(expected));
        assert_eq!(check(text, "docker.io", "other/debian"), None);
    }

    proptest::proptest! {
        #[test]
        fn no_prefix_and_location_make_it_panic(
            prefix in "[*./:a-z0-9-]{0,12}", location in "[*./:a-z0-9-]{0,12}",
            registry in "[a-z.]{1,6}(:[0-9]{1,3})?", repository in "[a-z/]{1,8}",
        ) {
            let text = format!("[[registry]]\nprefix = \"{prefix}\"\nlocation = \"{location}\"\n[[registry.mirror]]\nlocation = \"{location}\"\n");
            for found in parse(Path::new("/x"), &text).unwrap_or_default() {
                if matches(&found.entry.prefix, &registry, &format!("{registry}/{repository}")) {
                    drop(shown(&settings(&found, &registry)));
                }
            }
        }
    }

    #[test]
    fn the_old_lists_are_read() {
        let text = "[registries.insecure]\nregistries = [\"i.example:5000\"]\n[registries.block]\nregistries = [\"b.example\"]\n";
        assert_eq!(check(text, "i.example:5000", "a").as_deref(), Some("insecure i.example:5000"));
        assert_eq!(check(text, "b.example", "a").as_deref(), Some("blocked b.example"));
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let broken = [
            "[[registry]]\ninsecure = true\n",
            "[[registry]]\nlocation = \"https://r\"\n",
            "[[registry]]\nlocation = \"r\"\n[[registry.mirror]]\nlocation = \"m\"\npull-from-mirror = \"never\"\n",
        ];
        for text in broken {
            assert!(parse(Path::new("/x"), text).is_err(), "{text}");
        }
    }
}
