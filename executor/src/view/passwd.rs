//! Users and groups of a root: `/etc/passwd` and `/etc/group`.
//!
//! Two questions are answered differently, as BuildKit answers them: who owns what `--chown` and `WORKDIR` make
//! (`spec/dockerfile.md` §2.17: unknown names are root) and as whom a RUN runs (§8.3: unknown names are an error).

use std::io::Read;
use std::path::Path;

use solver::{OpError, Owner, Principal};

use super::{NodeKind, RootView, ViewError};

/// Larger account files are refused.
const MAX_FILE_BYTES: u64 = 10 << 20;

/// The account files of a root, read once.
#[derive(Clone, Debug, Default)]
pub struct Accounts {
    passwd: Option<Vec<u8>>,
    group: Option<Vec<u8>>,
}

/// A line of `/etc/passwd`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    /// Login name.
    pub name: String,
    /// Number.
    pub uid: u32,
    /// Primary group.
    pub gid: u32,
    /// Home directory; may be empty.
    pub home: String,
}

/// A line of `/etc/group`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// Name.
    pub name: String,
    /// Number.
    pub gid: u32,
    /// Names of the members.
    pub members: Vec<String>,
}

/// As whom a command runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunUser {
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Supplementary groups, ascending, each once.
    pub supplementary: Vec<u32>,
    /// Home directory of the passwd line, if there is one.
    pub home: Option<String>,
}

/// Why accounts could not be read or found.
#[derive(Debug, thiserror::Error)]
pub enum AccountsError {
    /// The root could not be read.
    #[error(transparent)]
    View(#[from] ViewError),
    /// An account file could not be read.
    #[error("cannot read `{path}` of the root: {source}")]
    Read {
        /// Path inside the root.
        path: &'static str,
        /// Why.
        source: std::io::Error,
    },
    /// The path leads to a directory, device or the like.
    #[error("`{path}` of the root is not a regular file")]
    NotAFile {
        /// Path inside the root.
        path: &'static str,
    },
    /// The file is larger than any account file should be.
    #[error("`{path}` of the root has {size_bytes} bytes, more than the {MAX_FILE_BYTES} that are read")]
    TooLarge {
        /// Path inside the root.
        path: &'static str,
        /// Its size.
        size_bytes: u64,
    },
    /// `USER` names nobody.
    #[error("unable to find user {name}: no matching entries in passwd file")]
    UnknownUser {
        /// The name.
        name: String,
    },
    /// `USER` names an unknown group.
    #[error("unable to find group {name}: no matching entries in group file")]
    UnknownGroup {
        /// The name.
        name: String,
    },
}

impl From<AccountsError> for OpError {
    fn from(error: AccountsError) -> Self {
        match error {
            AccountsError::View(error) => error.into(),
            AccountsError::Read { .. } => Self::environment(error.to_string()),
            _ => Self::input(error.to_string()),
        }
    }
}

impl Accounts {
    /// Reads the account files of `root`, following links inside of it. Missing files are empty.
    ///
    /// # Errors
    /// [`AccountsError::NotAFile`] and [`AccountsError::TooLarge`] for files that no system has, and I/O errors.
    pub fn load(root: &RootView) -> Result<Self, AccountsError> {
        Ok(Self { passwd: read_file(root, "/etc/passwd")?, group: read_file(root, "/etc/group")? })
    }

    /// The accounts in the given bytes of `/etc/passwd` and `/etc/group`.
    pub fn from_bytes(passwd: impl Into<Vec<u8>>, group: impl Into<Vec<u8>>) -> Self {
        Self { passwd: Some(passwd.into()), group: Some(group.into()) }
    }

    /// The raw bytes of `/etc/passwd` and `/etc/group`, which count for the key of a step that names an owner.
    pub fn raw(&self) -> (Option<&[u8]>, Option<&[u8]>) {
        (self.passwd.as_deref(), self.group.as_deref())
    }

