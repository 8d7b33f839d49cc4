//! Directories of descriptions, and what names mean in them.

use solver::Tier;
use tempfile::TempDir;

use super::*;

/// Two directories and a catalog of them.
struct Fixture {
    directory: TempDir,
}

impl Fixture {
    fn new(files: &[(&str, &str)]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = directory.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        Self { directory }
    }

    fn catalog(&self) -> Catalog {
        Catalog::new(["etc", "run", "absent"].iter().map(|name| self.directory.path().join(name)).collect())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }
}

/// A file in which each device sets `WHO` to the value given.
fn file(kind: &str, who: &str, devices: &[(&str, &str)]) -> String {
    let mut text = format!("cdiVersion: 0.6.0\nkind: {kind}\ncontainerEdits: {{ env: [FILE={who}] }}\ndevices:\n");
    for (name, annotations) in devices {
        text.push_str(&format!("- name: {name}\n  annotations: {{ {annotations} }}\n"));
        text.push_str(&format!("  containerEdits: {{ env: [WHO={who}-{name}] }}\n"));
    }
    text
}

fn wanted(name: &str, required: bool) -> Device {
    Device { name: name.to_owned(), required }
}

fn names(catalog: &Catalog, name: &str) -> Vec<String> {
    catalog.find(&wanted(name, false)).unwrap().into_iter().map(|found| found.name).collect()
}

#[test]
fn names_mean_one_all_or_the_first_of_a_kind_or_a_class() {
    let one = "org.mobyproject.buildkit.device.class: fast";
    let multi = file("v.com/multi", "a", &[("qux", ""), ("bar", ""), ("baz", one)]);
    let single = file("v.com/single", "b", &[("only", one)]);
    let fixture = Fixture::new(&[("etc/multi.yaml", &multi), ("run/single.json", &single), ("run/no.txt", "{")]);
    let catalog = fixture.catalog();
    let cases: [(&str, &[&str]); 8] = [
        ("v.com/multi=bar", &["v.com/multi=bar"]),
        ("v.com/multi", &["v.com/multi=bar"]),
        ("v.com/multi=*", &["v.com/multi=bar", "v.com/multi=baz", "v.com/multi=qux"]),
        ("v.com/multi=fast", &["v.com/multi=baz"]),
        ("fast", &["v.com/multi=baz", "v.com/single=only"]),
        ("v.com/multi=none", &[]),
        ("v.com/other", &[]),
        ("slow", &[]),
    ];
    for (name, want) in cases {
        assert_eq!(names(&catalog, name), want, "{name}");
    }
    assert_eq!(catalog.faults(), []);
    let refused = catalog.find(&wanted("v.com/a/b=c", false)).unwrap_err();
    assert!(refused.message.starts_with("invalid device \"v.com/a/b=c\": "), "{}", refused.message);
}

#[test]
fn what_is_missing_is_an_error_only_when_it_is_required() {
    let fixture = Fixture::new(&[("etc/a.yaml", &file("v.com/c", "a", &[("d", "")])), ("etc/b.yaml", "kind: [")]);
    let catalog = fixture.catalog();
    assert_eq!(names(&catalog, "v.com/c=e"), Vec::<String>::new());
    let error = catalog.find(&wanted("v.com/c=e", true)).unwrap_err();
    assert_eq!(error.message, "required device \"v.com/c=e\" is not registered");
    assert_eq!(error.help[0], "there are v.com/c=d");
    assert!(error.help[1].starts_with(&format!("{} is not used: ", fixture.path("etc/b.yaml").display())));
}

#[test]
fn a_later_directory_wins_and_one_directory_agrees_with_itself() {
    let old = file("v.com/c", "old", &[("d", ""), ("e", "")]);
    let new = file("v.com/c", "new", &[("d", "")]);
    let fixture = Fixture::new(&[("etc/a.yaml", &old), ("run/a.yaml", &new)]);
    let (chosen, missing) =
        fixture.catalog().choose(&[wanted("v.com/c=*", true), wanted("v.com/c=d", true), wanted("x", false)]).unwrap();
    assert_eq!(
        (chosen.names.as_slice(), missing.as_slice()),
        (&["v.com/c=d", "v.com/c=e"].map(str::to_owned)[..], &["x".to_owned()][..])
    );
    let env: Vec<&str> = chosen.edits.iter().flat_map(|edits| &edits.env).map(String::as_str).collect();
    assert_eq!(env, ["FILE=new", "WHO=new-d", "FILE=old", "WHO=old-e"]);

    let fixture = Fixture::new(&[("etc/a.yaml", &old), ("etc/b.yaml", &new)]);
    let catalog = fixture.catalog();
    assert_eq!(names(&catalog, "v.com/c=e"), ["v.com/c=e"]);
    for name in ["v.com/c=d", "v.com/c", "v.com/c=*"] {
        let error = catalog.find(&wanted(name, false)).unwrap_err();
        assert_eq!(error.tier, Tier::Environment);
        let (one, other) = (fixture.path("etc/a.yaml"), fixture.path("etc/b.yaml"));
        assert!(error.message.contains(&format!("{} and by {}", one.display(), other.display())), "{}", error.message);
    }
    assert_eq!(catalog.faults().len(), 1);
    // A directory that comes later settles it.
    let fixture = Fixture::new(&[("etc/a.yaml", &old), ("etc/b.yaml", &new), ("run/c.yaml", &new)]);
    assert_eq!(names(&fixture.catalog(), "v.com/c=d"), ["v.com/c=d"]);
}

#[test]
fn annotations_of_a_device_come_before_those_of_its_file() {
    let mut text = file("v.com/c", "a", &[("yes", ""), ("no", "org.mobyproject.buildkit.device.autoallow: 'false'")]);
    text.push_str("annotations: { org.mobyproject.buildkit.device.autoallow: true }\n");
    let fixture = Fixture::new(&[("etc/a.yaml", &text)]);
    let found = fixture.catalog().find(&wanted("v.com/c=*", true)).unwrap();
    let found: Vec<_> = found.iter().map(|device| (device.name.as_str(), device.is_auto_allowed)).collect();
    assert_eq!(found, [("v.com/c=no", false), ("v.com/c=yes", true)]);
}

#[test]
fn a_device_beyond_us_names_its_file() {
    let text = "cdiVersion: 1.1.0\nkind: v.com/c\ndevices:\n- name: d\n  containerEdits: { intelRdt: { closID: x } }\n";
    let fixture = Fixture::new(&[("etc/a.yaml", text)]);
    let error = fixture.catalog().choose(&[wanted("v.com/c=d", false)]).unwrap_err();
    assert_eq!(error.message, "device v.com/c=d needs `intelRdt`, which no RUN step can have");
    assert!(error.help[0].ends_with("etc/a.yaml"));
}
