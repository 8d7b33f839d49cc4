//! Proxies of docker's `config.json`, which builds get as build arguments (`spec/cli.md` §1.2). Those of the environment
//! are for rbuild itself: registries, git and URLs.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::Path;

use serde::Deserialize;

/// What matters of the file.
#[derive(Default, Deserialize)]
struct Config {
    #[serde(default)]
    proxies: BTreeMap<String, Proxies>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Proxies {
    http_proxy: String,
    https_proxy: String,
    ftp_proxy: String,
    no_proxy: String,
    all_proxy: String,
}

/// Adds what the file in `config_dir` has for all engines; build arguments win, however their names are spelled.
pub(crate) fn add(build_args: &mut BTreeMap<String, String>, config_dir: Option<&Path>, warnings: &mut Vec<String>) {
    let Some(path) = config_dir.map(|dir| dir.join("config.json")) else { return };
    let text = match std::fs::read(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => return,
        Err(error) => return warnings.push(format!("cannot read proxies from {}: {error}", path.display())),
    };
    let mut config: Config = match serde_json::from_slice(&text) {
        Ok(config) => config,
        Err(error) => return warnings.push(format!("cannot read proxies from {}: {error}", path.display())),
    };
    let Some(found) = config.proxies.remove("default") else { return };
    for (name, value) in [
        ("HTTP_PROXY", found.http_proxy),
        ("HTTPS_PROXY", found.https_proxy),
        ("FTP_PROXY", found.ftp_proxy),
        ("NO_PROXY", found.no_proxy),
        ("ALL_PROXY", found.all_proxy),
    ] {
        if !value.is_empty() && !build_args.keys().any(|key| key.eq_ignore_ascii_case(name)) {
            build_args.insert(name.to_owned(), value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn added(config: &str, given: &[(&str, &str)]) -> (BTreeMap<String, String>, usize) {
        let dir = tempfile::tempdir().expect("temp dir");
        std::fs::write(dir.path().join("config.json"), config).expect("write");
        let mut args = given.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let mut warnings = Vec::new();
        add(&mut args, Some(dir.path()), &mut warnings);
        (args, warnings.len())
    }

    #[test]
    fn proxies_become_build_arguments_unless_given() {
        let config = r#"{"auths":{},"proxies":{"default":{"httpProxy":"http://a","noProxy":"b","httpsProxy":""},"tcp://x":{"ftpProxy":"c"}}}"#;
        let (args, n_warnings) = added(config, &[("no_proxy", "mine")]);
        let expected = [("HTTP_PROXY", "http://a"), ("no_proxy", "mine")];
        assert_eq!(args, expected.map(|(name, value)| (name.to_owned(), value.to_owned())).into());
        assert_eq!(n_warnings, 0);
    }

    #[test]
    fn files_without_proxies_are_fine_and_broken_ones_are_told() {
        assert_eq!(added("{}", &[]), (BTreeMap::new(), 0));
        assert_eq!(added("{", &[]), (BTreeMap::new(), 1));
        add(&mut BTreeMap::new(), Some(Path::new("/nowhere")), &mut Vec::new());
    }
}