    /// All well-formed lines of `/etc/passwd`, in order.
    pub fn users(&self) -> impl Iterator<Item = User> + '_ {
        lines(self.passwd.as_deref()).filter_map(|fields| {
            Some(User {
                name: fields.first()?.clone(),
                uid: fields.get(2)?.parse().ok()?,
                gid: fields.get(3)?.parse().ok()?,
                home: fields.get(5).cloned().unwrap_or_default(),
            })
        })
    }

    /// All well-formed lines of `/etc/group`, in order.
    pub fn groups(&self) -> impl Iterator<Item = Group> + '_ {
        lines(self.group.as_deref()).filter_map(|fields| {
            let members = fields.get(3).map(String::as_str).unwrap_or_default();
            Some(Group {
                name: fields.first()?.clone(),
                gid: fields.get(2)?.parse().ok()?,
                members: members.split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect(),
            })
        })
    }

    /// Owner and group of what `--chown` or a WORKDIR makes: unknown names are 0.
    ///
    /// Spec: `spec/dockerfile.md` §2.17.
    pub fn copy_owner(&self, owner: &Owner) -> (u32, u32) {
        let (uid, primary) = match &owner.user {
            Principal::Id(uid) => (*uid, *uid),
            Principal::Name(name) => {
                self.users().find(|user| user.name == *name).map_or((0, 0), |user| (user.uid, user.gid))
            }
        };
        let gid = match &owner.group {
            None => primary,
            Some(Principal::Id(gid)) => *gid,
            Some(Principal::Name(name)) => match self.groups().find(|group| group.name == *name) {
                Some(group) => group.gid,
                None if name == "root" => 0,
                None => primary,
            },
        };
        (uid, gid)
    }

    /// As whom `USER spec` runs; an empty `spec` is root.
    ///
    /// # Errors
    /// [`AccountsError::UnknownUser`], [`AccountsError::UnknownGroup`].
    ///
    /// Spec: `spec/dockerfile.md` §8.3.
    pub fn run_user(&self, spec: &str) -> Result<RunUser, AccountsError> {
        let (user_part, group_part) = match spec.split_once(':') {
            Some((user, group)) => (user, Some(group).filter(|group| !group.is_empty())),
            None => (spec, None),
        };
        let user_part = if user_part.is_empty() { "root" } else { user_part };
        let user = self.find_user(user_part)?;
        let known = user.as_ref().map(|user| (user.uid, user.gid, Some(user.home.clone())));
        // `find_user` fails for unknown names; what is left is `root` without a passwd line, or a number.
        let (uid, gid, home) = known.unwrap_or((user_part.parse().unwrap_or(0), 0, None));
        if let Some(group_part) = group_part {
            let gid = self.find_group(group_part)?;
            return Ok(RunUser { uid, gid, supplementary: vec![gid], home });
        }
        let mut supplementary = match &user {
            Some(user) => {
                let member_of = self.groups().filter(|group| group.members.contains(&user.name));
                member_of.map(|group| group.gid).chain([gid]).collect()
            }
            None if uid == 0 => vec![0],
            None => Vec::new(),
        };
        supplementary.sort_unstable();
        supplementary.dedup();
        Ok(RunUser { uid, gid, supplementary, home })
    }

    /// The passwd line of a name or number; `None` for a number (or `root`) without one.
    fn find_user(&self, text: &str) -> Result<Option<User>, AccountsError> {
        if let Some(user) = self.users().find(|user| user.name == text) {
            return Ok(Some(user));
        }
        match text.parse::<u32>() {
            Ok(uid) => Ok(self.users().find(|user| user.uid == uid)),
            Err(_) if text == "root" => Ok(self.users().find(|user| user.uid == 0)),
            Err(_) => Err(AccountsError::UnknownUser { name: text.to_owned() }),
        }
    }

    fn find_group(&self, text: &str) -> Result<u32, AccountsError> {
        if let Some(group) = self.groups().find(|group| group.name == text) {
            return Ok(group.gid);
        }
        text.parse().map_err(|_| AccountsError::UnknownGroup { name: text.to_owned() })
    }
}

