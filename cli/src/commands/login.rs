//! `rbuild login` and `rbuild logout`: what registries know us by, kept where docker keeps it (`spec/cli.md` §6).

use std::io::{BufRead, IsTerminal, Read, Write};
use std::path::PathBuf;

use oci::ImageRef;
use oci::registry::{Client, KeptLogin, Login, LoginError, RegistryError, forget_login, keep_login};

use super::build::wire;
use crate::args::{LoginArgs, LogoutArgs};
use crate::env;
use crate::failure::Failure;
use crate::ui;

/// More is no password.
const MAX_PASSWORD_BYTES: u64 = 64 << 10;

/// Asks the registry whether it takes the user, and remembers that.
pub(crate) fn login(args: &LoginArgs) -> Result<(), Failure> {
    let registry = registry(args.server.as_deref())?;
    let login = asked(args, &registry)?;
    let mut options = wire::client_options();
    options.logins.insert(key(&registry).to_owned(), login.clone());
    let client = Client::new(options);
    wire::runtime()?.block_on(client.check_login(&registry)).map_err(|error| refused(&registry, &error))?;
    let kept = keep_login(&config_dir()?, &registry, &login).map_err(cannot)?;
    if let KeptLogin::File(path) = kept {
        let warning = format!(
            "WARNING! The password is stored unencrypted in '{}'. A credential helper (`credsStore`) keeps it better.\n",
            path.display()
        );
        ui::stderr(|out| out.write_all(warning.as_bytes()));
    }
    Ok(ui::stdout("Login Succeeded\n")?)
}

/// Forgets it.
pub(crate) fn logout(args: &LogoutArgs) -> Result<(), Failure> {
    let registry = registry(args.server.as_deref())?;
    let was_there = forget_login(&config_dir()?, &registry).map_err(cannot)?;
    let said = if was_there { "Removing login credentials for" } else { "Not logged in to" };
    Ok(ui::stdout(&format!("{said} {registry}\n"))?)
}

/// The registry that is meant: a host, or a URL as people paste them.
fn registry(server: Option<&str>) -> Result<String, Failure> {
    let Some(server) = server else { return Ok("docker.io".to_owned()) };
    let bare = server.trim_start_matches("https://").trim_start_matches("http://");
    let host = bare.split('/').next().unwrap_or_default();
    if matches!(host, "docker.io" | "index.docker.io" | "registry-1.docker.io" | "hub.docker.com") {
        return Ok("docker.io".to_owned());
    }
    // The name of a host is one that an image may begin with.
    match ImageRef::new(host, "x") {
        Ok(_) => Ok(host.to_owned()),
        Err(_) => Err(Failure::usage(format!("`{server}` is no registry"))
            .help("name its host, with a port if it has one: `registry.example.com:5000`")),
    }
}

/// What the client looks logins up by.
fn key(registry: &str) -> &str {
    if registry == "docker.io" { "https://index.docker.io/v1/" } else { registry }
}

fn config_dir() -> Result<PathBuf, Failure> {
    env::docker_config_dir().ok_or_else(|| {
        Failure::usage("cannot tell where logins are kept: HOME is not set").help("set DOCKER_CONFIG to a directory")
    })
}

/// User and password, from flags, standard input or the terminal.
fn asked(args: &LoginArgs, registry: &str) -> Result<Login, Failure> {
    let is_terminal = std::io::stdin().is_terminal();
    let username = match &args.username {
        Some(name) => name.clone(),
        None if args.password_stdin => {
            return Err(Failure::usage("must provide --username with --password-stdin"));
        }
        None if is_terminal => prompt(&format!("Username for {registry}: "))?,
        None => {
            return Err(Failure::usage("cannot ask for a user: standard input is no terminal")
                .help("give --username and --password-stdin"));
        }
    };
    let password = match &args.password {
        Some(_) if args.password_stdin => {
            return Err(Failure::usage("--password and --password-stdin are mutually exclusive"));
        }
        Some(password) => password.clone(),
        None if args.password_stdin => piped_password()?,
        None if is_terminal => {
            let _silence = Silence::begin();
            let password = prompt("Password: ")?;
            ui::stderr(|out| out.write_all(b"\n"));
            password
        }
        None => {
            return Err(Failure::usage("cannot ask for a password: standard input is no terminal")
                .help("pipe it: `… | rbuild login --username NAME --password-stdin HOST`"));
        }
    };
    if username.is_empty() || password.is_empty() {
        return Err(Failure::usage("user and password must not be empty"));
    }
    Ok(Login { username, password })
}

fn piped_password() -> Result<String, Failure> {
    let fault = |error| Failure::environment(format!("cannot read the password from standard input: {error}"));
    let mut text = String::new();
    std::io::stdin().lock().take(MAX_PASSWORD_BYTES).read_to_string(&mut text).map_err(fault)?;
    Ok(text.trim_end_matches(['\r', '\n']).to_owned())
}

fn prompt(question: &str) -> Result<String, Failure> {
    ui::stderr(|out| out.write_all(question.as_bytes()));
    let mut line = String::new();
    let read = std::io::stdin().lock().read_line(&mut line);
    read.map_err(|error| Failure::environment(format!("cannot read from the terminal: {error}")))?;
    Ok(line.trim().to_owned())
}

/// The terminal shows nothing of what is typed, until dropped.
struct Silence(Option<rustix::termios::Termios>);

impl Silence {
    fn begin() -> Self {
        let stdin = std::io::stdin();
        let Ok(before) = rustix::termios::tcgetattr(&stdin) else { return Self(None) };
        let mut silent = before.clone();
        silent.local_modes.remove(rustix::termios::LocalModes::ECHO);
        let changed = rustix::termios::tcsetattr(&stdin, rustix::termios::OptionalActions::Now, &silent);
        Self(changed.is_ok().then_some(before))
    }
}

impl Drop for Silence {
    fn drop(&mut self) {
        if let Some(before) = &self.0 {
            // A terminal that has gone needs no echo.
            let _ = rustix::termios::tcsetattr(std::io::stdin(), rustix::termios::OptionalActions::Now, before);
        }
    }
}

fn refused(registry: &str, error: &RegistryError) -> Failure {
    let failure = Failure::environment(format!("cannot log in to {registry}: {error}"));
    if error.is_unauthorized() { failure.help("user or password is wrong; nothing was stored") } else { failure }
}

fn cannot(error: LoginError) -> Failure {
    let failure = Failure::environment(error.to_string());
    match error {
        LoginError::Config { .. } => failure.help("mend or remove the file; nothing in it was changed"),
        LoginError::Helper { .. } => {
            failure.help("docker's `credsStore` and `credHelpers` name programs that must be in PATH")
        }
        LoginError::File { .. } => failure,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registries_are_hosts_however_they_are_written() {
        let table = [
            (None, "docker.io"),
            (Some("https://index.docker.io/v1/"), "docker.io"),
            (Some("localhost:5000"), "localhost:5000"),
            (Some("https://registry.example.com/v2/"), "registry.example.com"),
            (Some("registry.example.com/team/app"), "registry.example.com"),
        ];
        for (server, expected) in table {
            assert_eq!(registry(server).unwrap(), expected, "{server:?}");
        }
        for server in ["", "a b", "-x", "https://"] {
            assert!(registry(Some(server)).is_err(), "{server}");
        }
    }
}