/// Fields of each line that is neither blank nor a comment.
fn lines(file: Option<&[u8]>) -> impl Iterator<Item = Vec<String>> + '_ {
    let file = file.unwrap_or_default();
    file.split(|byte| *byte == b'\n').filter_map(|line| {
        let line = String::from_utf8_lossy(line);
        let line = line.trim();
        let counts = !line.is_empty() && !line.starts_with('#');
        counts.then(|| line.split(':').map(|field| field.trim().to_owned()).collect())
    })
}

fn read_file(root: &RootView, path: &'static str) -> Result<Option<Vec<u8>>, AccountsError> {
    let resolved = root.resolve(Path::new(path))?;
    let Some(node) = resolved.node else { return Ok(None) };
    if node.kind != NodeKind::File {
        return Err(AccountsError::NotAFile { path });
    }
    if node.meta.size_bytes > MAX_FILE_BYTES {
        return Err(AccountsError::TooLarge { path, size_bytes: node.meta.size_bytes });
    }
    let Some(file) = root.open_file(&resolved.path)? else { return Ok(None) };
    let mut bytes = Vec::new();
    file.take(MAX_FILE_BYTES).read_to_end(&mut bytes).map_err(|source| AccountsError::Read { path, source })?;
    Ok(Some(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\n# comment\nbroken\nnobody:x:65534:65533::/:/bin/false\n\
                          app:x:1000:1001::/home/app:/bin/sh\n";
    const GROUP: &str = "root:x:0:root\nwheel:x:10:root,app\nstaff:x:50:\nusers:x:1001:\naudio:x:11:app\n";

    fn accounts() -> Accounts {
        Accounts::from_bytes(PASSWD, GROUP)
    }

    #[test]
    fn owners_of_copies() {
        let name = |text: &str| Principal::Name(text.to_owned());
        let cases = [
            (Principal::Id(7), None, (7, 7)),
            (Principal::Id(7), Some(Principal::Id(8)), (7, 8)),
            (name("app"), None, (1000, 1001)),
            (name("app"), Some(name("staff")), (1000, 50)),
            (name("app"), Some(name("unknown")), (1000, 1001)),
            (name("ghost"), None, (0, 0)),
            (name("ghost"), Some(name("staff")), (0, 50)),
            (Principal::Id(3), Some(name("wheel")), (3, 10)),
            (Principal::Id(3), Some(name("root")), (3, 0)),
        ];
        for (user, group, want) in cases {
            let owner = Owner { user, group };
            assert_eq!(accounts().copy_owner(&owner), want, "{owner:?}");
        }
        let none = Accounts::default();
        assert_eq!(none.copy_owner(&Owner { user: name("root"), group: None }), (0, 0));
    }

    #[test]
    fn users_of_commands() {
        let check = |spec: &str, (uid, gid): (u32, u32), supplementary: &[u32], home: Option<&str>| {
            let got = accounts().run_user(spec).expect(spec);
            let (supplementary, home) = (supplementary.to_vec(), home.map(str::to_owned));
            assert_eq!(got, RunUser { uid, gid, supplementary, home }, "{spec}");
        };
        check("", (0, 0), &[0, 10], Some("/root"));
        check("root", (0, 0), &[0, 10], Some("/root"));
        check("app", (1000, 1001), &[10, 11, 1001], Some("/home/app"));
        check("1000", (1000, 1001), &[10, 11, 1001], Some("/home/app"));
        check("4242", (4242, 0), &[], None);
        check("app:staff", (1000, 50), &[50], Some("/home/app"));
        check("5:6", (5, 6), &[6], None);
        check("nobody", (65534, 65533), &[65533], Some("/"));
    }

    #[test]
    fn unknown_names_of_commands_are_errors() {
        let error = |spec: &str| accounts().run_user(spec).expect_err(spec).to_string();
        assert_eq!(error("ghost"), "unable to find user ghost: no matching entries in passwd file");
        assert_eq!(error("root:ghosts"), "unable to find group ghosts: no matching entries in group file");
        assert_eq!(Accounts::default().run_user("root").expect("root").uid, 0);
    }
}
